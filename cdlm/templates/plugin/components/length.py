"""Lengths between two bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cdlm.records import Batch, Condition, Dims
from cdlm.values import Positive


@dataclass(frozen=True, kw_only=True)
class Component:
    """Padding is nothing; a sampled caption has any length between two bounds, all equally often.

    mask = the caption and its end token;  length ~ U{least, ..., most}, at most L.
    Shapes: -> B L.   Units: positions, the end token's among them.
    Raises ValueError where least is above most.
    """

    least: Positive = 6
    most: Positive = 14
    dims: Dims

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"least = {self.least} is above most = {self.most}")

    def mask(self, batch: Batch) -> Tensor:
        """In training each caption has its own length."""
        return batch.mask

    def draw(self, condition: Condition, rng: Generator) -> Tensor:
        """In sampling the length knows nothing of the image."""
        count, device = len(condition.features), condition.features.device
        bounds = (self.least, self.most + 1)
        length = torch.randint(*bounds, (count, 1), generator=rng, device=device)
        return torch.arange(self.dims.length, device=device) < length
