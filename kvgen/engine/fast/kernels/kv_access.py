"""Access to one sequence by address: its cache, its angles, its kept or captured q, captured z.

`Request.sequence` holds the addresses.
"""

from __future__ import annotations

import numpy as np
from numba import carray, types
from numba.extending import overload

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.int8_rows import (
    store_int8_keys,
    store_int8_row,
    store_int8_values,
)
from kvgen.engine.fast.kernels.key_blocks import first_number_of_key
from kvgen.engine.fast.kernels.simd import (
    greatest_of,
    load,
    magnitude,
    maximum,
    store,
    store_one,
    zeros,
)
from kvgen.engine.fast.kernels.weight_access import as_pointer
from kvgen.engine.fast.layout import (
    BLOCK,
    CAPACITY,
    CAPTURE_CAPACITY,
    CAPTURED_STATES,
    COS,
    F16_LARGEST,
    FIRST_POSITION,
    HELD_BEGIN,
    HELD_END,
    HELD_LAYER,
    KEY_SCALES,
    KEYS,
    LANES,
    N_ANGLES,
    N_POSITIONS,
    N_TABLES,
    N_TOKENS,
    QUERIES,
    READ_OLD_Q,
    READ_Q,
    ROUNDED_KEYS,
    ROUNDED_VALUES,
    SIN,
    VALUE_SCALES,
    VALUES,
    HeadCache,
    Int8Head,
    RoundedHead,
)


@kernel
def stored_rows(request, shape, head):
    """The stored keys and values of one key/value head, counted over all layers."""
    D, pitch, capacity = shape.head_dim, shape.pitch, request.sequence[CAPACITY]
    size = request.like.itemsize
    keys_at = request.sequence[KEYS] + head * capacity * D * size
    values_at = request.sequence[VALUES] + head * capacity * pitch * size
    keys = carray(as_pointer(keys_at), (capacity * D,), request.like.dtype)
    values = carray(as_pointer(values_at), (capacity * pitch,), request.like.dtype)
    return keys, values


@kernel
def stored_scales(address, request, head):
    """The scales of the rows of one key/value head, of keys or of values by their address."""
    capacity = request.sequence[CAPACITY]
    return carray(as_pointer(address + 4 * head * capacity), (capacity,), np.float32)


def head_cache(request, shape, layer, group):
    """The keys and values of one key/value head of a layer."""
    raise NotImplementedError("compiled code only")


@overload(head_cache)
def _head_cache(request, shape, layer, group):
    if request.types[request.fields.index("like")].dtype == types.int8:

        def of_int8(request, shape, layer, group):
            head, sequence = layer * shape.n_kv_heads + group, request.sequence
            keys, values = stored_rows(request, shape, head)
            key_scales = stored_scales(sequence[KEY_SCALES], request, head)
            value_scales = stored_scales(sequence[VALUE_SCALES], request, head)
            return Int8Head(keys, values, key_scales, value_scales, shape.head_dim, shape.pitch)

        return of_int8

    def of_floats(request, shape, layer, group):
        keys, values = stored_rows(request, shape, layer * shape.n_kv_heads + group)
        return HeadCache(keys, values, shape.head_dim, shape.pitch)

    return of_floats


@kernel
def rounded_head(request, shape, group, own):
    """Memory for the rounded keys and values of one head of the layer that is at work."""
    pitch, capacity, n_words = shape.pitch, request.sequence[CAPACITY], (shape.head_dim + 1) // 2
    n_keys, n_values = capacity * n_words, capacity // 2 * pitch
    keys_at = request.sequence[ROUNDED_KEYS] + 4 * group * n_keys
    values_at = request.sequence[ROUNDED_VALUES] + 4 * group * n_values
    return RoundedHead(
        carray(as_pointer(keys_at), (n_keys,), np.uint32),
        carray(as_pointer(values_at), (n_values,), np.uint32),
        shape.head_dim, pitch, own.panel.view(np.uint32), own.product.view(np.uint32),
    )  # fmt: skip


@kernel
def angles(sequence, table, position):
    """cos and sin of one table, and the offset of a position's angles."""
    half, n_positions = sequence[N_ANGLES], sequence[N_POSITIONS]
    size = (table + 1) * n_positions * half
    cos = carray(as_pointer(sequence[COS]), (size,), np.float32)
    sin = carray(as_pointer(sequence[SIN]), (size,), np.float32)
    return cos, sin, (table * n_positions + position) * half


@kernel
def lay_out_angles(tokens, pitch, request, cos_sin):
    """Write cos and sin of some tokens, one in each lane, into cos_sin [tables, 2, half, pitch]."""
    noinline()
    half, n_tables = request.sequence[N_ANGLES], request.sequence[N_TABLES]
    for t in range(tokens.begin, tokens.end):
        position = request.numbers[FIRST_POSITION] + min(t, request.numbers[N_TOKENS] - 1)
        for table in range(n_tables):
            cos, sin, angle = angles(request.sequence, table, position)
            start = 2 * table * half
            for i in range(half):
                cos_sin[(start + i) * pitch + t] = cos[angle + i]
                cos_sin[(start + half + i) * pitch + t] = sin[angle + i]


@kernel
def captured_rows(address, sequence, row, shape):
    """The captured q or z of one head, flat [capacity * D]."""
    size = sequence[CAPTURE_CAPACITY] * shape.head_dim
    return carray(as_pointer(address + 4 * row * size), (size,), np.float32)


@kernel
def captured_states(sequence, layer, shape):
    """The captured states that enter a layer, or leave the last one, flat [capacity * C]."""
    size = sequence[CAPTURE_CAPACITY] * shape.d_model
    address = sequence[CAPTURED_STATES] + 4 * layer * size
    return carray(as_pointer(address), (size,), np.float32)


@kernel
def kept_queries(sequence, shape, layer, head):
    """The kept queries of one query head, flat [capacity * D]."""
    size = sequence[CAPACITY] * shape.head_dim
    address = sequence[QUERIES] + 4 * (layer * shape.n_heads + head) * size
    return carray(as_pointer(address), (size,), np.float32)


@kernel
def is_held(sequence, layer, position):
    """Whether a kept query stays as it is instead of being written (`KeyValueCache.held`)."""
    begin, end = sequence[HELD_BEGIN], sequence[HELD_END]
    return layer == sequence[HELD_LAYER] and begin <= position < end


@kernel
def read_query(kept, position, request, reads, q, start, D):
    """q[start:] = the kept query of a position; it is counted into a layer's `reads`."""
    for i in range(D):
        q[start + i] = kept[position * D + i]
    reads[READ_Q] += 1
    if position < request.numbers[FIRST_POSITION]:
        reads[READ_OLD_Q] += 1


@kernel
def store_float_row(k, v, start, head, position):
    """Append one head's k and v as floats; returns whether they fit the cache's type."""
    noinline()
    D, keys, values = head.head_dim, head.keys, head.values
    key_start, value_start = first_number_of_key(position, D), position * head.pitch
    largest = np.float32(0)
    for i in range(D):
        key, value = k[start + i], v[start + i]
        largest = max(largest, max(abs(key), abs(value)))
        store_one(keys, key_start + i * BLOCK, key)
        store_one(values, value_start + i, value)
    return keys.itemsize == 4 or not largest > F16_LARGEST


def store_key_and_value(k, v, start, head, position):
    """Append one head's k and v, both at `start`; returns whether they fit the cache's type.

    Afterwards k may have changed.
    """
    raise NotImplementedError("compiled code only")


@overload(store_key_and_value)
def _store_key_and_value(k, v, start, head, position):
    if head.instance_class is HeadCache:
        return lambda k, v, start, head, position: store_float_row(k, v, start, head, position)

    def as_int8(k, v, start, head, position):
        store_int8_row(k, v, start, head, position)
        return True

    return as_int8


@kernel
def store_keys(k, head, start, n_tokens):
    """Append one head's k [D, tokens] from position `start` on; returns the greatest magnitude."""
    noinline()
    D, keys, largest, peak = head.head_dim, head.keys, np.float32(0), zeros()
    for i in range(D):
        source, t = k.start + i * k.pitch, 0
        while t < n_tokens:
            position = start + t
            target = first_number_of_key(position, D) + i * BLOCK
            if t + LANES <= n_tokens and position % BLOCK + LANES <= BLOCK:
                some = load(k.numbers, source + t)
                peak = maximum(peak, magnitude(some))
                store(keys, target, some)
                t += LANES
            else:
                key = k.numbers[source + t]
                largest = max(largest, abs(key))
                store_one(keys, target, key)
                t += 1
    return max(largest, greatest_of(peak))


@kernel
def store_values(v, head, start, n_tokens, row):
    """Append one head's v [D, tokens] from position `start` on; returns the greatest magnitude.

    `row` has room for a value in whole vectors.
    """
    noinline()
    D, pitch, values, peak = head.head_dim, head.pitch, head.values, zeros()
    for i in range(D, pitch):
        row[i] = np.float32(0)
    for t in range(n_tokens):
        for i in range(D):
            row[i] = v.numbers[v.start + i * v.pitch + t]
        for i in range(0, pitch, LANES):
            some = load(row, i)
            peak = maximum(peak, magnitude(some))
            store(values, (start + t) * pitch + i, some)
    return greatest_of(peak)


def store_keys_and_values(k, v, head, start, n_tokens, row):
    """Append one head's k and v [D, tokens] from position `start` on; returns whether all fit.

    Afterwards k may have changed.
    """
    raise NotImplementedError("compiled code only")


@overload(store_keys_and_values)
def _store_keys_and_values(k, v, head, start, n_tokens, row):
    if head.instance_class is HeadCache:

        def as_floats(k, v, head, start, n_tokens, row):
            keys = store_keys(k, head, start, n_tokens)
            values = store_values(v, head, start, n_tokens, row)
            return head.keys.itemsize == 4 or not max(keys, values) > F16_LARGEST

        return as_floats

    def as_int8(k, v, head, start, n_tokens, row):
        store_int8_keys(k, head, start, n_tokens, row)
        store_int8_values(v, head, start, n_tokens, row)
        return True

    return as_int8
