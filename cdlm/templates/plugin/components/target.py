"""The straight way from words to noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cdlm.protocols import Schedule
from cdlm.records import Noised


@dataclass(frozen=True, kw_only=True)
class Component:
    """The network says how the noise differs from the words.

    y = eps - x0;  x0 = (x_t - sigma y) / (alpha + sigma).   Shapes: B L E.
    alpha + sigma is at least 1, so no error is ever made larger.
    Source: Liu et al. 2023 (Rectified flow), eq. 1, on the path of the recipe's schedule.
    """

    def encode(self, noised: Noised, schedule: Schedule) -> Tensor:
        """The right answer."""
        return noised.eps - noised.x0

    def decode(self, y: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """The x0 that an answer implies."""
        level = schedule(t).over(x_t)
        return (x_t - level.sigma * y) / (level.alpha + level.sigma)
