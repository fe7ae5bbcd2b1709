"""How signal turns into noise as t goes from 0 to 1: x_t = alpha(t) x0 + sigma(t) eps.

All are variance preserving, alpha^2 + sigma^2 = 1. The field's alpha_bar is alpha^2 here, and its
step k of T is t = k / T. `noise` divides alpha / sigma at every t: words stand so far apart that
most levels of an image schedule leave them plain to read (LaDiC, 2404.10763, trains with noise 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cdlm.records import Level
from cdlm.values import Above0, Fraction


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
