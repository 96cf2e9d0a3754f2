"""What belongs to one sequence, as kernels find it: its cache, its angles, its captured rows.

A row of `layout.Request.caches` says where all of it lies.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.attention import BLOCK
from kvgen.engine.fast.kernels.simd import store_one
from kvgen.engine.fast.kernels.weight_access import as_pointer
from kvgen.engine.fast.layout import (
    CAPACITY,
    CAPTURE_CAPACITY,
    COS,
    KEYS,
    N_ANGLES,
    N_POSITIONS,
    N_TABLES,
    SIN,
    VALUES,
)

F16_LARGEST = np.float32(65504)


@kernel
def layer_of_cache(cache, like, layer, shape):
    """Keys and values of one layer as flat arrays."""
    G, capacity = shape.n_kv_heads, cache[CAPACITY]
    n_keys, n_values = G * capacity * shape.head_dim, G * capacity * shape.pitch
    size = like.itemsize
    keys = carray(as_pointer(cache[KEYS] + layer * n_keys * size), (n_keys,), like.dtype)
    values = carray(as_pointer(cache[VALUES] + layer * n_values * size), (n_values,), like.dtype)
    return keys, values


@kernel
def angles(cache, table, position):
    """cos and sin of one table, and where a position's angles begin."""
    half, n_positions = cache[N_ANGLES], cache[N_POSITIONS]
    size = (table + 1) * n_positions * half
    cos = carray(as_pointer(cache[COS]), (size,), np.float32)
    sin = carray(as_pointer(cache[SIN]), (size,), np.float32)
    return cos, sin, (table * n_positions + position) * half


@kernel
def lay_out_angles(T, pitch, begin, end, request, turns):
    """cos and sin of the tokens begin:end, a token in each lane: turns [tables, 2, half, pitch]."""
    noinline()
    half, n_tables = request.caches[0, N_ANGLES], request.caches[0, N_TABLES]
    for t in range(begin, end):
        row = min(t, T - 1)
        cache = request.caches[request.slots[row]]
        for table in range(n_tables):
            cos, sin, angle = angles(cache, table, request.positions[row])
            start = 2 * table * half
            for i in range(half):
                turns[(start + i) * pitch + t] = cos[angle + i]
                turns[(start + half + i) * pitch + t] = sin[angle + i]


@kernel
def captured_rows(address, cache, row, shape):
    """The captured q or z of one head, flat [capacity * D]."""
    size = cache[CAPTURE_CAPACITY] * shape.head_dim
    return carray(as_pointer(address + 4 * row * size), (size,), np.float32)


@kernel
def keep_key_and_value(k, v, start, D, keys, values, cache, group, position, pitch):
    """Append one head's k and v, both at `start`; whether all numbers fit the cache's type."""
    noinline()
    capacity = cache[CAPACITY]
    place = (group * capacity + position // BLOCK * BLOCK) * D + position % BLOCK
    row = (group * capacity + position) * pitch
    largest = np.float32(0)
    for i in range(D):
        key, value = k[start + i], v[start + i]
        largest = max(largest, max(abs(key), abs(value)))
        store_one(keys, place + i * BLOCK, key)
        store_one(values, row + i, value)
    return keys.itemsize == 4 or not largest > F16_LARGEST


@kernel
def keep_keys_and_values(
    x, k_start, v_start, step, begin, end, D, keys, values, cache, group, positions, pitch
):
    """Append one head's k and v of the tokens begin:end; whether all numbers fit its type."""
    noinline()
    capacity = cache[CAPACITY]
    largest = np.float32(0)
    for i in range(D):
        for t in range(begin, end):
            key, value = x[k_start + i * step + t], x[v_start + i * step + t]
            largest = max(largest, max(abs(key), abs(value)))
            position = positions[t]
            block = (group * capacity + position // BLOCK * BLOCK) * D
            store_one(keys, block + i * BLOCK + position % BLOCK, key)
            store_one(values, (group * capacity + position) * pitch + i, value)
    return keys.itemsize == 4 or not largest > F16_LARGEST
