"""The loss of several draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from cdlm.records import Batch
from cdlm.values import Positive

if TYPE_CHECKING:
    from cdlm.compose import Parts


@dataclass(frozen=True, kw_only=True)
class Component:
    """Every caption is corrupted several times, and the loss of the process is the mean.

    Less noise in the gradient, for as many times the work.   Shapes: -> the process's terms, ().
    """

    draws: Positive = 2  # of time and noise, for each caption

    def begin(self, references: Sequence[Sequence[str]]) -> None:
        """It does not look at the captions beforehand."""

    def __call__(self, parts: Parts, batch: Batch, rng: Generator) -> dict[str, Tensor]:
        """The mean of every term."""
        several = [parts.process.loss(parts, batch, rng) for _ in range(self.draws)]
        return {name: torch.stack([it[name] for it in several]).mean() for name in several[0]}
