"""Launching the Triton kernels of `bucket`: memory, tiles, and the numbers they are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdlm.kernels import bucket
from cdlm.kernels.configs import Config, config_for, processors
from cdlm.kernels.words import WordTable

SLOTS = 1024  # rows on the list whose words are shared out; the others are looked through alone
PIECES = 32  # programs to such a row
ROUNDS = 4  # buckets scored exactly before a row is put on the list
MEMORY = 1 << 24  # bytes of working memory, if one wave of programs needs no more
KEPT = 16  # buckets of a row that are remembered
PACKED = 3.2e-5  # of a score may be lost where its low bits name a tile: 2^-15
TILES = 256  # of a split, that 8 bits can name


@dataclass(frozen=True)
class Step:
    """The sampler's step that is taken with the rounding: x_s = a e + b x_t + sigma noise."""

    x_t: Tensor
    x_s: Tensor
    seed: Tensor
    a: float
    b: float
    sigma: float


def nearest(x: Tensor, table: WordTable, step: Step | None = None) -> Tensor:
    """The nearest word of each row. Shapes: x N E, any float -> ids N, int64.

    With `step`, its x_s is written too; x must be all of its rows.
    """
    x = x.contiguous()
    ids = torch.empty(len(x), dtype=torch.long, device=x.device)
    config = config_for(table.halves.width, len(x), x.device)
    wave = processors(x.device) * config.block_m
    row = 2 * table.halves.width + 8 * config.block_n // 8 * splits(len(x), table, config)
    rows = len(x) if step else max(1, MEMORY // (wave * row)) * wave
    if len(x):
        for part, out in zip(x.split(rows), ids.split(rows), strict=True):
            _nearest(part, table, out, config, step)
    return ids


def search(x: Tensor, table: WordTable) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and what is worth remembering of each row: its best buckets of words.

    Shapes: x N E -> ids N, words N K 8, ceilings N K+1: what no word of each of these buckets, and
    at last what no word of all the others, scores above.
    """
    ids = torch.empty(len(x), dtype=torch.long, device=x.device)
    config = config_for(table.halves.width, len(x), x.device)
    found = _nearest(x.contiguous(), table, ids, config, None)
    keep = min(KEPT, found.best.shape[1] - 1)
    values, columns = found.best.topk(keep + 1, dim=1)
    beyond = torch.maximum(values[:, keep], found.second.amax(1))
    tops = torch.cat([values[:, :keep], beyond[:, None]], 1)
    words = _words_of(values[:, :keep], columns[:, :keep], found.tiles_each, config)
    return ids, words.clamp(max=len(table) - 1), _true_ceilings(x, tops, found.margins, table)


def _words_of(packed: Tensor, column: Tensor, tiles_each: int, config: Config) -> Tensor:
    """The ids of a bucket's words, as `bucket.scan` lays them out. Shapes: N K -> N K 8."""
    columns = config.block_n // 8
    tile = (packed.contiguous().view(torch.int32) & 255) + column // columns * tiles_each
    within, place = column % columns, torch.arange(8, device=column.device)
    slab = (within // (4 * config.across) * 4)[..., None] + place // 2
    beside = within // 4 % config.across
    offset = 8 * (config.across * slab + beside[..., None]) + (within % 4 * 2)[..., None]
    return tile.long()[..., None] * config.block_n + offset + place % 2


def _true_ceilings(x: Tensor, tops: Tensor, margins: Tensor, table: WordTable) -> Tensor:
    """Scores of the scaled and centred half-precision table as scores of the table, rounded up.

    x . e - ||e||^2 / 2 = (x - m) . (e - m) - ||e - m||^2 / 2 + x . m - ||m||^2 / 2.
    """
    high, wide, mean = tops.double(), x.double(), table.mean.double()
    error = PACKED * high.abs() + 1.02 * margins.double()[:, None]
    shift = wide @ mean - 0.5 * mean.square().sum()
    terms = torch.linalg.vector_norm(wide, dim=1) * mean.norm() + mean.square().sum()
    true = (high + error) / table.halves.scale**2 + (shift + 2**-40 * terms)[:, None]
    return (true + true.abs() * 2**-22).float()


def splits(rows: int, table: WordTable, config: Config) -> int:
    """In how many pieces the vocabulary is shared out, so that few rows fill the device too."""
    tiles = len(table.halves.words) // config.block_n
    wanted = processors(table.words.device) / max(1, -(-rows // config.block_m))
    found = 1
    while found < min(64, tiles) and (found < wanted or tiles > TILES * found):
        found *= 4
    while tiles > TILES * found:
        found *= 4
    return found


@dataclass(frozen=True)
class Scan:
    """What one pass over the words says. Shapes: best, second N columns; margins N."""

    best: Tensor
    second: Tensor
    margins: Tensor
    tiles_each: int


def scan(x: Tensor, table: WordTable, config: Config) -> Scan:
    """The best buckets of every row, in half precision, and how far off that may be."""
    halves, rows = table.halves, len(x)
    tiles = len(halves.words) // config.block_n
    parts = splits(rows, table, config)
    tiles_each = -(-tiles // parts)
    columns = parts * config.block_n // 8
    x16 = torch.empty(rows, halves.width, dtype=torch.float16, device=x.device)
    margins = torch.empty(rows, device=x.device)
    best, second = torch.empty(2, rows, columns, device=x.device)
    summed = (halves.width + 32) * 2.0**-23 + 2.0**-23  # of fp32 sums, cut off and not rounded
    bucket.halve[(rows,)](
        x, table.mean, x16, margins, table.width, halves.scale, halves.spread, halves.lost, summed,
        2.0**-22 * halves.constant, PADDED=halves.width, BLOCK_E=_block(halves.width, 1024),
        num_warps=1,
    )  # fmt: skip
    grid = (-(-rows // config.block_m), parts)
    bucket.scan[grid](
        x16, halves.words, halves.bias, best, second, rows, tiles, tiles_each,
        PADDED=halves.width, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        BLOCK_E=config.block_e, ACROSS=config.across, STAGES=config.stages, num_warps=config.warps,
    )  # fmt: skip
    return Scan(best, second, margins, tiles_each)


def _nearest(x: Tensor, table: WordTable, ids: Tensor, config: Config, step: Step | None) -> Scan:
    """Scan, decide, look again at the rows that were put on the list."""
    rows, width = x.shape
    found = scan(x, table, config)
    columns = found.best.shape[1]
    listed = torch.empty(rows, dtype=torch.int32, device=x.device)
    count = torch.zeros(1, dtype=torch.int32, device=x.device)
    bests = torch.empty(rows, dtype=torch.float64, device=x.device)
    highs, lows = torch.empty(2, SLOTS * PIECES, dtype=torch.float64, device=x.device)
    words = torch.empty(SLOTS * PIECES, dtype=torch.long, device=x.device)
    taken = (step.x_t, step.x_s, step.seed, step.a, step.b, step.sigma) if step else _no_step(x)
    block = _block(width, 128)
    shared = {"BLOCK_E": block, "STEP": step is not None}
    bucket.decide[(rows,)](
        x, table.words, found.best, found.second, found.margins, ids, listed, count, bests, *taken,
        len(table), width, columns, found.tiles_each, COLUMNS=_block(columns, columns),
        BLOCK_N=config.block_n, ACROSS=config.across, ROUNDS=ROUNDS, num_warps=1, **shared,
    )  # fmt: skip
    programs = 4 * processors(x.device)
    bucket.rescan[(programs,)](
        x, table.words, listed, count, bests, highs, lows, words, ids, *taken, len(table), width,
        table.radius, SLOTS, PIECES, BLOCK_V=32, num_warps=4, **shared,
    )  # fmt: skip
    bucket.merge[(programs,)](
        x, table.words, listed, count, highs, lows, words, ids, *taken, width, SLOTS, PIECES,
        PIECES=PIECES, num_warps=1, **shared,
    )  # fmt: skip
    return found


def _no_step(x: Tensor) -> tuple[Tensor, Tensor, Tensor, float, float, float]:
    return x, x, x, 0.0, 0.0, 0.0


def _block(width: int, most: int) -> int:
    """The least power of two that holds a width, at least 16, at most `most` rounded up."""
    return max(16, 1 << (min(width, most) - 1).bit_length())
