"""How freely a step back is drawn, for samplers that draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cdlm.records import Dims
from cdlm.values import Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The same everywhere: the posterior's variance, the forward step's, or in between.

    log variance = (1 - spread) log posterior + spread log forward.   Shapes: -> a scalar.
    Source: Ho et al. 2020, section 3.2: its two choices are 0 and 1.
    """

    spread: Fraction = 0.0  # 0: of q(x_s | x_t, x0); 1: of q(x_t | x_s)

    def __call__(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t.new_tensor(self.spread)


class Learned(nn.Module):
    """A small network says it for every number, from the estimate, the state and the time.

    spread = sigmoid(MLP([x0_hat, x_t, t])),  position by position; 1/2 at first.
    What it is told passes no gradient back, so that only the bound teaches it: it needs `vlb`.
    Shapes: B L E, B L E, t B -> B L E.   Source: Nichol & Dhariwal 2021, eq. 15 (there the network
    itself says v).
    """

    needs: ClassVar[set[str]] = {"vlb"}

    def __init__(self, *, inner: Positive = 64, dims: Dims):  # width of its hidden layer
        super().__init__()
        last = nn.Linear(inner, dims.width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(2 * dims.width + 1, inner), nn.SiLU(), last)

    def forward(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        time = t[:, None, None].expand(*x_t.shape[:2], 1)
        return torch.sigmoid(self.mlp(torch.cat([x0_hat, x_t, time], -1)))
