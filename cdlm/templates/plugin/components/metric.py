"""How many words are right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from cdlm.records import Answers


@dataclass(frozen=True, kw_only=True)
class Component:
    """The share of words that a caption has in common with its best reference, in any order.

    mean over images of max over references of F1 = 2 common / (said + wanted), 0 to 1.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        """One number over all images."""
        pairs = zip(answers.captions, answers.references, strict=True)
        best = [max(_overlap(said, text) for text in texts) for said, texts in pairs]
        return {"COMPONENT": sum(best) / max(1, len(best))}

    def tally(self, answers: Answers) -> None:
        """It is not told how the images add up, so that studies compare it over seeds alone."""

    def marks(self, answers: Answers) -> list[bool] | None:
        """No caption is right or wrong by itself."""
        return None


def _overlap(said: str, wanted: str) -> float:
    one, two = Counter(said.lower().split()), Counter(wanted.lower().split())
    common, total = (one & two).total(), one.total() + two.total()
    return 2 * common / total if total else 1.0
