"""The caption of usual length."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_low
from typing import ClassVar

from torch import Tensor

from cdlm.protocols import Encoder
from cdlm.values import Positive


@dataclass(frozen=True, kw_only=True)
class Component:
    """Of several candidates the one whose length is in the middle; neither a stub nor a ramble.

    argmin_i |words_i - median(words)|, of equals the first in the alphabet.
    """

    needs: ClassVar[set[str]] = set()

    count: Positive = 5  # candidates for each image

    def __call__(
        self, candidates: list[list[str]], features: Tensor, encoder: Encoder
    ) -> list[int]:
        """The position of the chosen one of each image."""
        return [_middle(texts) for texts in candidates]


def _middle(texts: list[str]) -> int:
    lengths = [len(text.split()) for text in texts]
    usual = median_low(lengths)
    return min(range(len(texts)), key=lambda i: (abs(lengths[i] - usual), texts[i]))
