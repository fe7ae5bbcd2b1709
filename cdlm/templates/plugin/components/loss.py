"""A loss that outliers do not rule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cdlm.records import Guess
from cdlm.values import Above0, NonNegative


@dataclass(frozen=True, kw_only=True)
class Component:
    """Squared error where it is small, absolute error where it is large, without a corner.

    mean over positions and E of sqrt(d^2 + c^2) - c,  d = got - wanted.   Shapes: -> B.
    Source: Song & Dhariwal 2023 (Improved techniques for consistency training), eq. 8.
    """

    weight: NonNegative = 1.0
    c: Above0 = 0.1  # where the one turns into the other

    def __call__(self, guess: Guess) -> Tensor:
        """One number for each caption, over the positions that count."""
        square = (guess.got - guess.wanted).square()
        # Not sqrt(d^2 + c^2) - c, which rounding makes negative for small d.
        error = (square / ((square + self.c**2).sqrt() + self.c)).mean(-1)
        return (error * guess.mask).sum(1) / guess.mask.sum(1).clamp(min=1)
