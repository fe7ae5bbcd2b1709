"""What the network is told of its own last estimate of x0."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from cdlm.protocols import Schedule, Think
from cdlm.records import Dims, Noised
from cdlm.values import Fraction


class Forgetful(nn.Module):
    """The network is told nothing.

    Shapes: -> None.
    """

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
    training a share of the batches makes an estimate first, from x_t, and is told it. In sampling
    the estimate is of the step before, at more noise; where steps are few it is much worse than
    what training practised with. `ahead` corrects that: the estimate is made from the same caption
    at t + u, u ~ U(0, ahead), up to 1.
    Shapes: B L E -> B L H.   Units: ahead in t; about 1 / (sampling steps) is what sampling does.
    Source: Chen et al. 2022 (Bit Diffusion), section 2, "Self-conditioning"; the correction
    Nguyen-Cong et al. 2026 (FastDiSS), arXiv 2604.05551, its self-conditioning perturbation: the
    estimate comes from a higher t' > t. How t' is drawn is ours, and their scaling of each token's
    noise is not here.
    """

    def __init__(
        self,
        *,
        share: Fraction = 0.5,  # of batches that are told an estimate
        ahead: Fraction = 0.0,  # how much noisier the text is that it is made from, at most
        dims: Dims,
    ):
        super().__init__()
        self.share, self.ahead = share, ahead
        self.recall = nn.Linear(dims.width, dims.hidden, bias=False)

    def practise(
        self, think: Think, noised: Noised, schedule: Schedule, rng: Generator
    ) -> Tensor | None:
        if float(torch.rand((), generator=rng, device=rng.device)) >= self.share:
            return None
        if not self.ahead:
            with torch.no_grad():
                return think(noised.x_t, noised.t)
        u = torch.rand(len(noised.t), generator=rng, device=rng.device).to(noised.t)
        before = (noised.t + self.ahead * u).clamp(max=1)
        level = schedule(before).over(noised.x0)
        with torch.no_grad():
            return think(level.alpha * noised.x0 + level.sigma * noised.eps, before)

    def forward(self, before: Tensor | None, x_t: Tensor) -> Tensor | None:
        return self.recall(torch.zeros_like(x_t) if before is None else before)
