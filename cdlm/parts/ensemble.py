"""Several captioners in one voice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pooled(shares: Sequence[Tensor]) -> Tensor:
    """log of the mean p, where each tells log p of the same things; of one, what it tells.

    Shapes: all alike.   Source: Sutskever et al. 2014, arXiv 1409.3215, section 3.6 (an ensemble of
    first weights and orders of training).
    """
    if len(shares) == 1:
        return shares[0]
    return torch.stack(tuple(shares)).logsumexp(0) - math.log(len(shares))
