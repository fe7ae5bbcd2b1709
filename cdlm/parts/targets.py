"""What the network is asked to say of x_t = alpha x0 + sigma eps, and the x0 that it implies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from cdlm.protocols import Schedule
from cdlm.records import Noised
from cdlm.values import Part


@dataclass(frozen=True, kw_only=True)
class X0:
    """The network says the clean embeddings.

    y = x0.   Shapes: B L E.   Source: Li et al. 2022 (Diffusion-LM), section 4.2.
    """

    provides: ClassVar[set[str]] = {"x0"}  # an answer that is x0 itself, well-behaved at any t

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


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The network says the sequence as it was a little earlier: x_{t-k} for x_t.

    y = a x0 + b x_t,  x0 = (y - b x_t) / a;  with s = max(t - gap, 0):
    same_noise: b = sigma_s / sigma_t,  a = alpha_s - b alpha_t: x_s has the noise of x_t;
    posterior_mean: b = (alpha_t / alpha_s) (sigma_s / sigma_t)^2,
    a = alpha_s (1 - (alpha_t / alpha_s)^2) / sigma_t^2: the mean of q(x_s | x_t, x0).
    An error in y is an error 1 / a times as large in x0, and a is small where the gap is. At t = 0
    nothing is earlier: there it says nothing of x0.
    Shapes: B L E.   Units: gap in t; 30 steps of 1000 are 0.03.
    Source: Xu 2022 (CLIP-Diffusion-LM), section 5.4 (x_{t-100}); Ho et al. 2020, eq. 7.
    """

    gap: Part = 0.03  # how much earlier, in t
    coupling: Literal["same_noise", "posterior_mean"] = "same_noise"  # of x_s with x_t

    def encode(self, noised: Noised, schedule: Schedule) -> Tensor:
        a, b = self._shares(noised.x0, noised.t, schedule)
        return a * noised.x0 + b * noised.x_t

    def decode(self, y: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        a, b = self._shares(x_t, t, schedule)
        return (y - b * x_t) / a

    def _shares(self, x: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """How much of x0 and of x_t is in the answer. Shapes: x B L E, t B -> B 1 1 each."""
        now, then = schedule(t).over(x), schedule((t - self.gap).clamp(min=0)).over(x)
        if self.coupling == "same_noise":
            b = then.sigma / now.sigma
            return then.alpha - b * now.alpha, b
        kept = now.alpha / then.alpha
        a = then.alpha * (1 - kept.square()) / now.sigma.square()
        return a, kept * (then.sigma / now.sigma).square()
