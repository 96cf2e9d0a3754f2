"""Attention of a few query rows over the blocked cache, segment by segment.

K lies in blocks of 64 positions [D][64], so that the lanes of a vector are positions and a score
needs no sum across lanes; V lies row by row, padded to whole vectors. The rows are the query heads
that share a key/value head (decode) or neighbouring queries of one head (prefill). Memory does not
grow with the context: softmax runs along with a running maximum (arXiv:1805.02867).
"""

from __future__ import annotations

import numpy as np

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.elementwise import soft_cap
from kvgen.engine.fast.kernels.products import tile
from kvgen.engine.fast.kernels.simd import (
    LANES,
    add,
    exp,
    greatest_of,
    load,
    maximum,
    mul,
    splat,
    steps,
    store,
    sub,
    sum_of,
    where_less,
    zeros,
)

BLOCK = 64  # positions of a block of keys
SEGMENT = 256  # positions whose scores are held at once
LOWEST = np.float32(-1e30)


def row_pitch(head_dim: int) -> int:
    """The distance of rows of V in the cache: whole vectors."""
    return -(-head_dim // LANES) * LANES


@kernel
def score_tile(n_rows, q, D, keys, start, scores, column):
    """Scores of all rows against one block of keys, into scores[:, column : column + 64]."""
    noinline()
    if n_rows == 1:
        tile(1, 4, q, 0, D, keys, start, BLOCK, D, scores, column, SEGMENT, True)
    elif n_rows == 2:
        tile(2, 4, q, 0, D, keys, start, BLOCK, D, scores, column, SEGMENT, True)
    elif n_rows == 3:
        tile(3, 4, q, 0, D, keys, start, BLOCK, D, scores, column, SEGMENT, True)
    elif n_rows == 4:
        tile(4, 4, q, 0, D, keys, start, BLOCK, D, scores, column, SEGMENT, True)
    else:
        tile(6, 4, q, 0, D, keys, start, BLOCK, D, scores, column, SEGMENT, True)


@kernel
def four_columns(n_rows, weights, n, values, start, pitch, out, column):
    """out[:, column : column + 64] += weights [rows, n] times values."""
    noinline()
    if n_rows == 1:
        tile(1, 4, weights, 0, SEGMENT, values, start, pitch, n, out, column, pitch, False)
    elif n_rows == 2:
        tile(2, 4, weights, 0, SEGMENT, values, start, pitch, n, out, column, pitch, False)
    elif n_rows == 3:
        tile(3, 4, weights, 0, SEGMENT, values, start, pitch, n, out, column, pitch, False)
    elif n_rows == 4:
        tile(4, 4, weights, 0, SEGMENT, values, start, pitch, n, out, column, pitch, False)
    else:
        tile(6, 4, weights, 0, SEGMENT, values, start, pitch, n, out, column, pitch, False)


@kernel
def one_column(n_rows, weights, n, values, start, pitch, out, column):
    """out[:, column : column + 16] += weights [rows, n] times values."""
    noinline()
    if n_rows == 1:
        tile(1, 1, weights, 0, SEGMENT, values, start, pitch, n, out, column, pitch, False)
    elif n_rows <= 3:
        tile(3, 1, weights, 0, SEGMENT, values, start, pitch, n, out, column, pitch, False)
    else:
        tile(6, 1, weights, 0, SEGMENT, values, start, pitch, n, out, column, pitch, False)


@kernel
def weigh(scores, row, n, low, high, cap, highest, total):
    """Scores of one row and segment into exp(score - peak); only columns low:high are seen.

    Gives the new running peak and total, and the factor for what was summed before.
    """
    noinline()
    start = row * SEGMENT
    peak = splat(LOWEST)
    for i in range(0, n, LANES):
        score = load(scores, start + i)
        if cap != 0:
            score = soft_cap(score, cap)
        if i < low or i + LANES > high:
            place = add(steps(), splat(np.float32(i)))
            score = where_less(place, splat(np.float32(low)), splat(LOWEST), score)
            score = where_less(place, splat(np.float32(high)), score, splat(LOWEST))
        store(scores, start + i, score)
        peak = maximum(peak, score)
    new = max(highest, greatest_of(peak))
    away, sums = splat(new), zeros()
    for i in range(0, n, LANES):
        weight = exp(sub(load(scores, start + i), away))
        if i < low or i + LANES > high:
            place = add(steps(), splat(np.float32(i)))
            weight = where_less(place, splat(np.float32(low)), zeros(), weight)
            weight = where_less(place, splat(np.float32(high)), weight, zeros())
        store(scores, start + i, weight)
        sums = add(sums, weight)
    shrink = np.float32(np.exp(highest - new))
    return new, total * shrink + sum_of(sums), shrink


@kernel
def attend(
    n_rows,
    q,
    keys,
    key_start,
    values,
    value_start,
    D,
    pitch,
    begin,
    end,
    firsts,
    ends,
    cap,
    scores,
    out,
    peaks,
    totals,
):
    """Unnormalised attention of n_rows <= 6 rows over the positions begin:end.

    q [6, D] holds the scale already; row r sees the positions firsts[r]:ends[r]. Writes
    out [6, pitch] = sum_j e_j v_j and totals[r] = sum_j e_j with e_j = exp(score_j - peaks[r]).
    """
    noinline()
    for row in range(n_rows):
        peaks[row], totals[row] = LOWEST, np.float32(0)
    for i in range(n_rows * pitch):
        out[i] = np.float32(0)
    segment = begin // BLOCK * BLOCK
    while segment < end:
        stop = min(end, segment + SEGMENT)
        block = segment
        while block < stop:
            score_tile(n_rows, q, D, keys, key_start + block * D, scores, block - segment)
            block += BLOCK
        for row in range(n_rows):
            peak, total, shrink = weigh(
                scores, row, block - segment, firsts[row] - segment, ends[row] - segment, cap,
                peaks[row], totals[row],
            )  # fmt: skip
            peaks[row], totals[row] = peak, total
            if shrink != 1:
                factor = splat(shrink)
                for i in range(row * pitch, (row + 1) * pitch, LANES):
                    store(out, i, mul(load(out, i), factor))
        n, start = stop - segment, value_start + segment * pitch
        column = 0
        while column + 4 * LANES <= pitch:
            four_columns(n_rows, scores, n, values, start + column, pitch, out, column)
            column += 4 * LANES
        while column < pitch:
            one_column(n_rows, scores, n, values, start + column, pitch, out, column)
            column += LANES
        segment += SEGMENT
