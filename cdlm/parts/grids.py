"""The times that sampling visits. Each is a rule for N + 1 times, from 1 to 0.

All take `td`, asymmetric time: x is brought td further towards text than the next step takes it to
be, so that the network always believes x noisier than it is (Chen et al. 2022, Bit Diffusion,
algorithm 2, whose td counts steps: divide it by the number of steps). td = 0 is ordinary sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cdlm.protocols import Schedule
from cdlm.values import Fraction


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
