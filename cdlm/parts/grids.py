"""The times that sampling visits. Each is a rule for N + 1 times, from 1 to 0.

All take `td`, asymmetric time: x is brought td further towards text than the next step takes it to
be, so that the network always believes x noisier than it is (Chen et al. 2022, Bit Diffusion,
algorithm 2, whose td counts steps: divide it by the number of steps). td = 0 is ordinary sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cdlm.protocols import Schedule
from cdlm.values import Fraction, Part


def ahead(times: Sequence[float], td: float) -> list[tuple[float, float]]:
    """(t, s) for each step between these falling times, s lowered by td but not below 0."""
    return [(t, max(s - td, 0.0)) for t, s in pairwise(times)]


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Times evenly spaced in t.

    t_i = 1 - i / N,  i = 0..N.   Units: t in [0, 1], 0 clean.   Source: Song et al. 2021 (DDIM),
    appendix D.2, "linear".
    """

    td: Fraction = 0.0  # asymmetric time, in t: how far x runs ahead of what the network is told

    def __call__(self, steps: int, schedule: Schedule) -> list[tuple[float, float]]:
        return ahead([1 - i / steps for i in range(steps)] + [0.0], self.td)


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """Times that lie closer together the nearer they are to clean text.

    t_i = (1 - i / N)^2,  i = 0..N.   Units: t in [0, 1], 0 clean.   Source: Song et al. 2021
    (DDIM), appendix D.2, "quadratic".
    """

    td: Fraction = 0.0  # asymmetric time, in t: how far x runs ahead of what the network is told

    def __call__(self, steps: int, schedule: Schedule) -> list[tuple[float, float]]:
        return ahead([(1 - i / steps) ** 2 for i in range(steps)] + [0.0], self.td)


@dataclass(frozen=True, kw_only=True)
class LogSnr:
    """Times evenly spaced in the logarithm of alpha / sigma, and a last step to 0.

    lambda(t_i) = lambda(1) + (lambda(clean) - lambda(1)) i / (N - 1),  i = 0..N-1;  t_N = 0.
    Ends without any noise or signal are taken at lambda = 10 and -10. Shapes: none.
    Units: t in [0, 1], 0 clean.   Source: Lu et al. 2022 (DPM-Solver), section 4.1, with its
    end at t = 0.001.
    """

    td: Fraction = 0.0  # asymmetric time, in t: how far x runs ahead of what the network is told
    clean: Part = 1e-3  # the last time but 0

    def __call__(self, steps: int, schedule: Schedule) -> list[tuple[float, float]]:
        ends = _half_log_snr(schedule, torch.tensor([1.0, self.clean], dtype=torch.float64))
        share = torch.arange(1, steps, dtype=torch.float64) / max(1, steps - 1)
        inner = _times_of(schedule, torch.lerp(ends[0], ends[1], share))
        return ahead([1.0, *inner.tolist(), 0.0], self.td)


def _half_log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """log(alpha / sigma) at t, within -10 and 10."""
    level = schedule(t)
    return (level.alpha / level.sigma).log().clamp(-10, 10)


def _times_of(schedule: Schedule, ratio: Tensor) -> Tensor:
    """The t at which log(alpha / sigma) is this, by bisection: it falls with t."""
    low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
    for _ in range(60):  # to the last digit of float64
        middle = (low + high) / 2
        above = _half_log_snr(schedule, middle) > ratio
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high
