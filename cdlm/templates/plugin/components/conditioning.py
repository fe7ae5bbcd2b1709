"""A gate that the image opens."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from cdlm.records import Condition, Dims, Stream


class Component(nn.Module):
    """The image makes every coordinate of the sequence louder or softer.

    h <- 2 sigmoid(W norm(mean_n feature_n)) h;  h stays where the image is withheld.
    Shapes: B M H.   W starts at 0: at first nothing is changed.
    """

    writes: ClassVar[set[str]] = set()
    extra = 0

    def __init__(self, *, dims: Dims):
        super().__init__()
        self.norm = nn.LayerNorm(dims.image_width)
        self.gate = nn.Linear(dims.image_width, dims.hidden)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        """The stream with every position gated."""
        score: Tensor = self.gate(self.norm(condition.features).mean(1))
        gate = 2 * (score * condition.keep[:, None].to(score)).sigmoid()
        return replace(stream, h=stream.h * gate[:, None])
