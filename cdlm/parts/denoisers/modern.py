"""A transformer as language models have it now, as the denoiser."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.errors import CdlmError
from cdlm.parts.denoisers import require_equal_heads
from cdlm.parts.denoisers.attention import Cross, joined, split
from cdlm.records import Dims, Stream
from cdlm.values import Positive, Share


class Modern(nn.Module):
    """Pre-norm layers with RMSNorm, rotary positions and SwiGLU; adaptive norms, cross-attention.

    h <- h + g1 attention(norm1(h));  h <- h + cross(norm(h), context);  h <- h + g2 mlp(norm2(h)),
    norm(h) = h / rms(h) (1 + scale) + shift. Where the recipe's conditioning writes `time`, every
    scale, shift and gate g is a linear layer of it, at first 0, so that a fresh network passes h
    on; else scales are learned, shifts are 0 and gates 1. Cross-attention is there where the
    conditioning writes `context`; what it adds is at first 0 as well.
    Shapes: B M H -> B M H.   Source: Touvron et al. 2023 (LLaMA), section 2.2; Su et al. 2021
    (rotary); Shazeer 2020 (SwiGLU); Peebles & Xie 2023 (adaLN-zero); Chen et al. 2023
    (PixArt-alpha), section 2.3 (cross-attention from 0).
    Raises CdlmError where the heads can't share `hidden`, or have an odd width.
    """

    reads: ClassVar[set[str]] = {"tokens", "time", "context"}

    def __init__(
        self,
        *,
        layers: Positive = 4,
        heads: Positive = 4,  # must divide the model's `hidden` into even widths
        dropout: Share = 0.0,
        dims: Dims,
    ):
        super().__init__()
        require_equal_heads(heads, dims)
        if dims.hidden // heads % 2:
            raise CdlmError(
                f"denoiser.heads: {heads} heads of {dims.hidden // heads} numbers; rotary "
                "positions turn pairs of them\n    make model.hidden / denoiser.heads even"
            )
        self.layers = nn.ModuleList(_Layer(heads, dropout, dims) for _ in range(layers))
        self.norm = _Norm(dims, gates=False)
        cos, sin = _turns(dims.seen, dims.hidden // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    cos: Tensor
    sin: Tensor

    def forward(self, stream: Stream) -> Tensor:
        length = stream.h.shape[1]
        used = _used(stream.mask)
        h, mask = stream.h[:, :used], stream.mask[:, None, None, :used]
        for layer in self.layers:
            h = layer(h, mask, stream, (self.cos[:used], self.sin[:used]))
        return F.pad(self.norm(h, stream.time)[0], (0, 0, 0, length - used))


def _used(mask: Tensor) -> int:
    """Places up to the last one that any caption has, for what is behind them nobody hears.

    All of them on a GPU, which would have to be waited for, and where it is compiled, for one
    shape. Shapes: mask B M.
    """
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return mask.shape[1]
    return int(mask.any(0).nonzero().max()) + 1


class _Norm(nn.Module):
    """RMSNorm, adaptive where there is a time vector; and the gate of what follows."""

    def __init__(self, dims: Dims, gates: bool = True):
        super().__init__()
        self.adaptive = "time" in dims.written
        if self.adaptive:
            self.modulation = nn.Linear(dims.hidden, (3 if gates else 2) * dims.hidden)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
        else:
            self.scale = nn.Parameter(torch.zeros(dims.hidden))

    def forward(self, h: Tensor, time: Tensor | None) -> tuple[Tensor, Tensor | float]:
        plain = F.rms_norm(h, h.shape[-1:])
        if not self.adaptive:
            return plain * (1 + self.scale), 1.0
        assert time is not None, "the conditioning writes time, by dims.written"
        scale, shift, *gate = self.modulation(F.silu(time))[:, None].split(h.shape[-1], -1)
        return plain * (1 + scale) + shift, gate[0] if gate else 1.0


class _Layer(nn.Module):
    def __init__(self, heads: int, dropout: float, dims: Dims):
        super().__init__()
        hidden, inner = dims.hidden, 8 * dims.hidden // 3
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm_attention, self.norm_mlp = _Norm(dims), _Norm(dims)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.mix = nn.Linear(hidden, hidden, bias=False)
        self.cross = Cross(heads, hidden) if "context" in dims.written else None
        self.up = nn.Linear(hidden, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(
        self,
        h: Tensor,
        mask: Tensor,
        stream: Stream,
        turns: tuple[Tensor, Tensor],
    ) -> Tensor:
        normed, gate = self.norm_attention(h, stream.time)
        h = h + gate * self.dropout(self._attend(normed, mask, turns))
        if self.cross is not None:
            h = h + self.dropout(self.cross(h, stream))
        normed, gate = self.norm_mlp(h, stream.time)
        gated, inner = self.up(normed).chunk(2, -1)
        return h + gate * self.dropout(self.down(F.silu(gated) * inner))

    def _attend(self, h: Tensor, mask: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (split(x, self.heads) for x in self.qkv(h).chunk(3, -1))
        q, k = _turned(q, *turns), _turned(k, *turns)
        return self.mix(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))


def _turns(length: int, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position times 10000^(-2i / width). -> M width/2 each."""
    rates = 10_000 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(length)[:, None] * rates
    return angle.cos(), angle.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first and the second half of each head's numbers as pairs, turned by their position."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)
