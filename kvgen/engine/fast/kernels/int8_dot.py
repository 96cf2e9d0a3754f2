"""int8 weights times float32 activations in integer arithmetic, exact to float32's own rounding.

An activation becomes an integer of 24 bits, as fine as float32 is at the greatest of them, and that
integer three digits of a byte each. One instruction (VNNI) multiplies 64 digits with 64 weights and
adds them up without rounding, so three such products give the whole one:

    x = scale * (65536 d2 + 256 d1 + d0), each digit from -128 to 127
    w . x = scale * (65536 w.d2 + 256 w.d1 + w.d0)

The instruction takes one side without signs. Weights are therefore read as w + 128, and the sums
begin at -128 times the digits, which is the same for every row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.simd import (
    add,
    greatest_of,
    load,
    magnitude,
    maximum,
    mul,
    multiply_add,
    prefetch,
    splat,
    sum_of,
    zeros,
)
from kvgen.engine.fast.kernels.vector_types import (
    BYTE_LINE,
    BYTES,
    FLOAT_VECTOR,
    FLOATS,
    INT_VECTOR,
    WORDS,
    all_floats,
    all_words,
    pointer_to,
)
from kvgen.engine.fast.kernels.weight_access import as_pointer
from kvgen.engine.fast.kernels.x86_intrinsics import add_byte_products
from kvgen.engine.fast.layout import BYTES_AHEAD, LANES, LINE_BYTES, WIDEST_DOT
from kvgen.engine.fast.target import MULTIPLIES_BYTES

HALF_RANGE = 2**23
_ALL_128 = ir.Constant(BYTE_LINE, [128] * LINE_BYTES)


@intrinsic
def no_words(_: Any) -> Any:
    """Sixteen times 0."""
    return INT_VECTOR(), lambda *_: ir.Constant(WORDS, None)


@intrinsic
def add_products(_: Any, totals: Any, digits: Any, start: Any, weights: Any, offset: Any) -> Any:
    """totals + 64 digits times 64 (weights + 128), four products in each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        digits_at = pointer_to(context, builder, signature.args[1], arguments[1], arguments[2])
        weights_at = pointer_to(context, builder, signature.args[3], arguments[3], arguments[4])
        some_weights, some_digits = (
            builder.load(builder.bitcast(pointer, BYTE_LINE.as_pointer()), align=1)
            for pointer in (weights_at, digits_at)
        )
        unsigned = builder.xor(some_weights, _ALL_128)
        return add_byte_products(builder, unsigned, some_digits, arguments[0])

    return INT_VECTOR(INT_VECTOR, digits, types.intp, weights, types.intp), generate


@intrinsic
def minus_128_times(_: Any, totals: Any, digits: Any, start: Any) -> Any:
    """totals - 128 times 64 digits, four of them in each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        digits_at = pointer_to(context, builder, signature.args[1], arguments[1], arguments[2])
        loaded = builder.load(builder.bitcast(digits_at, BYTE_LINE.as_pointer()), align=1)
        added = add_byte_products(builder, _ALL_128, loaded, ir.Constant(WORDS, None))
        return builder.sub(arguments[0], added)

    return INT_VECTOR(INT_VECTOR, digits, types.intp), generate


@intrinsic
def joined(_: Any, low: Any, middle: Any, high: Any) -> Any:
    """low + 256 middle + 65536 high of each lane, as float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        low, middle, high = (builder.sitofp(each, FLOATS) for each in arguments)
        factor = all_floats(256)
        return multiply_add(builder, multiply_add(builder, high, factor, middle), factor, low)

    return FLOAT_VECTOR(INT_VECTOR, INT_VECTOR, INT_VECTOR), generate


@intrinsic
def store_digits(_: Any, digits: Any, offset: Any, distance: Any, vector: Any) -> Any:
    """Round sixteen numbers and store their digits, low to high, `distance` apart."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(FLOATS, [FLOATS]), "llvm.rint.v16f32"
        )
        rest = builder.fptosi(builder.call(rint, [arguments[3]]), WORDS)
        at = pointer_to(context, builder, signature.args[0], arguments[0], arguments[1])
        eight, carry = all_words(8), all_words(128)
        for _piece in range(3):
            small = builder.trunc(rest, BYTES)
            builder.store(small, builder.bitcast(at, BYTES.as_pointer()), align=1)
            rest = builder.ashr(builder.add(rest, carry), eight)  # a digit above 127 counts as < 0
            at = builder.gep(at, [arguments[2]])
        return context.get_dummy_value()

    return types.none(digits, types.intp, types.intp, FLOAT_VECTOR), generate


@kernel
def split_into_digits(x, n, digits):
    """Write x [n] as digits [3, n in whole lines], zeros at their ends; returns the scale."""
    noinline()
    pitch = (n + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES
    whole = n // LANES * LANES
    peak, zero_or_nan = zeros(), zeros()
    for i in range(0, whole, LANES):
        peak = maximum(peak, magnitude(load(x, i)))
        zero_or_nan = add(zero_or_nan, mul(load(x, i), zeros()))
    largest, not_finite = greatest_of(peak), sum_of(zero_or_nan)
    for i in range(whole, n):
        largest = max(largest, abs(x[i]))
        not_finite += x[i] * np.float32(0)
    scale = largest / np.float32(HALF_RANGE - 2**16)  # so that the greatest has three digits
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    factor = splat(inverse)
    for i in range(0, whole, LANES):
        store_digits(digits, i, pitch, mul(load(x, i), factor))
    for i in range(whole, pitch):
        rest = np.int64(np.rint(x[i] * inverse)) if i < n else 0
        for digit in range(3):
            digits[digit * pitch + i] = ((rest + 128) & 255) - 128
            rest = (rest + 128) >> 8
    return scale + not_finite  # NaN where x is not finite


@kernel
def int8_rows(matrix, weight, x, y, rows, digits):
    """Write the rows of W x + bias into y, for W int8 with a scale for each row."""
    noinline()
    n, bias = matrix.n, matrix.bias
    pitch = (n + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES
    scale = split_into_digits(x, n, digits)
    scales = carray(as_pointer(matrix.scales), (rows.end,), np.float32)
    low_start, middle_start, high_start = no_words(), no_words(), no_words()
    for i in range(0, pitch, LINE_BYTES):
        low_start = minus_128_times(low_start, digits, i)
        middle_start = minus_128_times(middle_start, digits, pitch + i)
        high_start = minus_128_times(high_start, digits, 2 * pitch + i)
    row = rows.begin
    while row + 4 <= rows.end:  # four rows load each digit once
        a, b, c, d = row * n, (row + 1) * n, (row + 2) * n, (row + 3) * n
        low_a, middle_a, high_a = low_start, middle_start, high_start
        low_b, middle_b, high_b = low_start, middle_start, high_start
        low_c, middle_c, high_c = low_start, middle_start, high_start
        low_d, middle_d, high_d = low_start, middle_start, high_start
        for i in range(0, pitch, LINE_BYTES):
            j, k = pitch + i, 2 * pitch + i
            for line in range(4):
                prefetch(weight, a + 4 * i + line * LINE_BYTES + BYTES_AHEAD)
            low_a = add_products(low_a, digits, i, weight, a + i)
            middle_a = add_products(middle_a, digits, j, weight, a + i)
            high_a = add_products(high_a, digits, k, weight, a + i)
            low_b = add_products(low_b, digits, i, weight, b + i)
            middle_b = add_products(middle_b, digits, j, weight, b + i)
            high_b = add_products(high_b, digits, k, weight, b + i)
            low_c = add_products(low_c, digits, i, weight, c + i)
            middle_c = add_products(middle_c, digits, j, weight, c + i)
            high_c = add_products(high_c, digits, k, weight, c + i)
            low_d = add_products(low_d, digits, i, weight, d + i)
            middle_d = add_products(middle_d, digits, j, weight, d + i)
            high_d = add_products(high_d, digits, k, weight, d + i)
        first, second = joined(low_a, middle_a, high_a), joined(low_b, middle_b, high_b)
        third, fourth = joined(low_c, middle_c, high_c), joined(low_d, middle_d, high_d)
        y[row] = sum_of(first) * (scale * scales[row]) + bias[row]
        y[row + 1] = sum_of(second) * (scale * scales[row + 1]) + bias[row + 1]
        y[row + 2] = sum_of(third) * (scale * scales[row + 2]) + bias[row + 2]
        y[row + 3] = sum_of(fourth) * (scale * scales[row + 3]) + bias[row + 3]
        row += 4
    while row < rows.end:
        low, middle, high = low_start, middle_start, high_start
        for i in range(0, pitch, LINE_BYTES):
            low = add_products(low, digits, i, weight, row * n + i)
            middle = add_products(middle, digits, pitch + i, weight, row * n + i)
            high = add_products(high, digits, 2 * pitch + i, weight, row * n + i)
        y[row] = sum_of(joined(low, middle, high)) * (scale * scales[row]) + bias[row]
        row += 1


def multiply_int8(matrix, weight, x, y, rows, digits):
    """Run `int8_rows` where weights are int8 and the CPU has the instruction; returns whether."""
    raise NotImplementedError("compiled code only")


@overload(multiply_int8)
def _multiply_int8(matrix, weight, x, y, rows, digits):
    if weight.dtype != types.int8 or not MULTIPLIES_BYTES:
        return lambda matrix, weight, x, y, rows, digits: False

    def multiplied(matrix, weight, x, y, rows, digits):
        if matrix.n <= WIDEST_DOT:
            int8_rows(matrix, weight, x, y, rows, digits)
        return matrix.n <= WIDEST_DOT

    return multiplied
