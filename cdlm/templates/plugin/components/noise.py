"""Noise in pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Component:
    """Every second caption of a batch gets the opposite of its neighbour's noise.

    eps_(2k+1) = -eps_(2k),  eps_(2k) ~ N(0, I): the noise of a batch has mean 0 exactly.
    Shapes: x0 B L E -> B L E.
    """

    def __call__(self, x0: Tensor, rng: Generator) -> Tensor:
        """A draw for these captions, whatever they say."""
        half = ((len(x0) + 1) // 2, *x0.shape[1:])
        eps = torch.randn(half, generator=rng, device=x0.device, dtype=x0.dtype)
        return torch.stack([eps, -eps], dim=1).flatten(0, 1)[: len(x0)]
