"""A lean towards words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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

    def __call__(self, x0_hat: Tensor, t: float, embedding: Embedding) -> Tensor:
        """The estimate, nearer to words."""
        table = embedding.table()
        nearest = table[torch.cdist(x0_hat.flatten(0, 1), table).argmin(1)].view_as(x0_hat)
        return x0_hat.lerp(nearest, self.share)
