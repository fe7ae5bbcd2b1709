"""How sure a score is: the bootstrap over images, for any metric.

Images are drawn with replacement, as many as there are, and everything is scored again. Two runs
with captions of the same images are drawn alike, so that their draws can be subtracted.
Source: Efron & Tibshirani 1993, percentile intervals; Koehn 2004 for the paired form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdlm.evaluate import evaluate
from cdlm.progress import Tell, silent
from cdlm.protocols import Metric
from cdlm.records import Answers

DRAWS = 100
LEVEL = 0.95  # of the intervals


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What each score came to, draw by draw."""

    samples: str  # sha256 of the captions that were scored
    images: int
    scores: dict[str, list[float]]

    @property
    def count(self) -> int:
        """How many draws there are."""
        return min(map(len, self.scores.values()), default=0)

    def interval(self, name: str) -> tuple[float, float]:
        """The middle LEVEL of a score's draws."""
        return middle(self.scores[name])


def draw(metrics: Sequence[Metric], answers: Answers, samples: str, tell: Tell = silent) -> Draws:
    """Score DRAWS draws of these images. Equal calls give equal draws."""
    rng, images = np.random.default_rng(0), len(answers.captions)
    scores: dict[str, list[float]] = {}
    for i in range(DRAWS):
        rows = rng.integers(images, size=images).tolist()
        for score in evaluate(metrics, _of(answers, rows)):
            scores.setdefault(score.name, []).append(score.value)
        tell("bootstrap", i + 1, DRAWS, f"{images:,} images each")
    return Draws(samples=samples, images=images, scores=scores)


def _of(answers: Answers, rows: Sequence[int]) -> Answers:
    return Answers(
        image_ids=[answers.image_ids[i] for i in rows],
        captions=[answers.captions[i] for i in rows],
        references=[answers.references[i] for i in rows],
        truths=[answers.truths[i] for i in rows],
    )


def middle(values: Sequence[float]) -> tuple[float, float]:
    """The interval that holds the middle LEVEL of these values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
