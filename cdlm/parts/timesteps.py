"""Which noise levels training visits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cdlm.values import Above0


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Every noise level is as likely as any other, and counts the same.

    t ~ U(least, 1), weight 1.
    Shapes: -> t B, weight B.   Source: Ho et al. 2020, algorithm 1, with t continuous.
    """

    least: Above0 = 1e-3  # t is at least this: at t = 0 there is nothing to denoise

    def __call__(self, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
        t = torch.rand(batch, generator=rng, device=rng.device)
        return self.least + (1 - self.least) * t, torch.ones_like(t)

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Losses do not change a uniform draw."""
