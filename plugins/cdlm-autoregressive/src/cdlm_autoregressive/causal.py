"""The transformer of cdlm, of the same weights, in which no word hears of a later one."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.parts.denoisers import require_equal_heads
from cdlm.parts.denoisers.attention import Cross, joined, split
from cdlm.records import Dims, Stream
from cdlm.values import Positive, Share

Past: TypeAlias = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, B heads M' H/heads each, M' the places that it has read."""


class Causal(nn.Module):
    """The denoiser `transformer` with causal attention, and a memory of what it has read.

    A caption's place hears extra tokens and the places up to itself; extra tokens hear each other;
    context, where the conditioning writes it, is heard by all.
    Layers, widths and the number of weights are those of `transformer`.
    Shapes: B M H -> B M H.   Source: Vaswani et al. 2017; Radford et al. 2019 (pre-norm); Dong et
    al. 2019 (UniLM), section 2.3: a prefix that is heard by all.
    Raises CdlmError where the heads can't share `hidden`.
    """

    reads: ClassVar[set[str]] = {"tokens", "context"}
    provides: ClassVar[set[str]] = {"causal"}

    def __init__(
        self,
        *,
        layers: Positive = 4,
        heads: Positive = 4,  # must divide the model's `hidden`
        dropout: Share = 0.0,
        dims: Dims,
    ):
        super().__init__()
        require_equal_heads(heads, dims)
        self.positions = nn.Parameter(0.02 * torch.randn(dims.seen, dims.hidden))
        self.layers = nn.ModuleList(_Layer(heads, dropout, dims) for _ in range(layers))
        self.norm = nn.LayerNorm(dims.hidden)

    def forward(self, stream: Stream) -> Tensor:
        h, mask = stream.h + self.positions, _heard(stream)[:, None]
        for layer in self.layers:
            h, _ = layer(h, mask, None, stream)
        return self.norm(h)

    def extend(self, stream: Stream, place: int, past: Past | None) -> tuple[Tensor, Past]:
        """What `forward` says at one place of the caption, after `past`, all places before it.

        Of the stream only this place is looked at; at first, with no past, the extra tokens too.
        -> B 1 H, and the past with this place.
        """
        read = [*_extra(stream), *range(stream.text.start, stream.text.start + place + 1)]
        new = read if past is None else read[-1:]
        h = stream.h[:, new] + self.positions[new]
        mask = _heard(stream)[:, new][:, None, :, read]
        memory: Past = []
        for i, layer in enumerate(self.layers):
            h, kept = layer(h, mask, past and past[i], stream)
            memory.append(kept)
        return self.norm(h[:, -1:]), memory


def _extra(stream: Stream) -> list[int]:
    """The places that are not the caption's."""
    text = range(stream.text.start, stream.text.stop)
    return [place for place in range(stream.h.shape[1]) if place not in text]


def _heard(stream: Stream) -> Tensor:
    """Who (rows) hears whom (columns). -> B M M, bool."""
    places = torch.arange(stream.h.shape[1], device=stream.h.device)
    text = (places >= stream.text.start) & (places < stream.text.stop)
    earlier = text[:, None] & (places <= places[:, None])
    return (~text | earlier) & stream.mask[:, None]


class _Layer(nn.Module):
    def __init__(self, heads: int, dropout: float, dims: Dims):
        super().__init__()
        hidden = dims.hidden
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.mix = nn.Linear(hidden, hidden, bias=False)
        self.cross = Cross(heads, hidden) if "context" in dims.written else None
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(
        self, h: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None, stream: Stream
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """-> B M H; keys and values, those of `past` before its own."""
        normed = self.norm_attention(h)
        q, k, v = (split(x, self.heads) for x in self.qkv(normed).chunk(3, -1))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        h = h + self.dropout(self.mix(joined(heard)))
        if self.cross is not None:
            h = h + self.dropout(self.cross(h, stream))
        inner = F.gelu(self.up(self.norm_mlp(h)), approximate="tanh")
        return h + self.dropout(self.down(inner)), (k, v)
