"""Times in pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Component:
    """For every time that is drawn, its opposite is visited as well.

    t_(2k) ~ U(0, 1],  t_(2k+1) = 1 - t_(2k);  weight = 1.   Shapes: -> B, B.
    Half of a batch stands at more noise than the other, so the loss varies less between batches.
    """

    def __call__(self, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """A draw of so many."""
        u = torch.rand((batch + 1) // 2, generator=rng, device=rng.device).clamp(1e-4, 1 - 1e-4)
        t = torch.stack([u, 1 - u], dim=1).flatten()[:batch]
        return t, torch.ones_like(t)

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """It does not look at losses."""
