"""A plain pre-norm transformer as the denoiser, of any size."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.parts.denoisers import require_equal_heads
from cdlm.parts.denoisers.attention import Cross, joined, split
from cdlm.records import Dims, Stream
from cdlm.values import Positive, Share


class Transformer(nn.Module):
    """Pre-norm layers with learned positions; nothing normalises what comes in.

    h <- h + positions;  h <- h + attention(norm(h));  h <- h + cross(norm(h), context), where the
    conditioning writes `context`;  h <- h + mlp(norm(h));  out = norm(h).
    Unlike `distilbert` it sees the noise level in the size of x_t.
    Shapes: B M H -> B M H.   Source: Vaswani et al. 2017; Xiong et al. 2020 (pre-norm).
    Raises CdlmError where the heads can't share `hidden`.
    """

    reads: ClassVar[set[str]] = {"tokens", "context"}

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
        h = stream.h + self.positions
        mask = stream.mask[:, None, None, :]
        for layer in self.layers:
            h = layer(h, mask, stream)
        return self.norm(h)


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

    def forward(self, h: Tensor, mask: Tensor, stream: Stream) -> Tensor:
        h = h + self.dropout(self._attend(self.norm_attention(h), mask))
        if self.cross is not None:
            h = h + self.dropout(self.cross(h, stream))
        inner = F.gelu(self.up(self.norm_mlp(h)), approximate="tanh")
        return h + self.dropout(self.down(inner))

    def _attend(self, h: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (split(x, self.heads) for x in self.qkv(h).chunk(3, -1))
        return self.mix(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))
