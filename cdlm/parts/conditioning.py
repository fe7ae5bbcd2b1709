"""How time and image reach the network. Modes chain: each writes into the stream it is given."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.records import Condition, Dims, Stream
from cdlm.values import Count, Share


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
        return condition.once(self, condition.features, lambda: self._tokens(condition))

    def _tokens(self, condition: Condition) -> Tensor:
        tokens = self.project(self.norm(condition.features))
        return torch.where(condition.keep[:, None, None], tokens, self.withheld.to(tokens.dtype))


def _projection(width: int, inner: int, out: int) -> nn.Module:
    if not inner:
        return nn.Linear(width, out)
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, out))


class TimeVector(nn.Module):
    """The noise level as a vector of the transformer's width.

    MLP([cos(1000 t w_k), sin(1000 t w_k)]),  w_k = 10000^(-k/(H/2)).   Shapes: t B -> B H.
    Source: Ho et al. 2020, appendix B.
    """

    rates: Tensor

    def __init__(self, dims: Dims):
        super().__init__()
        half = dims.hidden // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("rates", rates, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * half, dims.hidden), nn.SiLU(), nn.Linear(dims.hidden, dims.hidden)
        )

    def forward(self, t: Tensor) -> Tensor:
        angle = 1000 * t[:, None] * self.rates
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


def _behind(stream: Stream, tokens: Tensor, seen: Tensor) -> Stream:
    """The sequence with more tokens behind it. Shapes: tokens B N H, seen B N."""
    h = torch.cat([stream.h, tokens.to(stream.h.dtype)], 1)
    return replace(stream, h=h, mask=torch.cat([stream.mask, seen], 1))


def _all_seen(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


# ------------------------------------------------------------------------------------------ time


class TimeAdd(nn.Module):
    """The noise level, added to every position of the sequence as it stands.

    h <- h + time(t),  time(t) = MLP of sines and cosines of t.
    Shapes: B M H.   Units: t in [0, 1].   Source: Ho et al. 2020, appendix B.
    """

    needs: ClassVar[set[str]] = {"times"}
    writes: ClassVar[set[str]] = set()
    extra = 0

    def __init__(self, *, dims: Dims):
        super().__init__()
        self.time = TimeVector(dims)

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        return replace(stream, h=stream.h + self.time(stream.t)[:, None])


class TimeToken(nn.Module):
    """The noise level as one extra token behind the sequence as it stands.

    h <- [h, time(t)].   Shapes: B M H -> B (M+1) H.   Units: t in [0, 1].
    Source: Bao et al. 2023 (U-ViT), section 3: "all as tokens".
    """

    needs: ClassVar[set[str]] = {"times"}
    writes: ClassVar[set[str]] = {"tokens"}
    extra = 1

    def __init__(self, *, dims: Dims):
        super().__init__()
        self.time = TimeVector(dims)

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        token = self.time(stream.t)[:, None]
        return _behind(stream, token, _all_seen(token))


class TimeNorm(nn.Module):
    """The noise level for the denoiser's adaptive norms.

    time <- time + time(t), from which each norm takes its scale, shift and gate.
    Shapes: B H.   Units: t in [0, 1].   Source: Peebles & Xie 2023 (DiT), section 3.2, adaLN.
    """

    needs: ClassVar[set[str]] = {"times"}
    writes: ClassVar[set[str]] = {"time"}
    extra = 0

    def __init__(self, *, dims: Dims):
        super().__init__()
        self.time = TimeVector(dims)

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        return _modulated(stream, self.time(stream.t))


def _modulated(stream: Stream, vector: Tensor) -> Stream:
    """`time` with one more vector in it. Shapes: B H."""
    return replace(stream, time=vector if stream.time is None else stream.time + vector)


# ----------------------------------------------------------------------------------------- image


class FeatureAdd(nn.Module):
    """The image feature, averaged over its tokens, added to every position as the time is.

    h <- h + mean_n f(norm(feature_n)),  f linear, or an MLP where `inner` is above 0.
    Shapes: B M H.   Source: Xu 2022 (CLIP-Diffusion-LM), section 5.5, addition.
    """

    writes: ClassVar[set[str]] = set()
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
    Shapes: B M H -> B (M+N) H.   Source: Xu 2022 (CLIP-Diffusion-LM), section 5.5, concatenation.
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
        return _behind(replace(stream, h=h), image, _all_seen(image))


class FeatureElementwise(nn.Module):
    """The image feature through one linear layer onto the whole caption, and added elementwise.

    h_l <- h_l + W_l mean_n norm(feature_n) + b_l: every position has its own part of the layer.
    Shapes: B M H; W is L x H x C.   Source: the lab notes that cdlm grew from, "elementwise add".
    """

    writes: ClassVar[set[str]] = set()
    extra = 0

    def __init__(self, *, dims: Dims):
        super().__init__()
        self.norm = nn.LayerNorm(dims.image_width)
        self.project = nn.Linear(dims.image_width, dims.length * dims.hidden)
        self.withheld = nn.Parameter(torch.zeros(dims.length, dims.hidden))

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        added = condition.once(self, condition.features, lambda: self._added(condition))
        before, behind = stream.text.start, stream.h.shape[1] - stream.text.stop
        return replace(stream, h=stream.h + F.pad(added, (0, 0, before, behind)))

    def _added(self, condition: Condition) -> Tensor:
        added = self.project(self.norm(condition.features).mean(1))
        added = added.unflatten(1, self.withheld.shape)
        return torch.where(condition.keep[:, None, None], added, self.withheld.to(added.dtype))


class FeatureNorm(nn.Module):
    """The image feature, averaged over its tokens, for the denoiser's adaptive norms.

    time <- time + mean_n f(norm(feature_n)),  f linear, or an MLP where `inner` is above 0.
    Shapes: B H.   Source: Peebles & Xie 2023 (DiT), section 3.2: classes in adaLN, as here images.
    """

    writes: ClassVar[set[str]] = {"time"}
    extra = 0

    def __init__(self, *, inner: Count = 0, dims: Dims):  # width of f's hidden layer; 0: linear
        super().__init__()
        self.image = ImageTokens(inner=inner, dims=dims)

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        return _modulated(stream, self.image(condition).mean(1))


class CrossAttention(nn.Module):
    """The image tokens beside the sequence, for the denoiser's cross-attention.

    context <- [context, f(norm(feature))],  f linear, or an MLP where `inner` is above 0.
    Shapes: B N H.   Source: Rombach et al. 2022 (latent diffusion), section 3.3.
    """

    writes: ClassVar[set[str]] = {"context"}
    extra = 0

    def __init__(self, *, inner: Count = 0, dims: Dims):  # width of f's hidden layer; 0: linear
        super().__init__()
        self.image = ImageTokens(inner=inner, dims=dims)

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        tokens = self.image(condition)
        if stream.context is not None:
            tokens = torch.cat([stream.context, tokens], 1)
        return replace(stream, context=tokens)


class TextToken(nn.Module):
    """The caption's own text feature as an extra token; nobody attends to it where it is hidden.

    h <- [h, f(norm(text)) + S],  f linear, S a learned segment. While training a share `drop` of
    the captions goes without it, and when sampling all do, for there is no caption yet; then it is
    masked, or the image's first token, its pooled feature, stands in for it, as the two share a
    space. Where the image is withheld, both are.
    Shapes: B M H -> B (M+1) H.
    Source: Xu 2022 (CLIP-Diffusion-LM), sections 4 and 5.1: [x_t, image, text].
    """

    needs: ClassVar[set[str]] = {"texts"}
    writes: ClassVar[set[str]] = {"tokens"}
    extra = 1

    def __init__(
        self,
        *,
        drop: Share = 0.5,  # share of training captions whose text feature is hidden
        sampling: Literal["hidden", "image"] = "hidden",  # what stands there without a caption
        dims: Dims,
    ):
        super().__init__()
        self.drop, self.sampling = drop, sampling
        self.norm = nn.LayerNorm(dims.image_width)
        self.project = nn.Linear(dims.image_width, dims.hidden)
        self.segment = nn.Parameter(0.02 * torch.randn(dims.hidden))

    def forward(self, stream: Stream, condition: Condition) -> Stream:
        text, seen = condition.text, condition.keep
        if text is None:
            text = condition.features[:, :1]
            seen = seen & (self.sampling == "image")
        elif self.training:
            seen = seen & (torch.rand(len(seen), device=seen.device) >= self.drop)
        token = self.project(self.norm(text)) + self.segment
        token = torch.where(seen[:, None, None], token, torch.zeros_like(token))
        return _behind(stream, token, seen[:, None])
