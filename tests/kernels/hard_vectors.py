"""Vectors that are hard to round: near-ties, exact ties, twins, and numbers that are none."""

from __future__ import annotations

import torch
from torch import Tensor


def words(count: int, width: int, seed: int = 0) -> Tensor:
    """A table off the origin, in which one word in seven is a twin of another."""
    rng = torch.Generator().manual_seed(seed)
    table = torch.randn(count, width, generator=rng) + 0.5
    twins = torch.randperm(count, generator=rng)[: count // 7]
    table[twins] = table[torch.randint(count, (len(twins),), generator=rng)]
    return table


def near(table: Tensor, count: int, seed: int = 1) -> Tensor:
    """Rows near one word, half way between two, on a word, and far from all: a quarter each."""
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randint(len(table), (2, count), generator=rng)
    noise = torch.randn(count, table.shape[1], generator=rng)
    kinds = (table[a] + 0.3 * noise, (table[a] + table[b]) / 2, table[a], 2 * noise)
    which = torch.arange(count) % 4
    return torch.stack(kinds)[which, torch.arange(count)].contiguous()


def not_finite(x: Tensor) -> Tensor:
    """The same with rows of NaN, of infinities of both signs, and of huge and of tiny numbers."""
    x = x.clone()
    x[0, 0] = torch.nan
    x[1, -1] = torch.inf
    x[2] = -torch.inf
    x[3] = 1e25
    x[4] = 1e-30
    return x
