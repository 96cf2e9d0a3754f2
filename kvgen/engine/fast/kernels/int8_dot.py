"""int8 weights times float32 activations in whole numbers, exact to float32's own rounding.

An activation becomes a whole number of 24 bits, as fine a step as float32 has at the greatest of
them, and that number three digits of a byte. The CPU multiplies 64 digits with 64 weights at once
and adds them up without rounding (VNNI), so three such products are the whole one:

    x = step * (65536 d2 + 256 d1 + d0), each digit from -128 to 127
    w . x = step * (65536 w.d2 + 256 w.d1 + w.d0)

The instruction wants one side without signs. Weights are therefore read as w + 128, and the sums
begin at -128 times the digits, which is the same for every row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.simd import (
    LANES,
    VECTOR,
    add,
    greatest_of,
    load,
    magnitude,
    maximum,
    mul,
    multiply_add,
    place_of,
    splat,
    sum_of,
    zeros,
)
from kvgen.engine.fast.kernels.weight_access import as_pointer
from kvgen.engine.fast.kernels.x86_intrinsics import MULTIPLIES_BYTES, WIDEST, add_byte_products

BYTES = 64  # multiplied at once
HALF_RANGE = 2**23

_WORDS = ir.VectorType(ir.IntType(32), LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_SMALL = ir.VectorType(ir.IntType(8), LANES)
_MANY = ir.VectorType(ir.IntType(8), BYTES)


class _WordsType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("int32x16")


WORDS = _WordsType()


@register_model(_WordsType)
class _WordsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _WORDS)


@intrinsic
def no_words(_: Any) -> Any:
    """Sixteen times 0."""
    return WORDS(), lambda *_: ir.Constant(_WORDS, None)


@intrinsic
def add_products(_: Any, totals: Any, digits: Any, start: Any, weights: Any, offset: Any) -> Any:
    """totals + 64 digits times 64 (weights + 128), four products in each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        digits_at = place_of(context, builder, signature.args[1], arguments[1], arguments[2])
        weights_at = place_of(context, builder, signature.args[3], arguments[3], arguments[4])
        some_weights, some_digits = (
            builder.load(builder.bitcast(place, _MANY.as_pointer()), align=1)
            for place in (weights_at, digits_at)
        )
        unsigned = builder.xor(some_weights, ir.Constant(_MANY, [128] * BYTES))
        return add_byte_products(builder, unsigned, some_digits, arguments[0])

    return WORDS(WORDS, digits, types.intp, weights, types.intp), generate


@intrinsic
def minus_128_times(_: Any, totals: Any, digits: Any, start: Any) -> Any:
    """totals - 128 times 64 digits, four of them in each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        digits_at = place_of(context, builder, signature.args[1], arguments[1], arguments[2])
        loaded = builder.load(builder.bitcast(digits_at, _MANY.as_pointer()), align=1)
        constant = ir.Constant(_MANY, [128] * BYTES)
        added = add_byte_products(builder, constant, loaded, ir.Constant(_WORDS, None))
        return builder.sub(arguments[0], added)

    return WORDS(WORDS, digits, types.intp), generate


@intrinsic
def joined(_: Any, low: Any, middle: Any, high: Any) -> Any:
    """low + 256 middle + 65536 high of each lane, as float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        low, middle, high = (builder.sitofp(each, _FLOATS) for each in arguments)
        factor = ir.Constant(_FLOATS, [256.0] * LANES)
        return multiply_add(builder, multiply_add(builder, high, factor, middle), factor, low)

    return VECTOR(WORDS, WORDS, WORDS), generate


@intrinsic
def store_digits(_: Any, digits: Any, place: Any, distance: Any, vector: Any) -> Any:
    """Round sixteen numbers and store their digits, low to high, `distance` apart."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), "llvm.rint.v16f32"
        )
        rest = builder.fptosi(builder.call(rint, [arguments[3]]), _WORDS)
        at = place_of(context, builder, signature.args[0], arguments[0], arguments[1])
        eight, carry = (ir.Constant(_WORDS, [number] * LANES) for number in (8, 128))
        for _piece in range(3):
            small = builder.trunc(rest, _SMALL)
            builder.store(small, builder.bitcast(at, _SMALL.as_pointer()), align=1)
            rest = builder.ashr(builder.add(rest, carry), eight)  # a digit above 127 counts as < 0
            at = builder.gep(at, [arguments[2]])
        return context.get_dummy_value()

    return types.none(digits, types.intp, types.intp, VECTOR), generate


@kernel
def split(x, n, digits):
    """x [n] as digits [3, n in whole products], zeros at their ends; gives the step."""
    noinline()
    pitch = (n + BYTES - 1) // BYTES * BYTES
    whole = n // LANES * LANES
    peak, broken = zeros(), zeros()
    for i in range(0, whole, LANES):
        peak = maximum(peak, magnitude(load(x, i)))
        broken = add(broken, mul(load(x, i), zeros()))
    largest, nothing = greatest_of(peak), sum_of(broken)
    for i in range(whole, n):
        largest = max(largest, abs(x[i]))
        nothing += x[i] * np.float32(0)
    step = largest / np.float32(HALF_RANGE - 2**16)  # so that the greatest has three digits
    per_step = np.float32(1) / step if step > 0 else np.float32(0)
    factor = splat(per_step)
    for i in range(0, whole, LANES):
        store_digits(digits, i, pitch, mul(load(x, i), factor))
    for i in range(whole, pitch):
        rest = np.int64(np.rint(x[i] * per_step)) if i < n else 0
        for piece in range(3):
            digits[piece * pitch + i] = ((rest + 128) & 255) - 128
            rest = (rest + 128) >> 8
    return step + nothing  # NaN where x is not finite


@kernel
def byte_rows(matrix, weight, x, n, bias, streamed, y, begin, end, digits):
    """y[begin:end] = the same rows of W x + bias, for W int8 with a scale for each row."""
    noinline()
    pitch = (n + BYTES - 1) // BYTES * BYTES
    step = split(x, n, digits)
    scales = carray(as_pointer(matrix[1]), (end,), np.float32)
    low_start, middle_start, high_start = no_words(), no_words(), no_words()
    for i in range(0, pitch, BYTES):
        low_start = minus_128_times(low_start, digits, i)
        middle_start = minus_128_times(middle_start, digits, pitch + i)
        high_start = minus_128_times(high_start, digits, 2 * pitch + i)
    row = begin
    while not streamed and row + 2 <= end:  # two rows share what is read of the digits
        a, b = row * n, (row + 1) * n
        low, middle, high = low_start, middle_start, high_start
        low_, middle_, high_ = low_start, middle_start, high_start
        for i in range(0, pitch, BYTES):
            low = add_products(low, digits, i, weight, a + i)
            middle = add_products(middle, digits, pitch + i, weight, a + i)
            high = add_products(high, digits, 2 * pitch + i, weight, a + i)
            low_ = add_products(low_, digits, i, weight, b + i)
            middle_ = add_products(middle_, digits, pitch + i, weight, b + i)
            high_ = add_products(high_, digits, 2 * pitch + i, weight, b + i)
        y[row] = sum_of(joined(low, middle, high)) * (step * scales[row]) + bias[row]
        total = sum_of(joined(low_, middle_, high_))
        y[row + 1] = total * (step * scales[row + 1]) + bias[row + 1]
        row += 2
    while row < end:
        low, middle, high = low_start, middle_start, high_start
        for i in range(0, pitch, BYTES):
            low = add_products(low, digits, i, weight, row * n + i)
            middle = add_products(middle, digits, pitch + i, weight, row * n + i)
            high = add_products(high, digits, 2 * pitch + i, weight, row * n + i)
        y[row] = sum_of(joined(low, middle, high)) * (step * scales[row]) + bias[row]
        row += 1


def multiply_bytes(matrix, weight, x, n, bias, streamed, y, begin, end, digits):
    """`byte_rows` where the weights are int8 and the CPU has the instruction; whether it was so."""
    raise NotImplementedError("compiled code only")


@overload(multiply_bytes)
def _multiply_bytes(matrix, weight, x, n, bias, streamed, y, begin, end, digits):
    if weight.dtype != types.int8 or not MULTIPLIES_BYTES:
        return lambda matrix, weight, x, n, bias, streamed, y, begin, end, digits: False

    def multiplied(matrix, weight, x, n, bias, streamed, y, begin, end, digits):
        if n <= WIDEST:
            byte_rows(matrix, weight, x, n, bias, streamed, y, begin, end, digits)
        return n <= WIDEST

    return multiplied
