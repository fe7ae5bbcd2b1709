"""What the network is asked to say of x_t = alpha x0 + sigma eps, and the x0 that it implies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cdlm.protocols import Schedule
from cdlm.records import Noised


@dataclass(frozen=True, kw_only=True)
class X0:
    """The network says the clean embeddings.

    y = x0.   Shapes: B L E.   Source: Li et al. 2022 (Diffusion-LM), section 4.2.
    """

    def encode(self, noised: Noised, schedule: Schedule) -> Tensor:
        return noised.x0

    def decode(self, y: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        return y


@dataclass(frozen=True, kw_only=True)
class Eps:
    """The network says the noise.

    y = eps,  x0 = (x_t - sigma y) / alpha.   Shapes: B L E.   Source: Ho et al. 2020, eq. 12.
    Where alpha is small, an error in y is an error sigma / alpha times as large in x0.
    """

    def encode(self, noised: Noised, schedule: Schedule) -> Tensor:
        return noised.eps

    def decode(self, y: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        level = schedule(t).over(x_t)
        return (x_t - level.sigma * y) / level.alpha


@dataclass(frozen=True, kw_only=True)
class V:
    """The network says the velocity: noise where there is little of it, signal where there is much.

    y = alpha eps - sigma x0,  x0 = alpha x_t - sigma y.   Shapes: B L E.
    Source: Salimans & Ho 2022, appendix D. The schedule must be variance preserving.
    """

    def encode(self, noised: Noised, schedule: Schedule) -> Tensor:
        level = schedule(noised.t).over(noised.x0)
        return level.alpha * noised.eps - level.sigma * noised.x0

    def decode(self, y: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        level = schedule(t).over(x_t)
        return level.alpha * x_t - level.sigma * y
