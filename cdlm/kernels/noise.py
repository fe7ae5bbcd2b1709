"""Gaussian noise that depends on a seed and a place alone, the same on a CPU as in a Triton kernel.

Philox4x32-10 (Salmon et al. 2011) keyed by the seed, with the place of the number as its counter,
then Box-Muller: what `triton.language.randn` draws, up to float32's rounding of log and cos.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOW = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10


def noise(seed: Tensor, shape: torch.Size) -> Tensor:
    """Standard normal numbers, float32, numbered row by row. Shapes: seed 1, int64 -> `shape`."""
    place = torch.arange(shape.numel(), device=seed.device)
    zero = torch.zeros_like(place)
    first, second = _philox((place & LOW, zero, zero, zero), (seed & LOW, (seed >> 32) & LOW))
    length = (-2 * _uniform(first).clamp(min=1e-7).log()).sqrt()
    return (length * (2 * math.pi * _uniform(second)).cos()).view(shape)


def _philox(c: tuple[Tensor, ...], k: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Ten rounds; the first two of the four words that come out."""
    c0, c1, c2, c3 = c
    for i in range(ROUNDS):
        keys = [(key + i * step) & LOW for key, step in zip(k, WEYL, strict=True)]
        up, down = c2 * MULTIPLIERS[1], c0 * MULTIPLIERS[0]  # wrapped to 64 bits, which is enough
        c0, c2 = _high(up) ^ c1 ^ keys[0], _high(down) ^ c3 ^ keys[1]
        c1, c3 = up & LOW, down & LOW
    return c0, c1


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & LOW


def _uniform(word: Tensor) -> Tensor:
    """In [0, 1): 32 bits taken as a signed number, its size in steps of about 2^-31."""
    signed = torch.where(word > LOW // 2, LOW - word, word)
    return signed.to(torch.float32) * 4.6566127342e-10
