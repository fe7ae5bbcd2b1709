"""The nearest word on a CPU: maxima of blocks, then the words of the few blocks that can win.

`amax` over a strided axis runs at the speed of memory where `argmax` does not (18 times slower in
torch), so a scan keeps the best score of every block of 16 words and not whose it is. Only words of
blocks within the margin of error of the best are looked at one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdlm.kernels.exact import reference, settle, slices
from cdlm.kernels.words import Coarse, WordTable

ROWS = 512  # rows at a time
CHUNK = 2048  # words at a time, at most
SCORES = 1 << 18  # scores at a time, if not wide: a megabyte, which stays in a core's cache
WIDE = 512  # widths from here on are bound by the product: larger pieces, fewer words to look at
KEPT = 128  # words of a row that are remembered
HUGE = 1e37  # scores beyond this overflow in float32


def nearest(x: Tensor, table: WordTable) -> Tensor:
    """The nearest word of each row. Shapes: x N E, float32 -> ids N, int64."""
    parts = x.split(max(ROWS, SCORES // len(table)))
    return torch.cat([_nearest(rows, table) for rows in parts])


def _nearest(x: Tensor, table: WordTable) -> Tensor:
    few = len(x) * len(table) <= SCORES
    return _among_few(x, table) if few else _search(x, table, 0)[0]


def _among_few(x: Tensor, table: WordTable) -> Tensor:
    """Where all scores at once are few, to go by blocks costs more than it saves."""
    norms = torch.linalg.vector_norm(x, dim=1)
    scores = torch.addmm(table.bias, x, table.words.T)
    least = scores.amax(1) - 2 * margin(norms, table)
    row, word = (scores >= least[:, None]).nonzero(as_tuple=True)
    if not bool((norms * table.radius + table.radius**2 < HUGE).all()):
        return reference(x, table.words)
    return _chosen(x, table, row, word)


def _chosen(x: Tensor, table: WordTable, row: Tensor, word: Tensor) -> Tensor:
    """The nearest of each row's candidates, of which every row has at least one. -> ids N."""
    if len(row) == len(x):
        return torch.empty_like(word).scatter_(0, row, word)  # candidates may stand in any order
    return settle(x, table.words, row, word, table.radius)


def search(x: Tensor, table: WordTable) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and what is worth remembering of each row: its best blocks of words.

    Shapes: x N E -> ids N, words N K block, ceilings N K+1: what no word of each of these blocks,
    and at last what no word of all the others, scores above.
    """
    return _joined([_search(rows, table, KEPT // _block(table.words)) for rows in x.split(ROWS)])


Found = tuple[Tensor, Tensor, Tensor]


def _joined(parts: list[Found]) -> Found:
    ids, words, ceilings = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(words), torch.cat(ceilings)


def _search(x: Tensor, table: WordTable, keep: int) -> Found:
    norms = torch.linalg.vector_norm(x, dim=1)
    fits = norms * table.radius + table.radius**2 < HUGE
    if not bool(fits.all()):
        return _search_apart(x, table, keep, fits)
    found = block_maxima(x, table)
    return winners(x, table, found), *_best_blocks(found, table, keep)


def _search_apart(x: Tensor, table: WordTable, keep: int, fits: Tensor) -> Found:
    """Rows with numbers that overflow, or are none, by the reference; what is kept says nothing."""
    found = _search(x[fits], table, keep)
    ids, words, ceilings = (it.new_zeros(len(x), *it.shape[1:]) for it in found)
    ids[~fits] = reference(x[~fits], table.words)
    ceilings[~fits] = torch.inf
    for whole, part in zip((ids, words, ceilings), found, strict=True):
        whole[fits] = part
    return ids, words, ceilings


def _best_blocks(found: Maxima, table: WordTable, keep: int) -> tuple[Tensor, Tensor]:
    """The words of each row's best blocks, N K block, and all ceilings, N K+1."""
    blocks_, rows = found.best.shape
    keep = min(keep, blocks_)
    if not keep:
        return found.error.new_zeros(rows, 0, 0).long(), found.error[:, None]
    values, blocks = found.best.topk(min(keep + 1, blocks_), dim=0)
    if keep == blocks_:
        values = torch.cat([values, values.new_full((1, rows), -torch.inf)])
    words = words_of(blocks[:keep].T.flatten(), table.words, rows)
    ceilings = values.T + (found.error + found.shift)[:, None]
    return words.view(rows, keep, words.shape[1]), ceilings


def margin(norms: Tensor, table: WordTable) -> Tensor:
    """How far a score summed in float32, in any order, may be from the true one. Shapes: N -> N.

    (2E + 8) u (||x|| R + R^2) bounds the rounding of products, sums and of the bias; the rest is
    what numbers too small for float32 lose (Higham 2002, section 3.1).
    """
    terms = (norms + table.radius) * table.radius
    lost = table.width * 2.0**-126 * (1 + norms + table.radius)
    return (2 * table.width + 8) * _unit_roundoff() * terms + lost


def _unit_roundoff() -> float:
    """Of the products of a float32 matrix product, which torch may be told to make coarser."""
    return {"highest": 2.0**-24, "high": 2.0**-10, "medium": 2.0**-7}[
        torch.get_float32_matmul_precision()
    ]


@dataclass(frozen=True)
class Maxima:
    """The best score in every block of words, and how far off it may be. Shapes: blocks N, N.

    Scores are to be compared within a row; `shift` added makes them scores of the table.
    """

    best: Tensor
    error: Tensor
    shift: Tensor


def block_maxima(x: Tensor, table: WordTable) -> Maxima:
    """Of each row, in float32, or in bfloat16 where that is faster here. Shapes: x N E."""
    if table.coarse is not None:
        return _coarse_maxima(x, table, table.coarse)
    norms = torch.linalg.vector_norm(x, dim=1)
    best = _scan(x.T.contiguous(), table.words, table.bias)
    return Maxima(best, margin(norms, table), torch.zeros_like(norms))


def _coarse_maxima(x: Tensor, table: WordTable, coarse: Coarse) -> Maxima:
    """In bfloat16, sums in float32: what the inputs and the score lose when they are rounded."""
    centred = x - table.mean
    rounded = centred.to(torch.bfloat16)
    best = _scan(rounded.T.contiguous(), coarse.words, coarse.bias).float()
    gone = torch.linalg.vector_norm(centred - rounded.float(), dim=1)
    norms = torch.linalg.vector_norm(centred, dim=1) + gone
    size = best.abs().amax(0) + norms * table.spread + table.spread**2
    error = (gone + 2.0**-22 * norms) * table.spread + norms * coarse.lost + coarse.bias_lost
    error = 1.01 * (error + (table.width + 8) * 2.0**-23 * size + 2.0**-8 * best.abs().amax(0))
    return Maxima(best, error, x @ table.mean - 0.5 * table.mean.square().sum())


def _scan(columns: Tensor, words: Tensor, bias: Tensor) -> Tensor:
    """The best score in every block of words. Shapes: columns E N, words V E -> blocks N.

    Scores stand words first, so that the maximum runs down whole rows of numbers.
    """
    rows = columns.shape[1]
    chunk, block, starts = _layout(words, rows)
    stride = chunk // block
    scores = columns.new_empty(chunk, rows)
    best = columns.new_empty(len(starts) * stride, rows)
    for i, start in enumerate(starts):
        part = slice(start, start + chunk)
        torch.addmm(bias[part, None], words[part], columns, out=scores)
        places = best[i * stride : (i + 1) * stride]
        torch.amax(scores.view(block, stride, rows), 0, out=places)
    return best


def _layout(words: Tensor, rows: int) -> tuple[int, int, list[int]]:
    """Words in a chunk, words in a block, and where each chunk starts.

    The last chunk ends with the table and so overlaps the one before: no words need be added.
    """
    block = _block(words)
    scores = SCORES * (4 if words.shape[1] >= WIDE else 1)
    most = max(block, min(CHUNK, scores // max(1, rows)))
    chunk = min(len(words), most) // block * block
    starts = [*range(0, len(words) - chunk, chunk), len(words) - chunk]
    return chunk, block, starts


def _block(words: Tensor) -> int:
    return min(8 if words.shape[1] >= WIDE else 16, len(words))


def words_of(blocks: Tensor, words: Tensor, rows: int) -> Tensor:
    """The ids of the words of these blocks, of a scan of so many rows. Shapes: P -> P block."""
    chunk, block, starts = _layout(words, rows)
    stride = chunk // block
    first = torch.tensor(starts)[blocks // stride] + blocks % stride
    return first[:, None] + stride * torch.arange(block)


def winners(x: Tensor, table: WordTable, found: Maxima) -> Tensor:
    """The nearest word of each row, from the maxima of a scan. -> ids N."""
    row, block = _blocks_in_reach(found, len(_layout(table.words, len(x))[2]))
    pieces = slices(row, block, 16 * table.width)
    words = [words_of(some, table.words, len(x)) for _, some in pieces]
    scores = [scores_of(x, table, r, w) for (r, _), w in zip(pieces, words, strict=True)]
    word, score = torch.cat(words), torch.cat(scores)
    top = score.new_full((len(x),), -torch.inf).scatter_reduce(0, row, score.amax(1), "amax")
    least = top - 2 * margin(torch.linalg.vector_norm(x, dim=1), table)
    near, place = (score >= least[row, None]).nonzero(as_tuple=True)
    return _chosen(x, table, row[near], word[near, place])


def _blocks_in_reach(found: Maxima, chunks: int) -> tuple[Tensor, Tensor]:
    """Rows and blocks of the maxima that lie within the error of their row's best.

    Whole chunks are ruled out first: to look through all maxima for a few costs more than a scan.
    """
    best = found.best
    by_chunk = best.view(chunks, len(best) // chunks, best.shape[1])
    tops = by_chunk.amax(1)
    least = tops.amax(0) - 2 * found.error
    chunk, row = (tops >= least).nonzero(as_tuple=True)
    near, place = (by_chunk[chunk, :, row] >= least[row, None]).nonzero(as_tuple=True)
    return row[near], chunk[near] * by_chunk.shape[1] + place


def scores_of(x: Tensor, table: WordTable, row: Tensor, words: Tensor) -> Tensor:
    """Of some words for each of these rows, in float32. Shapes: words P block -> P block."""
    vectors = table.words.index_select(0, words.flatten()).view(*words.shape, table.width)
    return torch.einsum("pke,pe->pk", vectors, x[row]) + table.bias[words]
