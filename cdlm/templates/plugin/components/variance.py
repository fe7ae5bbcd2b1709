"""A variance that follows the time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cdlm.values import Above0


@dataclass(frozen=True, kw_only=True)
class Component:
    """Steps back are drawn freely at much noise, and as carefully as the posterior near the text.

    spread = t^power: 0 is the posterior's variance, 1 that of the forward step.
    Shapes: B L E.   Units: t in [0, 1], 0 clean.
    """

    power: Above0 = 1.0  # above 1 they grow careful sooner

    def __call__(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The spread of every number, the same for all of one caption."""
        spread = (t**self.power)[:, None, None].expand_as(x0_hat)
        return spread.to(x0_hat)
