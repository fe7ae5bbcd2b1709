"""Who is nearest, in exact arithmetic: the reference, and the judge of what is nearly a tie."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from cdlm.kernels.words import CHUNK

GATHERED = 1 << 20  # numbers gathered at a time


def reference(x: Tensor, table: Tensor) -> Tensor:
    """argmax_v x . e_v - ||e_v||^2 / 2 in exact arithmetic, lowest id on ties; 0 if not finite.

    All words are scored in float64; whoever comes within the error of that is judged exactly.
    Shapes: x N E, table V E -> ids N, int64. Slow, plain, and what every other path is held to.
    """
    wide, words = x.double(), table.double()
    bias = -0.5 * words.square().sum(1)
    margin = margin64(wide, float(words.square().sum(1).max().sqrt()))
    found = []
    for rows, error in zip(wide.split(CHUNK), margin.split(CHUNK), strict=True):
        scores = torch.addmm(bias, rows, words.T)
        near = scores >= scores.amax(1, keepdim=True) - 2 * error[:, None]
        row, word = near.nonzero(as_tuple=True)
        found.append(judge(rows, words, row, word))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device=x.device)


def margin64(x: Tensor, radius: float) -> Tensor:
    """How far a score summed in float64 may be from the true one. Shapes: N E -> N, float64."""
    norms = torch.linalg.vector_norm(x.double(), dim=1)
    return (x.shape[1] + 8) * 2.0**-52 * (norms + radius) * radius


def settle(x: Tensor, table: Tensor, row: Tensor, word: Tensor, radius: float) -> Tensor:
    """The nearest of each row's candidates, in exact arithmetic. Rows without one get word 0.

    Shapes: x N E, table V E; candidate i is word[i] for row[i], P each -> ids N, int64.
    """
    count = torch.bincount(row, minlength=len(x))
    ids = torch.zeros(len(x), dtype=torch.long, device=x.device)
    several = count[row] > 1
    ids[row[~several]] = word[~several]
    row, word = row[several], word[several]
    if not len(row):
        return ids
    scores = torch.cat([_scores64(x, table, *some) for some in slices(row, word, x.shape[1])])
    best = scores.new_full((len(x),), -torch.inf).scatter_reduce(0, row, scores, "amax")
    near = scores >= (best - 2 * margin64(x, radius))[row]
    judged = judge(x, table, row[near], word[near])
    return torch.where(count > 1, judged, ids)


def slices(row: Tensor, word: Tensor, width: int) -> list[tuple[Tensor, Tensor]]:
    """The candidates in pieces, so that what is gathered for a piece stays small."""
    size = max(1, GATHERED // width)
    return list(zip(row.split(size), word.split(size), strict=True))


def judge(x: Tensor, table: Tensor, row: Tensor, word: Tensor) -> Tensor:
    """The lowest of the ids that tie for nearest, each pair of candidates compared exactly.

    Candidates equal to the row's first in every number are the same word twice: no arithmetic.
    Shapes: x N E, table V E, row P, word P -> ids N, int64; 0 for a row without candidates.
    """
    last = torch.iinfo(torch.long).max
    first = torch.full((len(x),), last, device=x.device)
    first = first.scatter_reduce(0, row, word, "amin")
    ids = torch.where(first == last, 0, first)
    twins = [(table[w] == table[ids[r]]).all(1) for r, w in slices(row, word, x.shape[1])]
    others = ~torch.cat(twins) if twins else row.bool()
    for r, w in sorted(zip(row[others].tolist(), word[others].tolist(), strict=True)):
        if _farther(x[r], table[int(ids[r])], table[w]):
            ids[r] = w
    return ids


def _scores64(x: Tensor, table: Tensor, row: Tensor, word: Tensor) -> Tensor:
    words = table[word].double()
    return (words * (x[row].double() - 0.5 * words)).sum(1)


def _farther(x: Tensor, held: Tensor, rival: Tensor) -> bool:
    """Whether x is farther from the word held than from its rival: sum (a - b)(a + b - 2x) > 0."""
    triples = zip(x.tolist(), held.tolist(), rival.tolist(), strict=True)
    exact = ((Fraction(p), Fraction(a), Fraction(b)) for p, a, b in triples)
    return sum((a - b) * (a + b - 2 * p) for p, a, b in exact) > 0
