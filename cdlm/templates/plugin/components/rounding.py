"""A lean towards words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cdlm.protocols import Embedding
from cdlm.values import Fraction


@dataclass(frozen=True, kw_only=True)
class Component:
    """Every estimated vector moves a part of the way to its nearest word.

    x0_hat -> (1 - share) x0_hat + share e_v,  v = argmin ||x0_hat - e_v||.   Shapes: B L E.
    share 1 is the clamping of Li et al. 2022 (Diffusion-LM), section 4.3; share 0 is nothing.
    """

    share: Fraction = 0.5

    def __call__(
        self, x0_hat: Tensor, t: float, embedding: Embedding, nearest: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The estimate, nearer to words."""
        return x0_hat.lerp(nearest(x0_hat), self.share)
