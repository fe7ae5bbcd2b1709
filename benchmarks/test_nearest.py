"""Rounding to the nearest word: ways to do it, raced on named shapes.

pytest benchmarks --benchmark-only --benchmark-group-by=param:shape
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cdlm.kernels.nearest import nearest_token

SHAPES = {  # rows, words, width
    "drawn scenes, 64 captions": (64 * 20, 45, 16),
    "Flickr8k, 32 captions": (32 * 24, 2_600, 64),
    "BERT's words, 32 captions": (32 * 16, 30_522, 128),
}


def whole_distances(x: Tensor, table: Tensor) -> Tensor:
    """All squared distances in one matrix, clamped at 0, then the least: Diffusion-LM's way."""
    far = x.square().sum(1, keepdim=True) - 2 * x @ table.T + table.square().sum(1)
    return far.clamp(min=0).topk(1, dim=1, largest=False).indices[:, 0]


PROVIDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cdlm": nearest_token,
    "whole distances": whole_distances,
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_nearest(benchmark, shape: str, provider: str) -> None:
    benchmark.group = shape
    rows, words, width = SHAPES[shape]
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(words, width, generator=rng)
    x = table[torch.randint(words, (rows,), generator=rng)]
    x = x + 0.5 * torch.randn(rows, width, generator=rng)
    benchmark.extra_info.update(rows=rows, words=words, width=width, dtype="float32", device="cpu")
    ids = benchmark(PROVIDERS[provider], x, table)
    assert torch.equal(ids, nearest_token(x.double(), table.double()))
