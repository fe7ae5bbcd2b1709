"""What training makes smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Generator, Tensor

from cdlm.records import Batch

if TYPE_CHECKING:
    from cdlm.compose import Parts


@dataclass(frozen=True, kw_only=True)
class ProcessLoss:
    """The loss of the process itself: how well the network knows the training captions.

    Shapes: -> the process's terms, each ().   Units: the process says.
    """

    def begin(self, references: Sequence[Sequence[str]]) -> None:
        """Nothing to look at."""

    def __call__(self, parts: Parts, batch: Batch, rng: Generator) -> dict[str, Tensor]:
        return parts.process.loss(parts, batch, rng)
