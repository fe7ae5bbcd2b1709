"""A schedule of one formula."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cdlm.records import Level
from cdlm.values import Above0, Part


@dataclass(frozen=True, kw_only=True)
class Component:
    """The signal falls as a power of t: in a straight line, unless told otherwise.

    alpha(t) = 1 - (1 - floor) t^power,  sigma^2 = 1 - alpha^2.
    Shapes: t (*b) -> alpha, sigma (*b).   Units: t in [0, 1], 0 clean.
    """

    power: Above0 = 1.0  # above 1 the words stay longer
    floor: Part = 1e-3  # alpha at t = 1: predictions of noise stay decodable there

    def __call__(self, t: Tensor) -> Level:
        """The level at t."""
        alpha = 1 - (1 - self.floor) * t**self.power
        return Level(alpha, (1 - alpha.square()).sqrt())
