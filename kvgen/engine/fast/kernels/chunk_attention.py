"""Attention of a chunk: a tile of neighbouring tokens at a time, exact or with rounded operands."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.attention import attend
from kvgen.engine.fast.kernels.chunk_ops import rows_from
from kvgen.engine.fast.kernels.int8_rows import transform_query
from kvgen.engine.fast.kernels.kv_access import (
    captured_rows,
    head_cache,
    kept_queries,
    read_query,
    rounded_head,
)
from kvgen.engine.fast.kernels.rounded import round_block, round_queries
from kvgen.engine.fast.layout import (
    BLOCK,
    CAPTURED_Z,
    FIRST_POSITION,
    N_TOKENS,
    QUERIES,
    READ_K,
    READ_V,
    ROWS,
    Range,
)
from kvgen.engine.fast.target import MULTIPLIES_PAIRS


@kernel
def round_visible(worker, layer, shape, weights, request, own):
    """Round this thread's blocks of the keys and values that the chunk's tokens see."""
    noinline()
    position, T = request.numbers[FIRST_POSITION], request.numbers[N_TOKENS]
    first = max(0, position + 1 - weights.windows[layer]) // BLOCK
    n_blocks = (position + T - 1) // BLOCK + 1 - first
    for item in range(worker.thread, shape.n_kv_heads * n_blocks, worker.n_threads):
        group, block = item // n_blocks, (first + item % n_blocks) * BLOCK
        cache = head_cache(request, shape, layer, group)
        round_block(cache, block, position + T, rounded_head(request, shape, group, own))


@kernel
def attend_exactly(n_rows, place, seen, shape, request, own):
    """Attend to a layer's head as it is kept."""
    cache = head_cache(request, shape, *place)
    attend(n_rows, own.queries, cache, seen, shape.attn_softcap)


@kernel
def attend_rounded(n_rows, place, seen, shape, request, own):
    """Attend to a layer's rounded head."""
    rounded = rounded_head(request, shape, place[1], own)
    round_queries(n_rows, own.queries, rounded)
    attend(n_rows, own.queries, rounded, seen, shape.attn_softcap)


def _is_rounded(packed):
    """Whether the compiled code rounds: with `--prefill fast`, where the CPU can multiply pairs."""
    return MULTIPLIES_PAIRS and not isinstance(packed, types.NoneType)


def round_context(worker, layer, shape, weights, request, packed, own):
    """Round keys and values for the chunk's queries; returns whether it was done."""
    raise NotImplementedError("compiled code only")


@overload(round_context)
def _round_context(worker, layer, shape, weights, request, packed, own):
    if not _is_rounded(packed):
        return lambda worker, layer, shape, weights, request, packed, own: False

    def rounding(worker, layer, shape, weights, request, packed, own):
        round_visible(worker, layer, shape, weights, request, own)
        return True

    return rounding


def attend_to(n_rows, place, seen, shape, request, packed, own):
    """Let the rows in own.queries attend to a head, whose `place` is its layer and its number."""
    raise NotImplementedError("compiled code only")


@overload(attend_to)
def _attend_to(n_rows, place, seen, shape, request, packed, own):
    if _is_rounded(packed):
        return lambda n_rows, place, seen, shape, request, packed, own: attend_rounded(
            n_rows, place, seen, shape, request, own
        )
    return lambda n_rows, place, seen, shape, request, packed, own: attend_exactly(
        n_rows, place, seen, shape, request, own
    )


@kernel
def take_queries(x, first, n_rows, scale, q, head_dim):
    """q [rows, D] = scale times a head of some tokens, which lie feature by feature in x."""
    noinline()
    for i in range(head_dim):
        token = x.start + i * x.pitch + first
        if n_rows == ROWS:  # a known number, which the compiler unrolls
            for r in range(ROWS):
                q[r * head_dim + i] = x.numbers[token + r] * scale
        else:
            for r in range(n_rows):
                q[r * head_dim + i] = x.numbers[token + r] * scale


@kernel
def put_outputs(out, factors, n_rows, shape, z, first):
    """z = the sums of some tokens times their factors, feature by feature."""
    noinline()
    for i in range(shape.head_dim):
        token = z.start + i * z.pitch + first
        if n_rows == ROWS:
            for r in range(ROWS):
                z.numbers[token + r] = out[r * shape.pitch + i] * factors[r]
        else:
            for r in range(n_rows):
                z.numbers[token + r] = out[r * shape.pitch + i] * factors[r]


@kernel
def attend_tile(tile, tokens, shape, weights, request, packed, own):
    """Let neighbouring tokens of one head attend: `tokens` are q, k, v, and where z goes."""
    noinline()
    H, G, D = shape.n_heads, shape.n_kv_heads, shape.head_dim
    qkv, hidden = tokens
    layer, head, first, n_rows = tile.layer, tile.head, tile.first, tile.n_rows
    start = request.numbers[FIRST_POSITION]
    queries, reads = own.queries, own.reads[layer]
    q, out, totals = queries.q, queries.out, queries.totals
    firsts, ends = queries.firsts, queries.ends
    scale, window = weights.scales[layer], weights.windows[layer]
    for r in range(n_rows):
        position = start + first + r
        firsts[r], ends[r] = max(0, position + 1 - window), position + 1
    if request.sequence[QUERIES]:
        kept = kept_queries(request.sequence, shape, layer, head)
        for r in range(n_rows):
            read_query(kept, start + first + r, request, reads, q, r * D, D)
        for i in range(n_rows * D):
            q[i] *= scale
    else:
        take_queries(rows_from(qkv, head * D), first, n_rows, scale, q, D)
    for r in range(n_rows):
        transform_query(q, r * D, D, request.like)
    place, seen = (layer, head // (H // G)), Range(firsts[0], ends[n_rows - 1])
    attend_to(n_rows, place, seen, shape, request, packed, own)
    reads[READ_K] += queries.reads[0]
    reads[READ_V] += queries.reads[1]
    for r in range(n_rows):
        totals[r] = np.float32(1) / totals[r]
    put_outputs(out, totals, n_rows, shape, rows_from(hidden, head * D), first)
    row = weights.captured[layer, head]
    if row >= 0:
        captured = captured_rows(request.sequence[CAPTURED_Z], request.sequence, row, shape)
        for r in range(n_rows):
            offset = (start + first + r) * D
            for i in range(D):
                captured[offset + i] = out[r * shape.pitch + i] * totals[r]
