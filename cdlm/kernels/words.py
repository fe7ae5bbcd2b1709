"""A table of words, and what is worth knowing of it before the first question is asked."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor

LARGE = 1 << 20  # numbers of a table from which on bfloat16 may pay
CHUNK = 512  # words at a time where float64 or all pairs are needed
TILE = 256  # words, in which the table in half precision comes
WIDE = 256  # a width beyond this is cut into blocks
HALF = torch.float16
NOWHERE = -1e38  # the bias of a word that is none


@dataclass(frozen=True, eq=False)
class Halves:
    """scale (e_v - mean) in fp16, in whole tiles, and how far that is from the words themselves.

    Padding is words that no score comes near. Numbers are of the scaled table.
    """

    words: Tensor  # V' E', fp16
    bias: Tensor  # V', float32: -||scale (e_v - mean)||^2 / 2, summed in float64
    scale: float  # a power of two, so that fp16 neither overflows nor loses small numbers
    spread: float  # no smaller than the longest centred word
    lost: float  # no smaller than the greatest distance of a centred word from its fp16 form
    constant: float  # the largest |bias|

    @property
    def width(self) -> int:
        return self.words.shape[1]


@dataclass(frozen=True, eq=False)
class Coarse:
    """e_v - mean and its bias in bfloat16, and how far that may be from the words themselves."""

    words: Tensor  # V E
    bias: Tensor  # V
    lost: float  # no smaller than the greatest distance of a centred word from its bfloat16 form
    bias_lost: float  # the same of the biases


@dataclass(frozen=True, eq=False)
class WordTable:
    """The words, and what a search needs to know of them; the rest is found out when asked for.

    score_v(x) = x . e_v - ||e_v||^2 / 2 is greatest for the word nearest to x. `bias` is its second
    term. `radius` is no smaller than the longest ||e_v||: the margins of error rest on it.
    """

    words: Tensor  # V E, float32: the words as they are; every decision rests on these alone
    bias: Tensor  # V, float32
    radius: float
    coarse: Coarse | None = None  # on a CPU that multiplies bfloat16 faster than float32

    def __len__(self) -> int:
        return len(self.words)

    @property
    def width(self) -> int:
        return self.words.shape[1]

    @cached_property
    def mean(self) -> Tensor:
        """The words' mean, E, float32. Distances stay when it is taken from both sides."""
        return self.words.mean(0)

    @cached_property
    def spread(self) -> float:
        """No smaller than the greatest distance of a word from the mean."""
        middle = self.mean.double()
        parts = self.words.split(CHUNK)
        far = max(float(torch.linalg.vector_norm(p.double() - middle, dim=1).max()) for p in parts)
        return far * (1 + 2**-40)

    @cached_property
    def halves(self) -> Halves:
        """The words in half precision, for a scan by tensor cores."""
        return _halves(self)

    def half_gaps(self, ids: Tensor) -> Tensor:
        """Half of each word's distance to the nearest other word, rounded down. Shapes: N -> N.

        Whoever is nearer to a word than this has it for its nearest (Elkan 2003, lemma 1).
        """
        missing = ids.unique()
        missing = missing[self._half_gaps[missing] < 0]
        for some in missing.split(CHUNK):
            self._half_gaps[some] = _half_gaps(self, some)
        return self._half_gaps[ids]

    @cached_property
    def _half_gaps(self) -> Tensor:
        return torch.full_like(self.bias, -1.0)  # not asked for yet


def prepare_table(table: Tensor) -> WordTable:
    """A table V E made ready for many searches. It keeps a copy: later changes are not seen.

    Raises ValueError where the table is not a matrix, has no word, or is not finite.
    """
    found = look_over(table.detach().to(torch.float32, copy=True).contiguous())
    if table.is_cuda or table.numel() < LARGE or not _bfloat16_pays():
        return found
    return replace(found, coarse=_coarse(found))


def look_over(words: Tensor) -> WordTable:
    """The same without a copy, for a single search. Shape: V E, float32."""
    if words.ndim != 2 or not words.numel():
        form = " x ".join(map(str, words.shape)) or "a number"
        raise ValueError(f"a table of words is V x E, both at least 1; this one is {form}")
    norms = torch.linalg.vector_norm(words, dim=1)
    radius = float(norms.max())
    if not radius < torch.inf and not bool(words.isfinite().all()):
        row = int((~words.isfinite().all(1)).int().argmax())
        raise ValueError(f"word {row} of the table is not finite: nothing is near to it")
    slack = 1 + (words.shape[1] + 4) * 2.0**-23  # a norm is a sum of E rounded squares
    return WordTable(words=words, bias=-0.5 * norms.square(), radius=radius * slack)


@cache
def _bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware: tried once, for a few milliseconds."""
    fine = torch.ones(512, 128), torch.ones(128, 512)
    coarse = [it.to(torch.bfloat16) for it in fine]
    return 1.5 * _seconds(*coarse) < _seconds(*fine)


def _seconds(a: Tensor, b: Tensor) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


def _coarse(table: WordTable) -> Coarse:
    words = (table.words - table.mean).to(torch.bfloat16)
    bias = torch.empty(len(table), dtype=torch.bfloat16, device=words.device)
    lost = bias_lost = 0.0
    for start in range(0, len(table), CHUNK):
        rows = slice(start, start + CHUNK)
        centred = table.words[rows].double() - table.mean.double()
        exact = -0.5 * centred.square().sum(1)
        bias[rows] = exact.to(torch.bfloat16)
        rest = torch.linalg.vector_norm(centred - words[rows].double(), dim=1)
        lost = max(lost, float(rest.max()))
        bias_lost = max(bias_lost, float((exact - bias[rows].double()).abs().max()))
    slack = 1 + 2**-40
    return Coarse(words, bias, lost * slack, bias_lost * slack)


def _halves(table: WordTable) -> Halves:
    scale = 2.0 ** (4 - math.frexp(table.spread)[1]) if table.spread > 0 else 1.0
    padded = (-len(table) % TILE, _whole(table.width) - table.width)
    half = table.words.new_zeros((len(table) + padded[0], table.width + padded[1]), dtype=HALF)
    bias = table.words.new_full((len(half),), NOWHERE)
    lost = 0.0
    for start in range(0, len(table), CHUNK):
        rows = slice(start, min(start + CHUNK, len(table)))
        centred = (table.words[rows].double() - table.mean.double()) * scale
        half[rows, : table.width] = centred
        bias[rows] = -0.5 * centred.square().sum(1)
        rest = centred - half[rows, : table.width].double()
        lost = max(lost, float(torch.linalg.vector_norm(rest, dim=1).max()))
    slack = 1 + 2**-40
    spread = table.spread * scale
    return Halves(half, bias, scale, spread, lost * slack, spread**2 / 2 * slack)


def _whole(width: int) -> int:
    """The width in whole blocks: a power of two, or so many of 64."""
    if width > WIDE:
        return -(-width // 64) * 64
    return max(16, 1 << (width - 1).bit_length())


def _half_gaps(table: WordTable, ids: Tensor) -> Tensor:
    asked = table.words[ids]
    scores = torch.addmm(table.bias, asked, table.words.T)
    scores[torch.arange(len(ids), device=ids.device), ids] = -torch.inf
    error = (table.width + 8) * 2.0**-22 * table.radius**2
    squares = asked.double().square().sum(1) - 2 * scores.amax(1).double() - 2 * error
    return (squares.clamp(min=0).sqrt() / 2 * (1 - 2**-20)).float()
