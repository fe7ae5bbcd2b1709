"""How signal turns into noise as t goes from 0 to 1: x_t = alpha(t) x0 + sigma(t) eps.

All are variance preserving, alpha^2 + sigma^2 = 1. The field's alpha_bar is alpha^2 here, and its
step k of T is t = k / T. `noise` divides alpha / sigma at every t: words stand so far apart that
most levels of an image schedule leave them plain to read (LaDiC, 2404.10763, trains with noise 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.records import Level
from cdlm.values import Above0, Fraction, Positive


def _level(alpha: Tensor, noise: float) -> Level:
    sigma = noise * (1 - alpha.square()).clamp(min=0).sqrt()
    size = torch.hypot(alpha, sigma)  # 1 where noise is 1
    return Level(alpha / size, sigma / size)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Signal falls along a quarter cosine.

    alpha(t) = floor + (1 - floor) cos((t + offset) q) / cos(offset q),  q = pi / 2(1 + offset)
    Shapes: t B -> alpha, sigma B.   Units: t in [0, 1], 0 clean.
    Source: Nichol & Dhariwal 2021, eq. 17, with t continuous.
    """

    offset: Above0 = 0.008  # keeps sigma from vanishing too fast near t = 0
    floor: Fraction = 1e-3  # alpha at t = 1: noise predictions stay decodable there
    noise: Above0 = 1.0  # more noise than the formula's, at every t

    def __call__(self, t: Tensor) -> Level:
        q = math.pi / (2 * (1 + self.offset))
        fall = torch.cos((t + self.offset) * q) / math.cos(self.offset * q)
        return _level(self.floor + (1 - self.floor) * fall.clamp(0, 1), self.noise)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Noise is added at a rate that grows linearly.

    alpha(t)^2 = exp(-(least t + (most - least) t^2 / 2))
    Shapes: t B -> alpha, sigma B.   Units: t in [0, 1], 0 clean; rates per unit of t.
    Source: Ho et al. 2020 (beta from 1e-4 to 0.02 over T = 1000 steps), as the continuous limit of
    Song et al. 2021, eq. 32.
    """

    least: Above0 = 0.1  # T beta_1
    most: Above0 = 20.0  # T beta_T
    noise: Above0 = 1.0  # more noise than the formula's, at every t

    def __call__(self, t: Tensor) -> Level:
        decay = self.least * t + (self.most - self.least) * t.square() / 2
        return _level(torch.exp(-decay / 2), self.noise)


@dataclass(frozen=True, kw_only=True)
class Sqrt:
    """Noise comes at once and then slowly, so that no word can be read off a nearly clean x_t.

    alpha(t)^2 = 1 - (1 - floor) sqrt((t + offset) / (1 + offset))
    Shapes: t B -> alpha, sigma B.   Units: t in [0, 1], 0 clean.
    Source: Li et al. 2022 (Diffusion-LM), appendix A, rescaled to end at `floor`, not below 0.
    """

    offset: Above0 = 1e-4  # sigma^2 at t = 0 is about its square root, 0.01
    floor: Above0 = 1e-4  # alpha^2 at t = 1
    noise: Above0 = 1.0  # more noise than the formula's, at every t

    def __call__(self, t: Tensor) -> Level:
        share = (1 - self.floor) * torch.sqrt((t + self.offset) / (1 + self.offset))
        return _level(torch.sqrt(1 - share), self.noise)


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """Signal falls along a logistic curve: most of the time is spent at middling noise.

    alpha(t)^2 = floor + (1 - floor) (f(end) - f(start + (end - start) t)) / (f(end) - f(start)),
    f(z) = sigmoid(z / tau).   Shapes: t B -> alpha, sigma B.   Units: t in [0, 1], 0 clean.
    Source: Jabri et al. 2022 (RIN), arXiv 2212.11972; Chen 2023, arXiv 2301.10972.
    """

    start: float = -3.0  # where on the logistic curve t = 0 lies
    end: float = 3.0  # where t = 1 lies, above start
    tau: Above0 = 1.0  # below 1: a steeper fall, and more time near both ends
    floor: Above0 = 1e-6  # alpha^2 at t = 1
    noise: Above0 = 1.0  # more noise than the formula's, at every t

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError(f"start = {self.start} must be below end = {self.end}")

    def __call__(self, t: Tensor) -> Level:
        first, last = (1 / (1 + math.exp(-z / self.tau)) for z in (self.start, self.end))
        now = torch.sigmoid((self.start + (self.end - self.start) * t) / self.tau)
        share = ((last - now) / (last - first)).clamp(0, 1)
        return _level(torch.sqrt(self.floor + (1 - self.floor) * share), self.noise)


@dataclass(frozen=True, kw_only=True)
class Discrete:
    """A published table of T steps: alpha(k / T)^2 is its alpha_bar_k, and straight in between.

    alpha_bar_k = product over i <= k of (1 - beta_i), with
    linear: beta from 0.1 / T to 20 / T;   cosine, sqrt: beta_i = min(1 - f(i / T) / f((i-1) / T),
    0.999), with f(u) = cos^2(pi/2 (u + 0.008) / 1.008) or 1 - sqrt(u + 0.0001).
    Shapes: t B -> alpha, sigma B.   Units: t in [0, 1]; step k is t = k / T, and 0 is clean.
    Source: Ho et al. 2020, section 4 (linear); Nichol & Dhariwal 2021, eq. 17 (cosine);
    Li et al. 2022 (Diffusion-LM), appendix A (sqrt).
    """

    table: Literal["linear", "cosine", "sqrt"] = "cosine"
    steps: Positive = 1000  # T; a linear table needs more than 20
    noise: Above0 = 1.0  # more noise than the table's, at every t

    def __post_init__(self) -> None:
        if self.table == "linear" and self.steps <= 20:
            raise ValueError(f"steps = {self.steps}: a linear table needs more than 20 steps")

    def __call__(self, t: Tensor) -> Level:
        alpha_bar = published(self.table, self.steps).to(t.device)
        place = t.double() * self.steps
        before = place.floor().clamp(0, self.steps - 1)
        start, end = (alpha_bar[before.long() + i] for i in (0, 1))
        level = _level(torch.lerp(start, end, place - before).sqrt(), self.noise)
        return Level(level.alpha.to(t.dtype), level.sigma.to(t.dtype))


@lru_cache(maxsize=8)
def published(table: str, steps: int) -> Tensor:
    """alpha_bar_0 = 1, alpha_bar_1, ... of a table of T steps. -> T + 1, float64."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if table == "linear":
        beta = torch.linspace(0.1, 20.0, steps, dtype=torch.float64) / steps
    else:
        cosine = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
        f = cosine if table == "cosine" else 1 - torch.sqrt(u + 1e-4)
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.cat([u.new_ones(1), torch.cumprod(1 - beta, 0)])


class Learned(nn.Module):
    """A monotone network draws the curve of log-SNR between two fixed ends.

    log(alpha^2 / sigma^2)(t) = clean + (noisy - clean) (g(t) - g(0)) / (g(1) - g(0)) - 2 log noise,
    g(t) = a t + sum_k w_k sigmoid(b_k t + c_k) with all a, w_k, b_k > 0; at first nearly straight.
    It follows the gradient of the whole loss through x_t. Only a bound keeps that honest: under a
    plain mse the easiest levels win. So it needs the loss `vlb`.
    Shapes: t B -> alpha, sigma B.   Units: t in [0, 1], 0 clean; log-SNR in nats.
    Source: Kingma et al. 2021 (VDM), section 4.1 and appendix H.
    """

    needs: ClassVar[set[str]] = {"vlb"}

    def __init__(
        self,
        *,
        clean: float = 10.0,  # log-SNR at t = 0
        noisy: float = -10.0,  # log-SNR at t = 1, below clean
        units: Positive = 64,  # of the curve's hidden layer
        noise: Above0 = 1.0,  # more noise than the curve's, at every t
    ):
        super().__init__()
        if noisy >= clean:
            raise ValueError(f"noisy = {noisy} must be below clean = {clean}")
        self.clean, self.noisy, self.noise = clean, noisy, noise
        self.straight = nn.Parameter(torch.zeros(()))
        self.heights = nn.Parameter(torch.full((units,), -5.0))
        self.slopes = nn.Parameter(torch.full((units,), 10.0))
        self.places = nn.Parameter(torch.linspace(0, -10, units))

    def forward(self, t: Tensor) -> Level:
        start, end = self._curve(t.new_zeros(())), self._curve(t.new_ones(()))
        share = (self._curve(t) - start) / (end - start)
        ratio = self.clean + (self.noisy - self.clean) * share - 2 * math.log(self.noise)
        return Level(torch.sigmoid(ratio).sqrt(), torch.sigmoid(-ratio).sqrt())

    def _curve(self, t: Tensor) -> Tensor:
        a, w, b = (F.softplus(it.to(t)) for it in (self.straight, self.heights, self.slopes))
        return a * t + (w * torch.sigmoid(b * t[..., None] + self.places.to(t))).sum(-1)
