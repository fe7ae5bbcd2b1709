"""What the metrics share: captions beside their references, and means over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cdlm.errors import DataError
from cdlm.parts.metrics.tokens import joined
from cdlm.records import Answers, Tally


def pairs(answers: Answers) -> list[tuple[str, list[str]]]:
    """Each caption and its references, as tokens with single spaces between.

    Raises DataError where an image has no reference, or there is no image.
    """
    require_references(answers)
    truth = iter(joined([text for texts in answers.references for text in texts]))
    references = [[next(truth) for _ in texts] for texts in answers.references]
    return list(zip(joined(answers.captions), references, strict=True))


def require_references(answers: Answers) -> None:
    """Raises DataError where an image has no reference, or there is no image."""
    require_captions(answers)
    for image_id, references in zip(answers.image_ids, answers.references, strict=True):
        if not references:
            raise DataError(
                f'image "{image_id}": has no reference caption to score against; '
                "give it at least one, or leave the image out"
            )


def require_captions(answers: Answers) -> None:
    """Raises DataError where there is nothing to score."""
    if not answers.captions:
        raise DataError("metrics: there are no captions to score; allowed: one caption or more")


def mean(values: Mapping[str, Sequence[float] | np.ndarray]) -> Tally:
    """Scores that are means of a number for each image."""
    columns = [np.asarray(column, dtype=np.float64) for column in values.values()]
    rows = np.stack([*columns, np.ones_like(columns[0])], axis=1)
    return Tally(rows, lambda sums: {k: sums[..., i] / sums[..., -1] for i, k in enumerate(values)})


def ratio(values: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Tally:
    """Scores that are a sum over all images divided by another; 0 where that is 0."""
    rows = np.stack([np.asarray(side, np.float64) for pair in values.values() for side in pair], 1)
    return Tally(rows, lambda sums: {k: _shares(sums, 2 * i) for i, k in enumerate(values)})


def _shares(sums: np.ndarray, i: int) -> np.ndarray:
    return sums[..., i] / np.where(sums[..., i + 1] == 0, 1.0, sums[..., i + 1])
