"""Rows of an int8 cache: how they are written, and what their scales do to scores and weights.

The compiled twin of `kvgen.engine.kept_rows`. A scale belongs to a position, so it multiplies a
score after the product with the key's whole numbers, and a weight before that with the value's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, overload

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.key_blocks import first_number_of_key
from kvgen.engine.fast.kernels.simd import (
    add,
    div,
    fma,
    greatest_of,
    load,
    magnitude,
    maximum,
    mul,
    multiply_add,
    splat,
    store,
    sub,
    sum_of,
    where_less,
    zeros,
)
from kvgen.engine.fast.kernels.vector_types import FLOAT_VECTOR, FLOATS, WORDS
from kvgen.engine.fast.layout import BLOCK, LANES, SEGMENT, Int8Head

_LARGEST = np.float32(127)
_PART = np.float32(1 / 127)
SMALLEST_PEAK = np.float32(1e-30)  # of a row that is not kept as zeros, as in the twin


@intrinsic
def hadamard_lanes(_: Any, vector: Any) -> Any:
    """Sixteen numbers times the Hadamard matrix of that size, its numbers being 1 and -1."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        (total,) = arguments
        for half in (1, 2, 4, 8):  # each lane is added to its partner, or taken from it
            partners = ir.Constant(WORDS, [lane ^ half for lane in range(LANES)])
            signs = ir.Constant(FLOATS, [-1.0 if lane & half else 1.0 for lane in range(LANES)])
            swapped = builder.shuffle_vector(total, ir.Constant(FLOATS, ir.Undefined), partners)
            total = multiply_add(builder, total, signs, swapped)
        return total

    return FLOAT_VECTOR(FLOAT_VECTOR), generate


@kernel
def hadamard(x, start, D):
    """Transform x[start : start + D] in place: `kvgen.engine.kept_rows.hadamard`."""
    noinline()
    size, half = D & -D, 1
    factor = np.float32(1) / np.float32(np.sqrt(np.float32(size)))
    if size < LANES:
        while half < size:
            for begin in range(start, start + D, 2 * half):
                for i in range(begin, begin + half):
                    one, other = x[i], x[i + half]
                    x[i], x[i + half] = one + other, one - other
            half *= 2
        for i in range(start, start + D):
            x[i] *= factor
        return
    everywhere = splat(factor)
    for i in range(start, start + D, LANES):
        store(x, i, mul(hadamard_lanes(load(x, i)), everywhere))
    half = LANES
    while half < size:
        for begin in range(start, start + D, 2 * half):
            for i in range(begin, begin + half, LANES):
                first, second = load(x, i), load(x, i + half)
                store(x, i, add(first, second))
                store(x, i + half, sub(first, second))
        half *= 2


@kernel
def hadamard_tokens(x, D):
    """The same for a head of all tokens of a chunk [D, pitch], a token in each lane."""
    noinline()
    numbers, pitch, size, half = x.numbers, x.pitch, D & -D, 1
    while half < size:
        for begin in range(0, D, 2 * half):
            for i in range(begin, begin + half):
                first, second = x.start + i * pitch, x.start + (i + half) * pitch
                for t in range(0, pitch, LANES):
                    one, other = load(numbers, first + t), load(numbers, second + t)
                    store(numbers, first + t, add(one, other))
                    store(numbers, second + t, sub(one, other))
        half *= 2
    factor = splat(np.float32(1) / np.float32(np.sqrt(np.float32(size))))
    for i in range(x.start, x.start + D * pitch, LANES):
        store(numbers, i, mul(load(numbers, i), factor))


def transform_query(q, start, D, like):
    """Transform one query as the cache keeps keys, whose type is that of `like`."""
    raise NotImplementedError("compiled code only")


@overload(transform_query)
def _transform_query(q, start, D, like):
    if like.dtype.bitwidth == 8:
        return lambda q, start, D, like: hadamard(q, start, D)
    return lambda q, start, D, like: None


@kernel
def scale_and_factor(x, start, n):
    """What one whole number of a row x[start : start + n] stands for, and the factor to get them.

    The scale of a row with NaN or infinity is NaN.
    """
    noinline()
    peaks, zeros_or_nan, whole = zeros(), zeros(), n // LANES * LANES
    for i in range(start, start + whole, LANES):
        some = load(x, i)
        peaks = maximum(peaks, magnitude(some))
        zeros_or_nan = fma(some, zeros(), zeros_or_nan)
    peak, zero_or_nan = greatest_of(peaks), sum_of(zeros_or_nan)
    for i in range(start + whole, start + n):
        peak = max(peak, abs(x[i]))
        zero_or_nan += x[i] * np.float32(0)
    if not peak >= SMALLEST_PEAK:
        return zero_or_nan, np.float32(0)
    return peak * _PART + zero_or_nan, _LARGEST / peak


@kernel
def store_int8_row(k, v, start, head, position):
    """Append one head's k and v, both at `start`; k is transformed in place."""
    noinline()
    D, keys, values = head.head_dim, head.keys, head.values
    hadamard(k, start, D)
    head.key_scales[position], of_key = scale_and_factor(k, start, D)
    head.value_scales[position], of_value = scale_and_factor(v, start, D)
    key_start, value_start = first_number_of_key(position, D), position * head.pitch
    for i in range(D):
        keys[key_start + i * BLOCK] = np.int8(np.rint(k[start + i] * of_key))
    whole, everywhere = D // LANES * LANES, splat(of_value)
    for i in range(0, whole, LANES):
        store(values, value_start + i, mul(load(v, start + i), everywhere))
    for i in range(whole, D):
        values[value_start + i] = np.int8(np.rint(v[start + i] * of_value))


@kernel
def store_int8_keys(k, head, start, n_tokens, row):
    """Append one head's k [D, tokens], transformed in place; `row` has room for a vector."""
    noinline()
    D, keys, scales = head.head_dim, head.keys, head.key_scales
    hadamard_tokens(k, D)
    for t in range(0, n_tokens, LANES):
        peak, zero_or_nan = zeros(), zeros()
        for i in range(D):
            some = load(k.numbers, k.start + i * k.pitch + t)
            peak = maximum(peak, magnitude(some))
            zero_or_nan = fma(some, zeros(), zero_or_nan)
        tiny = splat(SMALLEST_PEAK)
        factor = where_less(peak, tiny, zeros(), div(splat(_LARGEST), peak))
        scale = add(where_less(peak, tiny, zeros(), mul(peak, splat(_PART))), zero_or_nan)
        n, position = min(LANES, n_tokens - t), start + t
        store(row, 0, scale)
        for r in range(n):
            scales[position + r] = row[r]
        together = n == LANES and position % BLOCK + LANES <= BLOCK
        for i in range(D):
            some = mul(load(k.numbers, k.start + i * k.pitch + t), factor)
            if together:
                store(keys, first_number_of_key(position, D) + i * BLOCK, some)
                continue
            store(row, 0, some)
            for r in range(n):
                target = first_number_of_key(position + r, D) + i * BLOCK
                keys[target] = np.int8(np.rint(row[r]))


@kernel
def store_int8_values(v, head, start, n_tokens, row):
    """Append one head's v [D, tokens]; `row` has room for a value in whole vectors."""
    noinline()
    D, pitch, values = head.head_dim, head.pitch, head.values
    for i in range(D, pitch):
        row[i] = np.float32(0)
    for t in range(n_tokens):
        for i in range(D):
            row[i] = v.numbers[v.start + i * v.pitch + t]
        head.value_scales[start + t], factor = scale_and_factor(row, 0, pitch)
        everywhere = splat(factor)
        for i in range(0, pitch, LANES):
            store(values, (start + t) * pitch + i, mul(load(row, i), everywhere))


@kernel
def scale_scores(n_rows, scores, scales, block):
    """Multiply the scores of all rows against a block of keys with the scales of its positions."""
    noinline()
    for i in range(0, BLOCK, LANES):
        scale = load(scales, block + i)
        for row in range(n_rows):
            place = scores.start + row * scores.pitch + i
            store(scores.numbers, place, mul(load(scores.numbers, place), scale))


@kernel
def scale_weights(n_rows, weights, scales, begin, end):
    """Multiply the weights of all rows for the values begin:end with their scales."""
    noinline()
    for i in range(0, end - begin, LANES):
        scale = load(scales, begin + i)
        for row in range(n_rows):
            place = row * SEGMENT + i
            store(weights, place, mul(load(weights, place), scale))


def load_keys(head, offset, position):
    """A feature of sixteen neighbouring positions' keys."""
    raise NotImplementedError("compiled code only")


@overload(load_keys)
def _load_keys(head, offset, position):
    if head.instance_class is Int8Head:
        return lambda head, offset, position: mul(
            load(head.keys, offset), load(head.key_scales, position)
        )
    return lambda head, offset, position: load(head.keys, offset)


def load_value(head, offset, position):
    """Sixteen features of a position's value."""
    raise NotImplementedError("compiled code only")


@overload(load_value)
def _load_value(head, offset, position):
    if head.instance_class is Int8Head:
        return lambda head, offset, position: mul(
            load(head.values, offset), splat(head.value_scales[position])
        )
    return lambda head, offset, position: load(head.values, offset)
