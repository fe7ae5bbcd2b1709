"""The noise that captions are corrupted with in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Independent:
    """Every caption gets noise of its own.

    eps ~ N(0, I).   Shapes: B L E.   Source: Ho et al. 2020, algorithm 1.
    """

    def __call__(self, x0: Tensor, rng: Generator) -> Tensor:
        return torch.randn(x0.shape, generator=rng, device=x0.device)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One draw of noise serves the whole batch.

    eps_b = e for every caption b,  e ~ N(0, I).   Shapes: B L E.
    Gradients of a batch then err together. Source: the lab notes that cdlm grew from, and the draft
    of CLIP-Diffusion-LM (Xu 2022); its released code draws for each caption.
    """

    def __call__(self, x0: Tensor, rng: Generator) -> Tensor:
        one = torch.randn(x0.shape[1:], generator=rng, device=x0.device)
        return one.expand(x0.shape).clone()
