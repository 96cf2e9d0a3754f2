"""Attention of `--prefill fast`: queries, keys, weights and values rounded to bfloat16.

The CPU multiplies two pairs of bfloat16 and adds both products in one instruction, so two features
of a key, and two positions of a value, lie in one word. A layer's keys and values are rounded once
for all queries of a chunk. Scores, softmax and sums are float32 as ever.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.int8_rows import load_keys, load_value
from kvgen.engine.fast.kernels.packed import store_pair
from kvgen.engine.fast.kernels.products import tile
from kvgen.engine.fast.kernels.simd import load, zeros
from kvgen.engine.fast.kernels.vector_types import (
    BFLOATS,
    FLOAT_VECTOR,
    SHORTS,
    pointer_to,
)
from kvgen.engine.fast.layout import BLOCK, LANES, ROWS, SEGMENT, Rows


@intrinsic
def store_rounded(_: Any, halves: Any, offset: Any, vector: Any) -> Any:
    """Store sixteen numbers rounded to bfloat16, one behind the other."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = pointer_to(context, builder, signature.args[0], *arguments[:2])
        bits = builder.bitcast(builder.fptrunc(arguments[2], BFLOATS), SHORTS)
        builder.store(bits, builder.bitcast(at, ir.PointerType(SHORTS)), align=2)
        return context.get_dummy_value()

    return types.none(halves, types.intp, FLOAT_VECTOR), generate


@kernel
def words_of(head_dim):
    """Words for the features of a key."""
    return (head_dim + 1) // 2


@kernel
def round_block(head, begin, end, rounded):
    """Round the keys and values of the block that begins at a position, zeros from `end` on."""
    noinline()
    D, pitch, n_words = head.head_dim, head.pitch, words_of(head.head_dim)
    for i in range(n_words):
        source, target = begin * D + 2 * i * BLOCK, begin * n_words + i * BLOCK
        for t in range(0, BLOCK, LANES):
            low, high = load_keys(head, source + t, begin + t), zeros()
            if 2 * i + 1 < D:
                high = load_keys(head, source + BLOCK + t, begin + t)
            store_pair(rounded.keys, target + t, low, high)
    for position in range(begin, begin + BLOCK, 2):
        for i in range(0, pitch, LANES):
            offset = position * pitch + i
            low, high = zeros(), zeros()
            if position < end:
                low = load_value(head, offset, position)
            if position + 1 < end:
                high = load_value(head, offset + pitch, position + 1)
            store_pair(rounded.values, position // 2 * pitch + i, low, high)


@kernel
def round_queries(n_rows, queries, rounded):
    """Round the rows that attend."""
    noinline()
    D, n_words = rounded.head_dim, words_of(rounded.head_dim)
    halves = rounded.q.view(np.uint16)
    for row in range(n_rows):
        for i in range(0, D, LANES):
            store_rounded(halves, 2 * row * n_words + i, load(queries.q, row * D + i))
        if D % 2:
            halves[2 * row * n_words + D] = 0


@kernel
def score_rounded(head, block, scores):
    """Scores of six rows against one block of keys."""
    n_words = words_of(head.head_dim)
    keys = Rows(head.keys, block * n_words, BLOCK)
    tile(ROWS, 4, 1, Rows(head.q, 0, n_words), keys, scores, n_words, True)


@kernel
def add_rounded(n_rows, queries, head, begin, end):
    """Add the weighted values begin:end to the sums of six rows."""
    noinline()
    pitch, n_words = head.pitch, (end - begin + 1) // 2
    halves = head.weights.view(np.uint16)
    for row in range(n_rows):
        for i in range(0, 2 * n_words, LANES):
            store_rounded(halves, row * SEGMENT + i, load(queries.scores, row * SEGMENT + i))
    weights, start, out = Rows(head.weights, 0, SEGMENT // 2), begin // 2 * pitch, queries.out
    column = 0
    while column + 4 * LANES <= pitch:
        values = Rows(head.values, start + column, pitch)
        tile(ROWS, 4, 1, weights, values, Rows(out, column, pitch), n_words, False)
        column += 4 * LANES
    while column < pitch:
        values = Rows(head.values, start + column, pitch)
        tile(ROWS, 1, 2, weights, values, Rows(out, column, pitch), n_words, False)
        column += LANES
