# mypy: disable-error-code="no-untyped-def"
"""The nearest word on a GPU, in Triton: one pass in half precision, certified, then made exact.

    halve      x - mean in fp16, and for each row how far its fp16 scores may be from the true ones
    scan       fp16 scores of all words; of every bucket of 8 the best, of every column of buckets
               the two best. No N x V matrix, and no talk between threads inside the loop
    decide     words of the buckets within the margin of error, scored exactly; rows where a third
               bucket of a column may matter are put on a list
    rescan     rows on the list: all words, exactly, many programs to a row
    merge      the best of a row's programs

`decide`, `rescan` and `merge` also take the sampler's step, since they hold the row. Nothing waits
for the host: the five launches can be captured in a CUDA graph.

An exact score is a sum of products of two float32, each exact in float64, kept as an unevaluated
sum of two float64 (Knuth's two-sum). Two scores that differ by less than 2^-100 of their terms may
pass for a tie; where a row's numbers lie within a factor of 2^23 of each other nothing is lost.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halve(
    x, mean, halves, margins,
    width, scale, spread, lost, summed, fixed,
    PADDED: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One row: scale (x - mean) as fp16, and its margin of error without the packing's part.

    With x = half + rest a score is off by at most ||rest|| spread + ||half|| (lost + summed spread)
    + fixed: what x lost, what the words lost, what sums in fp32 lose, and what the bias lost.
    NaN: the row is not finite; infinity: fp16 can't hold it.
    """
    row = tl.program_id(0).to(tl.int64)
    square = 0.0
    missed = 0.0
    fine = 1
    for start in tl.range(0, PADDED, BLOCK_E):
        at = start + tl.arange(0, BLOCK_E)
        inside = at < width
        value = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
        centred = (value - tl.load(mean + at, mask=inside, other=0.0)) * scale
        half = centred.to(tl.float16)
        tl.store(halves + row * PADDED + at, half, mask=at < PADDED)
        gone = centred - half.to(tl.float32)
        square += tl.sum(centred * centred)
        missed += tl.sum(gone * gone)
        fine = tl.minimum(fine, tl.min((tl.abs(value) < float("inf")).to(tl.int32)))
    rest = tl.sqrt(missed)
    norm = tl.sqrt(square) + rest
    margin = 1.01 * (rest * spread + norm * (lost + summed * spread) + fixed)
    margin = tl.where(margin < float("inf"), margin, float("inf"))  # NaN is no number below it
    tl.store(margins + row, tl.where(fine == 1, margin, float("nan")))


@triton.jit(do_not_specialize=["rows", "tiles", "tiles_each"])
def scan(
    halves, words, bias, best, second,
    rows, tiles, tiles_each,
    PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    ACROSS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The two best buckets of every column, the tile's number packed into the low bits.

    Words stand in tiles of BLOCK_N. Column (f, w, c) of a tile holds the bucket of its words
    8 (ACROSS (4 f + b) + w) + 2 c + d for b < 4 and d < 2: those that one thread has in the layout
    of a tensor core's results, where ACROSS warps stand side by side.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    part = tl.arange(0, BLOCK_E)
    place = tl.arange(0, BLOCK_N)
    x_at = halves + row[:, None].to(tl.int64) * PADDED + part[None, :]
    known = (row < rows)[:, None]
    first = tl.full((BLOCK_M, BLOCK_N // 32 // ACROSS, ACROSS, 4), float("-inf"), tl.float32)
    other = first
    if PADDED == BLOCK_E:
        x = tl.load(x_at, mask=known, other=0.0)
    start = split * tiles_each
    stop = tl.minimum(start + tiles_each, tiles)
    for tile in tl.range(start, stop, num_stages=STAGES):
        word = tile * BLOCK_N + place
        words_at = words + word[None, :].to(tl.int64) * PADDED + part[:, None]
        if PADDED == BLOCK_E:
            scores = tl.dot(x, tl.load(words_at))
        else:
            scores = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for e in tl.range(0, PADDED, BLOCK_E, num_stages=STAGES):
                some = tl.load(x_at + e, mask=known, other=0.0)
                scores = tl.dot(some, tl.load(words_at + e), acc=scores)
        scores += tl.load(bias + word)[None, :]
        buckets = scores.reshape(BLOCK_M, BLOCK_N // 32 // ACROSS, 4, ACROSS, 4, 2)
        buckets = tl.max(tl.max(buckets, 5), 2)
        bits = buckets.to(tl.int32, bitcast=True)
        packed = ((bits & -256) | (tile - start)).to(tl.float32, bitcast=True)
        other = tl.maximum(other, tl.minimum(first, packed))
        first = tl.maximum(first, packed)
    first = first.reshape(BLOCK_M, BLOCK_N // 8)
    other = other.reshape(BLOCK_M, BLOCK_N // 8)
    column = split * (BLOCK_N // 8) + tl.arange(0, BLOCK_N // 8)
    width = tl.num_programs(1) * (BLOCK_N // 8)
    at = row[:, None].to(tl.int64) * width + column[None, :]
    known = (row < rows)[:, None]
    tl.store(best + at, first, mask=known)
    tl.store(second + at, other, mask=known)


# ---------------------------------------------------------------------------------- exact scores


@triton.jit
def _add(high, low, high_, low_):
    """The sum of two unevaluated sums, as one."""
    total = high + high_
    back = total - high
    error = (high - (total - back)) + (high_ - back)
    rest = low + low_ + error
    first = total + rest
    return first, rest - (first - total)


@triton.jit
def _greater(high, low, word, high_, low_, word_):
    """Of two exact scores with their words the greater; of equals the lower word."""
    wins = (high > high_) | ((high == high_) & ((low > low_) | ((low == low_) & (word < word_))))
    return (
        tl.where(wins, high, high_),
        tl.where(wins, low, low_),
        tl.where(wins, word, word_),
    )


@triton.jit
def _read(x, table, row, word, real, start, width, BLOCK_E: tl.constexpr):
    """A block of the width of a row and of some words, in float64; 0 where there is nothing."""
    at = start + tl.arange(0, BLOCK_E)
    inside = at < width
    point = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float64)
    places = table + word[:, None] * width + at[None, :]
    vectors = tl.load(places, mask=real[:, None] & inside[None, :], other=0.0).to(tl.float64)
    return point, vectors


@triton.jit
def _exact(x, table, row, word, real, width, BLOCK_E: tl.constexpr):
    """The exact best of some words for a row: its score as two float64, and its id."""
    high = tl.zeros((word.shape[0], BLOCK_E), tl.float64)
    low = tl.zeros((word.shape[0], BLOCK_E), tl.float64)
    for start in tl.range(0, width, BLOCK_E):
        point, vectors = _read(x, table, row, word, real, start, width, BLOCK_E)
        product = vectors * point[None, :]
        half = -0.5 * vectors * vectors
        high, low = _add(high, low, product, tl.zeros_like(product))
        high, low = _add(high, low, half, tl.zeros_like(half))
    high, low = tl.reduce((high, low), 1, _add)
    high = tl.where(real, high, float("-inf"))
    low = tl.where(real, low, 0.0)
    return tl.reduce((high, low, word), 0, _greater)


@triton.jit
def _near(x, table, row, first, last, least, error, words, width,
          BLOCK_V: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """The exact best of the words from `first` to `last`; -inf where none comes near `least`.

    float64 scores, off by at most `error`, say which words need an exact one.
    """
    high = tl.full((), float("-inf"), tl.float64)
    low = tl.full((), 0.0, tl.float64)
    found = tl.full((), 0, tl.int64)
    for start in tl.range(first, last, BLOCK_V):
        word = start + tl.arange(0, BLOCK_V).to(tl.int64)
        real = (word < words) & (word < last)
        scores = tl.zeros((BLOCK_V,), tl.float64)
        for e in tl.range(0, width, BLOCK_E):
            point, vectors = _read(x, table, row, word, real, e, width, BLOCK_E)
            scores += tl.sum(vectors * (point[None, :] - 0.5 * vectors), 1)
        scores = tl.where(real, scores, float("-inf"))
        if tl.max(scores) >= tl.maximum(least, high) - 2 * error:
            near = real & (scores >= tl.maximum(least, high) - 2 * error)
            high_, low_, word_ = _exact(x, table, row, word, near, width, BLOCK_E)
            high, low, found = _greater(high, low, found, high_, low_, word_)
    return high, low, found


@triton.jit
def _write(
    ids, row, word,
    x0_hat, table, x_t, x_s, seed, a, b, sigma, width, STEP: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The row's token, and with STEP the sampler's next x = a e + b x_t + sigma noise.

    A row that is not finite has no next x: 0 x0_hat, which is added, is NaN there and 0 elsewhere.
    """
    tl.store(ids + row, word)
    if STEP:
        key = tl.load(seed)
        for start in tl.range(0, width, BLOCK_E):
            at = start + tl.arange(0, BLOCK_E)
            inside = at < width
            vector = tl.load(table + word * width + at, mask=inside, other=0.0)
            here = row * width + at
            now = tl.load(x_t + here, mask=inside, other=0.0).to(tl.float32)
            said = tl.load(x0_hat + here, mask=inside, other=0.0).to(tl.float32)
            drawn = tl.randn(key, here.to(tl.int32))
            value = a * vector + b * now + sigma * drawn + 0.0 * said
            tl.store(x_s + here, value.to(x_s.dtype.element_ty), mask=inside)


# ------------------------------------------------------------------------------------ decisions


@triton.jit(do_not_specialize=["words", "columns", "tiles_each"])
def decide(
    x, table, best, second, margins, ids, listed, count, bests,
    x_t, x_s, seed, a, b, sigma,
    words, width, columns, tiles_each,
    COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr, ACROSS: tl.constexpr, BLOCK_E: tl.constexpr,
    ROUNDS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One row: its token, or its place on the list with the best score found so far."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    there = column < columns
    first = tl.load(best + row * columns + column, mask=there, other=float("-inf"))
    other = tl.load(second + row * columns + column, mask=there, other=float("-inf"))
    margin = tl.load(margins + row)
    top = tl.max(first)
    least = top - 2.04 * (margin + 3.06e-5 * (tl.abs(top) + margin))  # 2^-15, packed away
    left = first >= least
    reached = tl.sum(left.to(tl.int32))
    unsure = tl.max((other >= least).to(tl.int32)) | (reached > ROUNDS).to(tl.int32)
    unsure = tl.where(margin == float("inf"), 1, unsure)
    high = tl.full((), float("-inf"), tl.float64)
    low = tl.full((), 0.0, tl.float64)
    found = tl.full((), 0, tl.int64)
    inside_bucket = tl.arange(0, 8)
    for _ in tl.range(0, tl.minimum(reached, ROUNDS)):
        value, at = tl.max(tl.where(left, first, float("-inf")), 0, return_indices=True)
        left = left & (column != at)
        tile = (value.to(tl.int32, bitcast=True) & 255) + at // (BLOCK_N // 8) * tiles_each
        within = at % (BLOCK_N // 8)
        beside = within // 4 % ACROSS
        slab = within // (4 * ACROSS) * 4 + inside_bucket // 2
        offset = 8 * (ACROSS * slab + beside) + within % 4 * 2 + inside_bucket % 2
        word = (tile * BLOCK_N + offset).to(tl.int64)
        high_, low_, word_ = _exact(x, table, row, word, word < words, width, BLOCK_E)
        high, low, found = _greater(high, low, found, high_, low_, word_)
    finite = margin == margin
    if finite & (unsure == 1):
        slot = tl.atomic_add(count, 1)
        tl.store(listed + slot, row)
        tl.store(bests + row, high)
    else:
        _write(ids, row, tl.where(finite, found, 0), x, table, x_t, x_s, seed, a, b, sigma, width,
               STEP, BLOCK_E)  # fmt: skip


@triton.jit(do_not_specialize=["words", "slots", "pieces"])
def rescan(
    x, table, listed, count, bests, highs, lows, founds,
    ids, x_t, x_s, seed, a, b, sigma,
    words, width, radius, slots, pieces,
    BLOCK_V: tl.constexpr, BLOCK_E: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Rows on the list, a piece of the words at a time; those beyond `slots` in one go."""
    total = tl.load(count)
    shared = tl.minimum(total, slots)
    each = tl.cdiv(words, pieces)
    for item in tl.range(tl.program_id(0), shared * pieces + (total - shared), tl.num_programs(0)):
        alone = item >= shared * pieces
        slot = tl.where(alone, item - shared * pieces + shared, item // pieces)
        row = tl.load(listed + slot)
        first = tl.where(alone, 0, item % pieces * each)
        last = tl.where(alone, words, tl.minimum(first + each, words))
        square = tl.full((), 0.0, tl.float64)
        for e in tl.range(0, width, BLOCK_E):
            at = e + tl.arange(0, BLOCK_E)
            point = tl.load(x + row * width + at, mask=at < width, other=0.0).to(tl.float64)
            square += tl.sum(point * point)
        error = (width + 8) * 2.220446049250313e-16 * (tl.sqrt(square) + radius) * radius
        least = tl.load(bests + row)
        high, low, found = _near(x, table, row, first, last, least, error, words, width,
                                 BLOCK_V, BLOCK_E)  # fmt: skip
        if alone:
            _write(ids, row, found, x, table, x_t, x_s, seed, a, b, sigma, width, STEP, BLOCK_E)
        else:
            tl.store(highs + item, high)
            tl.store(lows + item, low)
            tl.store(founds + item, found)


@triton.jit(do_not_specialize=["slots", "pieces"])
def merge(
    x, table, listed, count, highs, lows, founds,
    ids, x_t, x_s, seed, a, b, sigma,
    width, slots, pieces,
    PIECES: tl.constexpr, BLOCK_E: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The tokens of the rows whose words were shared out."""
    piece = tl.arange(0, PIECES)
    for slot in tl.range(tl.program_id(0), tl.minimum(tl.load(count), slots), tl.num_programs(0)):
        at = slot * pieces + piece
        there = piece < pieces
        high = tl.load(highs + at, mask=there, other=float("-inf"))
        low = tl.load(lows + at, mask=there, other=0.0)
        found = tl.load(founds + at, mask=there, other=0)
        _, _, word = tl.reduce((high, low, found), 0, _greater)
        _write(ids, tl.load(listed + slot), word, x, table, x_t, x_s, seed, a, b, sigma, width,
               STEP, BLOCK_E)  # fmt: skip
