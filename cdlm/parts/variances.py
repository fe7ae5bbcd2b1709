"""How freely a step back is drawn, for samplers that draw."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cdlm.values import Fraction


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The same everywhere: the posterior's variance, the forward step's, or in between.

    log variance = (1 - spread) log posterior + spread log forward.   Shapes: -> a scalar.
    Source: Ho et al. 2020, section 3.2: its two choices are 0 and 1.
    """

    spread: Fraction = 0.0  # 0: of q(x_s | x_t, x0); 1: of q(x_t | x_s)

    def __call__(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t.new_tensor(self.spread)
