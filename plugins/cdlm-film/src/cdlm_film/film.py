"""Feature-wise linear modulation (FiLM) as a conditioning."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from cdlm.records import Condition, Dims, Stream


class Film(nn.Module):
    """The image scales and shifts every position of the sequence.

    h <- (1 + a) h + b,  [a, b] = W norm(mean_n feature_n), both 0 where the image is withheld.
    Shapes: B M H.   Source: Perez et al. 2018, eq. 1. W starts at 0: at first nothing is changed.
    """

    writes: ClassVar[set[str]] = set()
    extra = 0

    def __init__(self, *, dims: Dims):
        super().__init__()
        self.norm = nn.LayerNorm(dims.image_width)
        self.modulate = nn.Linear(dims.image_width, 2 * dims.hidden)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        """The stream, modulated where the image is given."""
        seen: Tensor = condition.keep[:, None].to(stream.h.dtype)
        a, b = (seen * self.modulate(self.norm(condition.features).mean(1))).chunk(2, dim=1)
        return replace(stream, h=stream.h * (1 + a[:, None]) + b[:, None])
