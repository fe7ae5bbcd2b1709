"""Which noise levels training visits.

Where a choice has `steps`, its times are those of T steps, k / T with k = 1..T, as the discrete
schedules have them; without, t is continuous.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from cdlm.values import Above0, Count, Part, Positive


def _spread(u: Tensor, least: float, steps: int) -> Tensor:
    """u B in [0, 1] -> t B: onto [least, 1], or onto the T steps."""
    if steps:
        return ((u * steps).floor() + 1).clamp(max=steps) / steps
    return least + (1 - least) * u


def _back(t: Tensor, least: float, steps: int) -> Tensor:
    """t B -> the u B of _spread that it came from; of a step, the middle of those."""
    return t - 0.5 / steps if steps else (t - least) / (1 - least)


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Every noise level is as likely as any other, and counts the same.

    t ~ U(least, 1), or k / T with k uniform; weight 1.
    Shapes: -> t B, weight B.   Source: Ho et al. 2020, algorithm 1.
    """

    least: Above0 = 1e-3  # continuous t is at least this: at t = 0 there is nothing to denoise
    steps: Count = 0  # T; 0: continuous t

    def __call__(self, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
        t = _spread(torch.rand(batch, generator=rng, device=rng.device), self.least, self.steps)
        return t, torch.ones_like(t)

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Losses do not change a uniform draw."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One noise level serves the whole batch.

    t_b = t for every caption b, t ~ U(least, 1), or k / T with k uniform; weight 1.
    Shapes: -> t B, weight B.
    One batch tells of one level only. Source: after the released code of Xu 2022
    (CLIP-Diffusion-LM), whose updates have 100 levels, the same for all captions.
    """

    least: Above0 = 1e-3  # continuous t is at least this
    steps: Count = 0  # T; 0: continuous t

    def __call__(self, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
        one = torch.rand(1, generator=rng, device=rng.device)
        t = _spread(one, self.least, self.steps).repeat(batch)
        return t, torch.ones_like(t)

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Losses do not change the draw."""


@dataclass(frozen=True, kw_only=True)
class Stratified:
    """The noise levels of a batch lie evenly, so that its loss varies less.

    u_b = (u + b / B) mod 1,  u ~ U(0, 1) once for each batch;
    t_b = least + (1 - least) u_b, or k / T with k = 1 + floor(T u_b); weight 1.
    Shapes: -> t B, weight B.   Source: Kingma et al. 2021 (VDM), appendix I.1.
    """

    least: Above0 = 1e-3  # continuous t is at least this
    steps: Count = 0  # T; 0: continuous t

    def __call__(self, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
        u = torch.rand((), generator=rng, device=rng.device)
        even = (u + torch.arange(batch, device=rng.device) / batch) % 1
        return _spread(even, self.least, self.steps), torch.ones_like(even)

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Losses do not change the draw."""


@dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """Middling noise levels come more often, and thereby count more.

    t = sigmoid(mean + std n),  n ~ N(0, 1); weight 1: the density is meant as a weighting.
    Shapes: -> t B, weight B.   Source: Esser et al. 2024 (Stable Diffusion 3), eq. 19.
    """

    mean: float = 0.0  # above 0: more noise
    std: Above0 = 1.0  # the smaller, the closer to sigmoid(mean)

    def __call__(self, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
        n = torch.randn(batch, generator=rng, device=rng.device)
        t = torch.sigmoid(self.mean + self.std * n).clamp(1e-4, 1 - 1e-4)
        return t, torch.ones_like(t)

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Losses do not change the draw."""


class Importance(nn.Module):
    """Noise levels with large losses come more often, and count less, so that the mean loss stays.

    p_k ~ sqrt(mean of the last `history` squared losses of bin k), mixed with a uniform share;
    t uniform within the bin; weight 1 / (bins p_k). Uniform until every bin has its history.
    Shapes: -> t B, weight B.   Source: Nichol & Dhariwal 2021, section 3.3, eq. 18.
    The history is part of a checkpoint. Raises ValueError for more bins than steps.
    """

    losses: Tensor
    counts: Tensor

    def __init__(
        self,
        *,
        bins: Positive = 50,  # of equal width in t
        history: Positive = 10,  # losses that each bin remembers
        share: Part = 0.001,  # of the draws that stay uniform
        least: Above0 = 1e-3,  # continuous t is at least this
        steps: Count = 0,  # T; 0: continuous t
    ):
        super().__init__()
        if 0 < steps < bins:  # a bin without a step would never have its history
            raise ValueError(f"bins = {bins} must not be more than steps = {steps}")
        self.share, self.least, self.steps = share, least, steps
        self.register_buffer("losses", torch.ones(bins, history))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.long))

    def shares(self) -> Tensor:
        """p of every bin; they sum to 1. -> bins."""
        size = torch.where((self.counts >= self.losses.shape[1]).all(), self.losses, 1.0)
        root = size.square().mean(1).sqrt().clamp(min=1e-12)  # of losses that are all 0, equal
        return (1 - self.share) * root / root.sum() + self.share / len(root)

    def forward(self, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
        shares = self.shares().to(rng.device)
        k = torch.multinomial(shares, batch, replacement=True, generator=rng)
        u = torch.rand(batch, generator=rng, device=rng.device)
        t = _spread((k + u) / len(shares), self.least, self.steps)
        return t, 1 / (len(shares) * shares[k])

    @torch.no_grad()
    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Each bin forgets its oldest losses for the new ones."""
        bins, history = self.losses.shape
        known = loss.isfinite() & (loss < 1e18)  # whose squares are finite
        u = _back(t[known], self.least, self.steps)
        k = (u * bins).long().clamp(0, bins - 1)
        order = k.argsort(stable=True)
        k, fresh = k[order], loss[known][order].float()
        rank = torch.arange(len(k), device=k.device) - torch.searchsorted(k, k)
        some = rank < history  # of more losses than fit, the first
        place = (self.counts[k] + rank) % history
        self.losses[k[some], place[some]] = fresh[some]
        self.counts += torch.bincount(k[some], minlength=bins)
