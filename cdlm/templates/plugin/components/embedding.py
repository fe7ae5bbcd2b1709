"""Words at random places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.records import Dims


class Component(nn.Module):
    """Every word has a random vector that is never trained: what learnt ones have to beat.

    e_v = sqrt(E) u_v,  u_v uniform on the unit sphere;  logits(x)_v = x . e_v.
    Shapes: ids B L -> B L E; x B L E -> B L V.   The mean square of all coordinates is 1.
    """

    vectors: Tensor

    def __init__(self, *, dims: Dims):
        super().__init__()
        rows = F.normalize(torch.randn(dims.vocab, dims.width), dim=1)
        self.register_buffer("vectors", rows * dims.width**0.5)

    def table(self) -> Tensor:
        """V E."""
        return self.vectors

    def forward(self, ids: Tensor) -> Tensor:
        """The words' vectors."""
        return self.vectors[ids]

    def logits(self, x: Tensor) -> Tensor:
        """The scores of all words."""
        return x @ self.vectors.T
