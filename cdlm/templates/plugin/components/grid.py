"""A grid that is fine at both ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from cdlm.protocols import Schedule


@dataclass(frozen=True, kw_only=True)
class Component:
    """Short steps at pure noise and near the text, long ones in between.

    t_i = (1 + cos(pi i / steps)) / 2,  i = 0 ... steps.   Units: t in [0, 1], 0 clean.
    """

    def __call__(self, steps: int, schedule: Schedule) -> list[tuple[float, float]]:
        """A pair (t, s) for each step."""
        times = [(1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps + 1)]
        return list(pairwise(times))
