"""A plain pre-norm transformer as the denoiser, of any size."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlm.parts.denoisers import require_equal_heads
from cdlm.records import Dims, Stream
from cdlm.values import Positive, Share


class Transformer(nn.Module):
    """Pre-norm layers with learned positions; nothing normalises what comes in.

    h <- h + positions;  h <- h + attention(norm(h));  h <- h + mlp(norm(h));  out = norm(h).
    Unlike `distilbert` it sees the noise level in the size of x_t.
    Shapes: B M H -> B M H.   Source: Vaswani et al. 2017; Xiong et al. 2020 (pre-norm).
    Raises CdlmError where the heads can't share `hidden`.
    """

    reads: ClassVar[set[str]] = {"tokens"}

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
        self.layers = nn.ModuleList(_Layer(dims.hidden, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dims.hidden)

    def forward(self, stream: Stream) -> Tensor:
        h = stream.h + self.positions
        mask = stream.mask[:, None, None, :]
        for layer in self.layers:
            h = layer(h, mask)
        return self.norm(h)


class _Layer(nn.Module):
    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.mix = nn.Linear(hidden, hidden, bias=False)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        h = h + self.dropout(self._attend(self.norm_attention(h), mask))
        inner = F.gelu(self.up(self.norm_mlp(h)), approximate="tanh")
        return h + self.dropout(self.down(inner))

    def _attend(self, h: Tensor, mask: Tensor) -> Tensor:
        b, m, width = h.shape
        q, k, v = self.qkv(h).view(b, m, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.mix(out.transpose(1, 2).reshape(b, m, width))
