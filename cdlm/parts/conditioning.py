"""How time and image reach the network. Modes chain: each writes into the stream it is given."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from cdlm.records import Condition, Dims, Stream
from cdlm.values import Count


class ImageTokens(nn.Module):
    """Image features as vectors of the transformer's width; a learned stand-in where withheld.

    Features may come on any scale: each is normalised over C first, then projected, linearly or
    through a hidden layer of width `inner`. Shapes: B N C -> B N H.
    """

    def __init__(self, *, inner: int = 0, dims: Dims):
        super().__init__()
        self.norm = nn.LayerNorm(dims.image_width)
        self.project = _projection(dims.image_width, inner, dims.hidden)
        self.withheld = nn.Parameter(torch.zeros(dims.image_tokens, dims.hidden))

    def forward(self, condition: Condition) -> Tensor:
        tokens = self.project(self.norm(condition.features))
        return torch.where(condition.keep[:, None, None], tokens, self.withheld.to(tokens.dtype))


def _projection(width: int, inner: int, out: int) -> nn.Module:
    if not inner:
        return nn.Linear(width, out)
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, out))


class TimeAdd(nn.Module):
    """The noise level, added to every position of the sequence as it stands.

    h <- h + MLP(waves(t)),  waves(t) = [cos(1000 t w_k), sin(1000 t w_k)],  w_k = 10000^(-k/(H/2))
    Shapes: B M H.   Units: t in [0, 1].   Source: Ho et al. 2020, appendix B.
    """

    writes: ClassVar[set[str]] = {"tokens"}
    extra = 0

    def __init__(self, *, dims: Dims):
        super().__init__()
        half = dims.hidden // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("rates", rates, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * half, dims.hidden), nn.SiLU(), nn.Linear(dims.hidden, dims.hidden)
        )

    rates: Tensor

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        angle = 1000 * stream.t[:, None] * self.rates
        time = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))
        return replace(stream, h=stream.h + time[:, None])


class FeatureAdd(nn.Module):
    """The image feature, averaged over its tokens, added to every position as the time is.

    h <- h + mean_n f(norm(feature_n)),  f linear, or an MLP where `inner` is above 0.
    Shapes: B M H.   Source: Xu 2022 (CLIP-Diffusion-LM), section 3.2, fusion by addition.
    """

    writes: ClassVar[set[str]] = {"tokens"}
    extra = 0

    def __init__(self, *, inner: Count = 0, dims: Dims):  # width of f's hidden layer; 0: linear
        super().__init__()
        self.image = ImageTokens(inner=inner, dims=dims)

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        return replace(stream, h=stream.h + self.image(condition).mean(1, keepdim=True))


class ExtraToken(nn.Module):
    """Every image token becomes one extra token behind the caption.

    h <- [h + S_0, f(norm(feature)) + S_1]; S, if `segment`, tells text from image; f is linear, or
    an MLP where `inner` is above 0.
    Shapes: B M H -> B (M+N) H.   Source: Xu 2022 (CLIP-Diffusion-LM), section 3.2, concatenation.
    """

    writes: ClassVar[set[str]] = {"tokens"}

    def __init__(
        self,
        *,
        segment: bool = True,  # tell text and image tokens apart
        inner: Count = 0,  # width of f's hidden layer; 0: linear
        dims: Dims,
    ):
        super().__init__()
        self.extra = dims.image_tokens
        self.image = ImageTokens(inner=inner, dims=dims)
        self.segment = nn.Parameter(0.02 * torch.randn(2, dims.hidden)) if segment else None

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        h, image = stream.h, self.image(condition)
        if self.segment is not None:
            h, image = h + self.segment[0], image + self.segment[1]
        seen = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        return replace(
            stream, h=torch.cat([h, image.to(h.dtype)], 1), mask=torch.cat([stream.mask, seen], 1)
        )
