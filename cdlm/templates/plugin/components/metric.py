"""How many words are right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cdlm.records import Answers, Tally


@dataclass(frozen=True, kw_only=True)
class Component:
    """The share of words that a caption has in common with its best reference, in any order.

    mean over images of max over references of F1 = 2 common / (said + wanted), 0 to 1.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        """One number over all images."""
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """What each image adds, so that studies can tell a difference from noise."""
        pairs = zip(answers.captions, answers.references, strict=True)
        best = [max(_overlap(said, text) for text in texts) for said, texts in pairs]
        rows = np.stack([best, np.ones(len(best))], axis=1)
        return Tally(rows, lambda sums: {"COMPONENT": sums[..., 0] / sums[..., 1]})

    def marks(self, answers: Answers) -> list[bool] | None:
        """No caption is right or wrong by itself."""
        return None


def _overlap(said: str, wanted: str) -> float:
    one, two = Counter(said.lower().split()), Counter(wanted.lower().split())
    common, total = (one & two).total(), one.total() + two.total()
    return 2 * common / total if total else 1.0
