"""What is raced on: named shapes, vectors to round, their exact tokens, and denoising trajectories.

Letters here: N rows of width E are each rounded to the nearest of V words.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import torch
from torch import Generator, Tensor

SMALL = os.environ.get("CDLM_BENCH") == "small"
"""Whether everything is run at tiny shapes, to see that it runs: timings then mean nothing."""

WIDTHS = (16, 64, 128, 768)
BERT = 30_522  # words of BERT's vocabulary


@dataclass(frozen=True)
class Shape:
    """N rows, V words, width E, on a kind of device."""

    device: str  # "cpu" or "cuda"
    rows: int
    words: int
    width: int

    def __str__(self) -> str:
        return f"{self.device}, N={self.rows:,}, V={self.words:,}, E={self.width}"

    @property
    def id(self) -> str:
        return f"{self.device}-N{self.rows}-V{self.words}-E{self.width}"


def _shapes() -> list[Shape]:
    if SMALL:
        return [Shape("cpu", 48, 45, 16), Shape("cpu", 64, 700, 64), Shape("cuda", 64, 700, 64)]
    real = [
        Shape("cpu", 64 * 18, 45, 16),  # the demo's words, 64 captions
        Shape("cpu", 32 * 24, 2_600, 64),  # Flickr8k's words, 32 captions
    ]
    cpu = [Shape("cpu", 512, BERT, width) for width in WIDTHS]
    gpu = [Shape("cuda", n, BERT, width) for n in (2_048, 8_192, 65_536) for width in WIDTHS]
    return [*real, *cpu, *gpu]


SHAPES = _shapes()


@dataclass(frozen=True, eq=False)
class Problem:
    """Vectors to round and the words. Shapes: x N E, table V E, float32."""

    x: Tensor
    table: Tensor

    @cached_property
    def wanted(self) -> Tensor:
        """The exact tokens, N."""
        return exact_tokens(self.x, self.table)

    def wrong(self, ids: Tensor) -> int:
        """How many of these tokens are not the exact ones."""
        return int((ids.long() != self.wanted).sum())


@lru_cache(maxsize=1)
def problem(shape: Shape) -> Problem:
    """Vectors from pure noise to plain words, as a denoiser gives them, with 1 word in 100 double.

    x = alpha e + sqrt(1 - alpha^2) z,  alpha uniform in [0, 1],  e a word,  z ~ N(0, 1).
    """
    rng = Generator(shape.device).manual_seed(0)
    table = words(shape, rng)
    return Problem(vectors(shape.rows, table, rng), table)


def words(shape: Shape, rng: Generator) -> Tensor:
    """A table V E from N(0, 1); 1 row in 100 repeats another."""
    table = torch.randn(shape.words, shape.width, generator=rng, device=rng.device)
    some = torch.randint(shape.words, (2, shape.words // 100), generator=rng, device=rng.device)
    table[some[0]] = table[some[1]]
    return table


def vectors(rows: int, table: Tensor, rng: Generator) -> Tensor:
    """Noisy words, as `problem` says. -> rows E."""
    near = table[torch.randint(len(table), (rows,), generator=rng, device=rng.device)]
    alpha = torch.rand(rows, 1, generator=rng, device=rng.device)
    noise = torch.randn(near.shape, generator=rng, device=rng.device)
    return alpha * near + (1 - alpha.square()).sqrt() * noise


def undecided(rows: int, table: Tensor, rng: Generator) -> Tensor:
    """Vectors as near to one word as to another, up to rounding in float32. -> rows E."""
    pair = torch.randint(len(table), (2, rows), generator=rng, device=rng.device)
    return (table[pair[0]] + table[pair[1]]) / 2


# --------------------------------------------------------------------------------- exact tokens


def exact_tokens(x: Tensor, table: Tensor) -> Tensor:
    """The nearest word in exact arithmetic, the lowest id among equals. Shapes: N E, V E -> N.

    One pass leaves the words that rounding can't tell from the best; float64 leaves fewer, and
    fractions decide among the rest. Independent of cdlm's own kernels.
    """
    wide = torch.float64 if x.is_cuda else torch.float32  # the CPU is twice as quick in float32
    bias = -0.5 * table.double().square().sum(1)
    longest = float(table.double().norm(dim=1).max())
    many = 4096 if x.is_cuda else 512
    turned = table.to(wide).T
    return torch.cat(
        [_exact_part(part, table, turned, bias, longest) for part in x.float().split(many)]
    )


def _exact_part(x: Tensor, table: Tensor, turned: Tensor, bias: Tensor, longest: float) -> Tensor:
    scores = torch.addmm(bias.to(turned), x.to(turned), turned)
    row, word = _within(scores, _error(x, longest, turned.dtype))
    rescored = (x[row].double() * table[word].double()).sum(1) + bias[word]
    best = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    best.scatter_reduce_(0, row, rescored, "amax")
    keep = rescored >= (best - 2 * _error(x, longest, torch.float64))[row]
    return _decided(x, table, row[keep], word[keep])


def _error(x: Tensor, longest: float, dtype: torch.dtype) -> Tensor:
    """How far a score in this arithmetic may be from the exact one, whatever the order of sums."""
    size = x.double().norm(dim=1) * longest + longest**2
    return (x.shape[1] + 8) * torch.finfo(dtype).eps * size


def _within(scores: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """(row, word) of every score that may be its row's best; rows in order, words rising."""
    least = (scores.amax(1).double() - 2 * error).to(scores.dtype)
    row, word = (scores >= least[:, None]).nonzero(as_tuple=True)
    return row, word


def _decided(x: Tensor, table: Tensor, row: Tensor, word: Tensor) -> Tensor:
    """One word for each row, of those that are left: rows in order, each one's words rising."""
    ids = word[_firsts(row, len(x))]
    lowest = ids[row]
    twin = (table[word] == table[lowest]).all(1)  # of its row's lowest word, or that one itself
    for n in row[~twin].unique().tolist():
        left = word[row == n]
        ids[n] = _by_fractions(x[n].tolist(), left.tolist(), table[left].tolist())
    return ids


def _firsts(row: Tensor, rows: int) -> Tensor:
    """Where each row's part of a list begins."""
    count = torch.bincount(row, minlength=rows)
    return count.cumsum(0) - count


def _by_fractions(x: list[float], ids: list[int], rows: list[list[float]]) -> int:
    """The nearest of a few words, by exact arithmetic; ids rise."""
    at = [Fraction(v) for v in x]
    far = {
        i: sum((a - Fraction(b)) ** 2 for a, b in zip(at, row, strict=True))
        for i, row in zip(ids, rows, strict=True)
    }
    return min(far, key=lambda i: (far[i], i))


# --------------------------------------------------------------------------------- trajectories

PLAUSIBLE = 64  # words that the context leaves at each position
OFF = 0.25  # how far a network's estimate is off, in standard deviations of a coordinate


@dataclass(frozen=True, eq=False)
class Walk:
    """The estimates of x0 of a denoising run, first to last, N E each, and the words V E."""

    steps: Sequence[Tensor]
    table: Tensor

    @cached_property
    def wanted(self) -> Tensor:
        """The exact tokens, steps N."""
        return torch.stack([exact_tokens(x, self.table) for x in self.steps])


@lru_cache(maxsize=1)
def trajectory(shape: Shape, steps: int, seed: int = 1) -> Walk:
    """The estimates of a DDIM run.

    The denoiser is ideal for positions that hold one of PLAUSIBLE words, the k-th with a weight of
    1/k: x0_hat = sum_k p(k | x_t) e_k. To it comes what a network is off by, which turns by a
    right angle from the first step to the last. Cosine schedule with noise 4, uniform steps.
    """
    rng = Generator(shape.device).manual_seed(seed)
    table = problem(shape).table
    some = torch.randint(shape.words, (shape.rows, PLAUSIBLE), generator=rng, device=rng.device)
    prior = -torch.arange(1, PLAUSIBLE + 1, device=rng.device).log()
    plausible = table[some]  # N K E
    size = (3, shape.rows, shape.width)
    x, first, last = torch.randn(size, generator=rng, device=rng.device)
    found = []
    for k in range(steps):
        here, there = _level(1 - k / steps), _level(1 - (k + 1) / steps)
        angle = k / steps * math.pi / 2
        off = OFF * (math.cos(angle) * first + math.sin(angle) * last)
        x0_hat = _posterior_mean(x, plausible, prior, *here) + off
        found.append(x0_hat)
        x = there[0] * x0_hat + there[1] * (x - here[0] * x0_hat) / here[1]
    return Walk(found, table)


def _level(t: float) -> tuple[float, float]:
    """alpha and sigma: a quarter cosine with 4 times the noise."""
    alpha, sigma = math.cos(t * math.pi / 2), 4 * math.sin(t * math.pi / 2)
    size = math.hypot(alpha, sigma)
    return alpha / size, sigma / size


def _posterior_mean(x: Tensor, some: Tensor, prior: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x0 | x_t] where x0 is one of a few words. Shapes: N E, N K E, K -> N E."""
    inner = torch.einsum("ne,nke->nk", x, some)
    fits = (alpha * inner - 0.5 * alpha**2 * some.square().sum(2)) / sigma**2
    return torch.einsum("nk,nke->ne", (fits + prior).softmax(1), some)
