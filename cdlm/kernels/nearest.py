"""Rounding to the nearest word."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 4096  # rows at a time, so that no N x V matrix is ever whole in memory


def nearest_token(x: Tensor, table: Tensor) -> Tensor:
    """The word nearest to each row.

    argmin_v ||x_n - e_v||^2 = argmax_v (x_n . e_v - ||e_v||^2 / 2).

    Shapes: x N E, table V E -> ids N, int64. Computed in float32 (float64 for float64 inputs).
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    words = table.to(wide)
    bias = -0.5 * words.square().sum(1)
    rows = (torch.addmm(bias, part.to(wide), words.T).argmax(1) for part in x.split(ROWS))
    return torch.cat(list(rows))
