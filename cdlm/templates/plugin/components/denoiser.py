"""A denoiser without attention."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cdlm.records import Dims, Stream
from cdlm.values import Positive


class Component(nn.Module):
    """Every position hears its own vector and the mean of all: what attention has to beat.

    h <- h + MLP(norm([h_m, mean_m h_m])), so many times; positions have learnt vectors.
    Shapes: B M H.   Source: Zaheer et al. 2017 (Deep Sets), eq. 4, with residual layers.
    """

    reads: ClassVar[set[str]] = {"tokens"}

    def __init__(self, *, layers: Positive = 3, dims: Dims):  # layers one after the other
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(dims.seen, dims.hidden))
        self.layers = nn.ModuleList(_layer(dims.hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(dims.hidden)

    def forward(self, stream: Stream) -> Tensor:
        """Positions outside the mask are left out of the mean."""
        h, seen = stream.h + self.places, stream.mask[..., None].to(stream.h)
        for layer in self.layers:
            mean = (h * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1)
            h = h + layer(torch.cat([h, mean.expand_as(h)], dim=-1))
        return self.norm(h)


def _layer(width: int) -> nn.Module:
    inner = 4 * width
    return nn.Sequential(
        nn.LayerNorm(2 * width), nn.Linear(2 * width, inner), nn.GELU(), nn.Linear(inner, width)
    )
