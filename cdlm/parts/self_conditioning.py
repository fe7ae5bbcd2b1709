"""What the network is told of its own last estimate of x0."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from cdlm.protocols import Schedule, Think
from cdlm.records import Dims, Noised
from cdlm.values import Fraction


class Forgetful(nn.Module):
    """The network is told nothing.   Shapes: -> None."""

    def __init__(self) -> None:
        super().__init__()

    def practise(
        self, think: Think, noised: Noised, schedule: Schedule, rng: Generator
    ) -> Tensor | None:
        return None

    def forward(self, before: Tensor | None, x_t: Tensor) -> Tensor | None:
        return None


class Last(nn.Module):
    """The last estimate is added to the network's input, through a linear layer without bias.

    h <- read(x_t) + W x0_before,  x0_before = 0 at first. It equals reading [x_t, x0_before]. In
    training a share of the batches makes an estimate first, from the same x_t, and is told it.
    Shapes: B L E -> B L H.   Source: Chen et al. 2022 (Bit Diffusion), section 3.2.
    """

    def __init__(self, *, share: Fraction = 0.5, dims: Dims):  # of batches that are told one
        super().__init__()
        self.share = share
        self.recall = nn.Linear(dims.width, dims.hidden, bias=False)

    def practise(
        self, think: Think, noised: Noised, schedule: Schedule, rng: Generator
    ) -> Tensor | None:
        if float(torch.rand((), generator=rng, device=rng.device)) >= self.share:
            return None
        with torch.no_grad():
            return think(noised.x_t, noised.t)

    def forward(self, before: Tensor | None, x_t: Tensor) -> Tensor | None:
        return self.recall(torch.zeros_like(x_t) if before is None else before)
