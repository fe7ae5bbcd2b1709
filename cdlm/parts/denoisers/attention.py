"""What several transformers are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.records import Stream


class Cross(nn.Module):
    """Attention from the sequence to the stream's context, every token of which is heard.

    attention(norm(h), context),  norm(h) = h / rms(h) (1 + scale);  0 at first, so that a fresh
    layer passes h on. Keys and values of a context are made once for all steps of sampling.
    Shapes: h B M H, context B N H -> B M H.
    Source: Vaswani et al. 2017, section 3.2.3; Chen et al. 2023 (PixArt-alpha), section 2.3.
    """

    def __init__(self, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.scale = nn.Parameter(torch.zeros(hidden))
        self.q = nn.Linear(hidden, hidden, bias=False)
        self.kv = nn.Linear(hidden, 2 * hidden, bias=False)
        self.mix = nn.Linear(hidden, hidden, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, h: Tensor, stream: Stream) -> Tensor:
        context = stream.context
        assert context is not None, "the conditioning writes context, by dims.written"
        normed = F.rms_norm(h, h.shape[-1:]) * (1 + self.scale)
        q = split(self.q(normed), self.heads)
        k, v = stream.once(self, context, lambda: self._keys_and_values(context.to(h.dtype)))
        return self.mix(joined(F.scaled_dot_product_attention(q, k, v)))

    def _keys_and_values(self, context: Tensor) -> list[Tensor]:
        return [split(x, self.heads) for x in self.kv(context).chunk(2, -1)]


def split(x: Tensor, heads: int) -> Tensor:
    """B M H -> B heads M H/heads."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """B heads M H/heads -> B M H."""
    return x.transpose(1, 2).flatten(2)
