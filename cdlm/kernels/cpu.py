"""The nearest word on a CPU: maxima of blocks, then the words of the few blocks that can win.

`amax` over a strided axis runs at the speed of memory where `argmax` does not (18 times slower in
torch), so a scan keeps the best score of every block of 16 words and not whose it is. Only words of
blocks within the margin of error of the best are looked at one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdlm.kernels.exact import reference, settle, slices
from cdlm.kernels.words import WordTable

ROWS = 512  # rows at a time
CHUNK = 2048  # words at a time, at most
SCORES = 1 << 18  # scores at a time, if not wide: a megabyte, which stays in a core's cache
WIDE = 512  # widths from here on are bound by the product: larger pieces, fewer words to look at
KEPT = 128  # words of a row that are remembered
HUGE = 1e37  # scores beyond this overflow in float32


def nearest(x: Tensor, table: WordTable) -> Tensor:
    """The nearest word of each row. Shapes: x N E, float32 -> ids N, int64."""
    return _joined([_search(rows, table, 0) for rows in x.split(ROWS)])[0]


def search(x: Tensor, table: WordTable) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and what is worth remembering of each row: its best blocks of words.

    Shapes: x N E -> ids N, words N K block, ceilings N K+1: what no word of each of these blocks,
    and at last what no word of all the others, scores above.
    """
    return _joined([_search(rows, table, KEPT // _block(table)) for rows in x.split(ROWS)])


Found = tuple[Tensor, Tensor, Tensor]


def _joined(parts: list[Found]) -> Found:
    ids, words, ceilings = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(words), torch.cat(ceilings)


def _search(x: Tensor, table: WordTable, keep: int) -> Found:
    norms = torch.linalg.vector_norm(x, dim=1)
    fits = norms * table.radius + table.radius**2 < HUGE
    if not bool(fits.all()):
        return _search_apart(x, table, keep, fits)
    error, best = margin(norms, table), block_maxima(x, table)
    ids = winners(x, table, error, best)
    return ids, *_best_blocks(best, error, table, keep)


def _search_apart(x: Tensor, table: WordTable, keep: int, fits: Tensor) -> Found:
    """Rows with numbers that overflow, or are none, by the reference; what is kept says nothing."""
    found = _search(x[fits], table, keep)
    ids, words, ceilings = (it.new_zeros(len(x), *it.shape[1:]) for it in found)
    ids[~fits] = reference(x[~fits], table.words)
    ceilings[~fits] = torch.inf
    for whole, part in zip((ids, words, ceilings), found, strict=True):
        whole[fits] = part
    return ids, words, ceilings


def _best_blocks(best: Tensor, error: Tensor, table: WordTable, keep: int) -> tuple[Tensor, Tensor]:
    """The words of each row's best blocks, N K block, and all ceilings, N K+1."""
    keep = min(keep, len(best))
    if not keep:
        return error.new_zeros(len(error), 0, 0).long(), error[:, None]
    values, blocks = best.topk(min(keep + 1, len(best)), dim=0)
    if keep == len(best):
        values = torch.cat([values, values.new_full((1, len(error)), -torch.inf)])
    words = words_of(blocks[:keep].T.flatten(), table, len(error))
    return words.view(len(error), keep, words.shape[1]), values.T + error[:, None]


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


def block_maxima(x: Tensor, table: WordTable) -> Tensor:
    """The best score in every block of words, for each row. Shapes: N E -> blocks N.

    Scores stand words first, so that the maximum runs down whole rows of numbers.
    """
    chunk, block, starts = _layout(table, len(x))
    stride = chunk // block
    columns = x.T.contiguous()
    scores = x.new_empty(chunk, len(x))
    best = x.new_empty(len(starts) * stride, len(x))
    for i, start in enumerate(starts):
        part = slice(start, start + chunk)
        torch.addmm(table.bias[part, None], table.words[part], columns, out=scores)
        places = best[i * stride : (i + 1) * stride]
        torch.amax(scores.view(block, stride, len(x)), 0, out=places)
    return best


def _layout(table: WordTable, rows: int) -> tuple[int, int, list[int]]:
    """Words in a chunk, words in a block, and where each chunk starts.

    The last chunk ends with the table and so overlaps the one before: no words need be added.
    """
    block = _block(table)
    scores = SCORES * (4 if table.width >= WIDE else 1)
    most = max(block, min(CHUNK, scores // max(1, rows)))
    chunk = min(len(table), most) // block * block
    starts = [*range(0, len(table) - chunk, chunk), len(table) - chunk]
    return chunk, block, starts


def _block(table: WordTable) -> int:
    return min(8 if table.width >= WIDE else 16, len(table))


def words_of(blocks: Tensor, table: WordTable, rows: int) -> Tensor:
    """The ids of the words of these blocks, of a scan of so many rows. Shapes: P -> P block."""
    chunk, block, starts = _layout(table, rows)
    stride = chunk // block
    first = torch.tensor(starts)[blocks // stride] + blocks % stride
    return first[:, None] + stride * torch.arange(block)


def winners(x: Tensor, table: WordTable, error: Tensor, best: Tensor) -> Tensor:
    """The nearest word of each row, from the maxima of a scan and their error. -> ids N."""
    least, row, block = _blocks_in_reach(best, len(_layout(table, len(x))[2]), 2 * error)
    found = [_contenders(x, table, least, *some) for some in slices(row, block, 16 * table.width)]
    row, word = (torch.cat(parts) for parts in zip(*found, strict=True))
    return settle(x, table.words, row, word, table.radius)


def _blocks_in_reach(best: Tensor, chunks: int, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least score in reach of each row's best; rows and blocks of the maxima that are.

    Whole chunks are ruled out first: to look through all maxima for a few costs more than a scan.
    """
    by_chunk = best.view(chunks, len(best) // chunks, best.shape[1])
    tops = by_chunk.amax(1)
    least = tops.amax(0) - reach
    chunk, row = (tops >= least).nonzero(as_tuple=True)
    found, place = (by_chunk[chunk, :, row] >= least[row, None]).nonzero(as_tuple=True)
    return least, row[found], chunk[found] * by_chunk.shape[1] + place


def _contenders(
    x: Tensor, table: WordTable, least: Tensor, row: Tensor, block: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the words of these blocks those within the error of their row's best: rows, words."""
    words = words_of(block, table, len(x))
    vectors = table.words.index_select(0, words.flatten()).view(*words.shape, table.width)
    scores = torch.einsum("pke,pe->pk", vectors, x[row]) + table.bias[words]
    near, place = (scores >= least[row, None]).nonzero(as_tuple=True)
    return row[near], words[near, place]
