"""The last estimate, without its outliers."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from cdlm.protocols import Schedule, Think
from cdlm.records import Dims, Noised
from cdlm.values import Fraction


class Component(nn.Module):
    """The last estimate is added to the network's input, squashed so that none of it is large.

    h <- read(x_t) + W tanh(x0_before),  x0_before = 0 at first.   Shapes: B L E -> B L H.
    In training a share of the batches makes an estimate first, and is told it.
    Source: Chen et al. 2022 (Bit Diffusion), section 2, there without the tanh.
    """

    def __init__(self, *, share: Fraction = 0.5, dims: Dims):  # of batches that are told one
        super().__init__()
        self.share = share
        self.recall = nn.Linear(dims.width, dims.hidden, bias=False)

    def practise(
        self, think: Think, noised: Noised, schedule: Schedule, rng: Generator
    ) -> Tensor | None:
        """What the network makes of this batch, in a share of the batches."""
        if float(torch.rand((), generator=rng, device=rng.device)) >= self.share:
            return None
        with torch.no_grad():
            return think(noised.x_t, noised.t)

    def forward(self, before: Tensor | None, x_t: Tensor) -> Tensor | None:
        """What is added; nothing while there is no estimate."""
        return self.recall(torch.zeros_like(x_t) if before is None else before.tanh())
