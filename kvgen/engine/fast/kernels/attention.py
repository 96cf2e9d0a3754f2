"""Attention of a few query rows over the blocked cache, segment by segment.

K lies in blocks of 64 positions [D][64], so that the lanes of a vector are positions and a score
needs no sum across lanes; V lies row by row, padded to whole vectors. The rows are the query heads
of one key/value head (decode) or neighbouring tokens of one query head (prefill). Memory does not
grow with the context: softmax runs along with a running maximum (arXiv:1805.02867).
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.elementwise import soft_cap
from kvgen.engine.fast.kernels.int8_rows import scale_scores, scale_weights
from kvgen.engine.fast.kernels.products import tile
from kvgen.engine.fast.kernels.rounded import add_rounded, score_rounded
from kvgen.engine.fast.kernels.simd import (
    add,
    exp,
    greatest_of,
    iota,
    load,
    maximum,
    mul,
    splat,
    store,
    sub,
    sum_of,
    where_less,
    zeros,
)
from kvgen.engine.fast.layout import BLOCK, LANES, SEGMENT, HeadCache, Int8Head, Range, Rows

LOWEST = np.float32(-1e30)


@kernel
def score_tile(n_rows, a, b, c, n):
    """C = A [rows, n] B for 64 columns: the scores of all rows against one block of keys."""
    noinline()
    if n_rows == 1:
        tile(1, 4, 2, a, b, c, n, True)
    elif n_rows == 2:
        tile(2, 4, 1, a, b, c, n, True)
    elif n_rows == 3:
        tile(3, 4, 1, a, b, c, n, True)
    elif n_rows == 4:
        tile(4, 4, 1, a, b, c, n, True)
    else:
        tile(6, 4, 1, a, b, c, n, True)


@kernel
def four_columns(n_rows, a, b, c, n):
    """C += A [rows, n] B for 64 columns: weights times values."""
    noinline()
    if n_rows == 1:
        tile(1, 4, 2, a, b, c, n, False)
    elif n_rows == 2:
        tile(2, 4, 1, a, b, c, n, False)
    elif n_rows == 3:
        tile(3, 4, 1, a, b, c, n, False)
    elif n_rows == 4:
        tile(4, 4, 1, a, b, c, n, False)
    else:
        tile(6, 4, 1, a, b, c, n, False)


@kernel
def three_columns(n_rows, a, b, c, n):
    """C += A [rows, n] B for 48 columns: weights times values."""
    noinline()
    if n_rows == 1:
        tile(1, 3, 4, a, b, c, n, False)
    elif n_rows == 2:
        tile(2, 3, 2, a, b, c, n, False)
    elif n_rows == 3:
        tile(3, 3, 1, a, b, c, n, False)
    else:
        tile(6, 3, 1, a, b, c, n, False)


@kernel
def one_column(n_rows, a, b, c, n):
    """C += A [rows, n] B for 16 columns: weights times values."""
    noinline()
    if n_rows == 1:
        tile(1, 1, 8, a, b, c, n, False)
    elif n_rows <= 3:
        tile(3, 1, 3, a, b, c, n, False)
    else:
        tile(6, 1, 2, a, b, c, n, False)


@kernel
def weigh(scores, row, n, seen, cap, highest, total):
    """Turn n scores of a row and segment into exp(score - peak), those outside `seen` into 0.

    Returns the new running peak and total, and the factor for what was summed before.
    """
    noinline()
    start, low, high = row * SEGMENT, seen.begin, seen.end
    peak = splat(LOWEST)
    for i in range(0, n, LANES):
        score = load(scores, start + i)
        if cap != 0:
            score = soft_cap(score, cap)
        if i < low or i + LANES > high:
            column = add(iota(), splat(np.float32(i)))
            score = where_less(column, splat(np.float32(low)), splat(LOWEST), score)
            score = where_less(column, splat(np.float32(high)), score, splat(LOWEST))
        store(scores, start + i, score)
        peak = maximum(peak, score)
    new = max(highest, greatest_of(peak))
    everywhere, sums = splat(new), zeros()
    for i in range(0, n, LANES):
        weight = exp(sub(load(scores, start + i), everywhere))
        if i < low or i + LANES > high:
            column = add(iota(), splat(np.float32(i)))
            weight = where_less(column, splat(np.float32(low)), zeros(), weight)
            weight = where_less(column, splat(np.float32(high)), weight, zeros())
        store(scores, start + i, weight)
        sums = add(sums, weight)
    shrink = np.float32(np.exp(highest - new))
    return new, total * shrink + sum_of(sums), shrink


@kernel
def seen_between(n_rows, queries, begin, end):
    """How many positions of begin:end the rows see, all together."""
    n_seen = 0
    for row in range(n_rows):
        n_seen += max(0, min(queries.ends[row], end) - max(queries.firsts[row], begin))
    return n_seen


@kernel
def score_exactly(n_rows, queries, head, block, scores):
    """Scores of all rows against one block of keys as they are kept."""
    D = head.head_dim
    score_tile(n_rows, Rows(queries.q, 0, D), Rows(head.keys, block * D, BLOCK), scores, D)


@kernel
def add_exactly(n_rows, queries, head, begin, end):
    """Add the weighted values begin:end, as they are kept, to the sums of all rows."""
    pitch, n = head.pitch, end - begin
    weights, start, out = Rows(queries.scores, 0, SEGMENT), begin * pitch, queries.out
    column = 0
    while column + 4 * LANES <= pitch:
        values = Rows(head.values, start + column, pitch)
        four_columns(n_rows, weights, values, Rows(out, column, pitch), n)
        column += 4 * LANES
    if column + 3 * LANES <= pitch:
        values = Rows(head.values, start + column, pitch)
        three_columns(n_rows, weights, values, Rows(out, column, pitch), n)
        column += 3 * LANES
    while column < pitch:
        values = Rows(head.values, start + column, pitch)
        one_column(n_rows, weights, values, Rows(out, column, pitch), n)
        column += LANES


def score_block(n_rows, queries, head, block, scores):
    """Scores of all rows against the block of keys that begins at a position."""
    raise NotImplementedError("compiled code only")


@overload(score_block)
def _score_block(n_rows, queries, head, block, scores):
    if head.instance_class is HeadCache:
        return lambda n_rows, queries, head, block, scores: score_exactly(
            n_rows, queries, head, block, scores
        )
    if head.instance_class is Int8Head:

        def of_int8(n_rows, queries, head, block, scores):
            score_exactly(n_rows, queries, head, block, scores)
            scale_scores(n_rows, scores, head.key_scales, block)

        return of_int8
    return lambda n_rows, queries, head, block, scores: score_rounded(head, block, scores)


def add_values(n_rows, queries, head, begin, end):
    """Add the weighted values begin:end to the sums of all rows."""
    raise NotImplementedError("compiled code only")


@overload(add_values)
def _add_values(n_rows, queries, head, begin, end):
    if head.instance_class is HeadCache:
        return lambda n_rows, queries, head, begin, end: add_exactly(
            n_rows, queries, head, begin, end
        )
    if head.instance_class is Int8Head:

        def of_int8(n_rows, queries, head, begin, end):
            scale_weights(n_rows, queries.scores, head.value_scales, begin, end)
            add_exactly(n_rows, queries, head, begin, end)

        return of_int8
    return lambda n_rows, queries, head, begin, end: add_rounded(n_rows, queries, head, begin, end)


@kernel
def attend(n_rows, queries, head, positions, cap):
    """Unnormalised attention of n_rows <= 6 query rows over some positions of a head's cache.

    Row r sees the positions firsts[r]:ends[r]. With e_j = exp(score_j - peaks[r]), it writes
    out[r] = sum_j e_j v_j and totals[r] = sum_j e_j. Where keys and values are read, those that the
    rows see are counted into `queries.reads`.
    """
    noinline()
    scores, out, peaks, totals = queries.scores, queries.out, queries.peaks, queries.totals
    pitch = head.pitch
    keys_read, values_read = 0, 0
    for row in range(n_rows):
        peaks[row], totals[row] = LOWEST, np.float32(0)
    for i in range(n_rows * pitch):
        out[i] = np.float32(0)
    segment = positions.begin // BLOCK * BLOCK
    while segment < positions.end:
        stop = min(positions.end, segment + SEGMENT)
        block = segment
        while block < stop:
            score_block(n_rows, queries, head, block, Rows(scores, block - segment, SEGMENT))
            keys_read += seen_between(n_rows, queries, block, block + BLOCK)
            block += BLOCK
        for row in range(n_rows):
            seen = Range(queries.firsts[row] - segment, queries.ends[row] - segment)
            peak, total, shrink = weigh(
                scores, row, block - segment, seen, cap, peaks[row], totals[row]
            )
            peaks[row], totals[row] = peak, total
            if shrink != 1:
                factor = splat(shrink)
                for i in range(row * pitch, (row + 1) * pitch, LANES):
                    store(out, i, mul(load(out, i), factor))
        add_values(n_rows, queries, head, segment, stop)
        values_read += seen_between(n_rows, queries, segment, stop)
        segment += SEGMENT
    queries.reads[0], queries.reads[1] = keys_read, values_read
