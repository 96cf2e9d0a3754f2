"""Sixteen float32 numbers as one value of compiled code.

Written as generic LLVM vector instructions, which the compiler turns into what the CPU has: one
register of AVX-512, two of AVX2, four of NEON. Arrays are flat and take an offset. Nothing is
checked: the caller makes sure that sixteen numbers are there.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvgen.engine.fast.kernels.float16 import converts_halves, from_halves, to_halves
from kvgen.engine.fast.kernels.vector_types import (
    BYTES,
    FLOAT_VECTOR,
    FLOATS,
    HALVES,
    INDEX,
    SHORTS,
    WORDS,
    all_floats,
    all_words,
    pointer_to,
    spread,
)
from kvgen.engine.fast.layout import LANES

# Sums may be done in another order and contracted, as in scalar kernels (compiler.py).
_FAST = ("nsz", "arcp", "contract", "afn", "reassoc")


@intrinsic
def load(_: Any, array: Any, offset: Any) -> Any:
    """Sixteen numbers of float32, uint16 (bits of bf16), int16 (bits of f16) or int8."""
    kind = array.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        return load_from(context, builder, pointer, kind)

    return FLOAT_VECTOR(array, types.intp), generate


def load_from(context: Any, builder: Any, pointer: Any, kind: Any) -> Any:
    """The instructions that load sixteen stored numbers at a pointer as float32, words as such."""

    def raw(vector: ir.VectorType, align: int) -> Any:
        return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=align)

    if kind == types.float32:
        return raw(FLOATS, 4)
    if kind == types.uint32:
        return raw(WORDS, 4)
    if kind == types.uint16:
        bits = builder.shl(builder.zext(raw(SHORTS, 2), WORDS), all_words(16))
        return builder.bitcast(bits, FLOATS)
    if kind == types.int8:
        return builder.sitofp(builder.sext(raw(BYTES, 1), WORDS), FLOATS)
    assert kind == types.int16
    if converts_halves(context):
        return builder.fpext(raw(HALVES, 2), FLOATS)
    return from_halves(builder, raw(SHORTS, 2))


@intrinsic
def prefetch(_: Any, array: Any, offset: Any) -> Any:
    """Begin to read the line of the CPU's cache that holds a number; it need not be ours."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        pointer = builder.bitcast(_pointer(context, builder, signature, arguments), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, keep, data = number(0), number(3), number(1)
        builder.call(function, [pointer, to_read, keep, data])
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


@intrinsic
def store(_: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Store sixteen numbers as float32, or rounded as int16 (bits of f16) or int8."""
    kind = array.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        value = arguments[2]
        if kind == types.float32:
            builder.store(value, builder.bitcast(pointer, FLOATS.as_pointer()), align=4)
        elif kind == types.int8:
            whole = _call(builder, "llvm.rint", value)
            small = builder.trunc(builder.fptosi(whole, WORDS), BYTES)
            builder.store(small, builder.bitcast(pointer, BYTES.as_pointer()), align=1)
        elif converts_halves(context):
            halves = builder.fptrunc(value, HALVES)
            builder.store(halves, builder.bitcast(pointer, HALVES.as_pointer()), align=2)
        else:
            shorts = to_halves(builder, value)
            builder.store(shorts, builder.bitcast(pointer, SHORTS.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.none(array, types.intp, FLOAT_VECTOR), generate


@intrinsic
def store_one(_: Any, array: Any, offset: Any, number: Any) -> Any:
    """Store one float32 as float32, or rounded as int16 (bits of f16)."""
    kind = array.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        if kind == types.float32:
            builder.store(arguments[2], pointer)
        else:
            value = spread(builder, arguments[2])
            first = ir.Constant(INDEX, 0)
            if converts_halves(context):
                half = builder.extract_element(builder.fptrunc(value, HALVES), first)
                builder.store(half, builder.bitcast(pointer, ir.HalfType().as_pointer()))
            else:
                builder.store(builder.extract_element(to_halves(builder, value), first), pointer)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.float32), generate


@intrinsic
def zeros(_: Any) -> Any:
    """Sixteen times 0."""
    return FLOAT_VECTOR(), lambda *_: ir.Constant(FLOATS, None)


@intrinsic
def splat(_: Any, number: Any) -> Any:
    """Sixteen times the same float32."""
    return FLOAT_VECTOR(types.float32), lambda _, builder, __, arguments: spread(
        builder, arguments[0]
    )


@intrinsic
def iota(_: Any) -> Any:
    """0, 1, 2, ... 15."""
    numbers = ir.Constant(FLOATS, [float(lane) for lane in range(LANES)])
    return FLOAT_VECTOR(), lambda *_: numbers


@intrinsic
def add(_: Any, one: Any, other: Any) -> Any:
    """one + other."""
    return _binary("fadd")


@intrinsic
def sub(_: Any, one: Any, other: Any) -> Any:
    """one - other."""
    return _binary("fsub")


@intrinsic
def mul(_: Any, one: Any, other: Any) -> Any:
    """one * other."""
    return _binary("fmul")


@intrinsic
def div(_: Any, one: Any, other: Any) -> Any:
    """one / other."""
    return _binary("fdiv")


@intrinsic
def fma(_: Any, one: Any, other: Any, addend: Any) -> Any:
    """one * other + addend, rounded once where the CPU can."""
    return FLOAT_VECTOR(
        FLOAT_VECTOR, FLOAT_VECTOR, FLOAT_VECTOR
    ), lambda _, builder, __, arguments: multiply_add(builder, *arguments)


@intrinsic
def maximum(_: Any, one: Any, other: Any) -> Any:
    """The greater number of each lane."""
    return FLOAT_VECTOR(FLOAT_VECTOR, FLOAT_VECTOR), lambda _, builder, __, arguments: _call(
        builder, "llvm.maxnum", *arguments
    )


@intrinsic
def magnitude(_: Any, vector: Any) -> Any:
    """Each lane without its sign."""
    return FLOAT_VECTOR(FLOAT_VECTOR), lambda _, builder, __, arguments: _call(
        builder, "llvm.fabs", *arguments
    )


@intrinsic
def rounded(_: Any, vector: Any) -> Any:
    """Each lane rounded to the nearest integer, halves to the even one."""
    return FLOAT_VECTOR(FLOAT_VECTOR), lambda _, builder, __, arguments: _call(
        builder, "llvm.rint", *arguments
    )


@intrinsic
def square_root(_: Any, vector: Any) -> Any:
    """The square root of each lane."""
    return FLOAT_VECTOR(FLOAT_VECTOR), lambda _, builder, __, arguments: _call(
        builder, "llvm.sqrt", *arguments
    )


@intrinsic
def where_less(_: Any, one: Any, other: Any, then: Any, otherwise: Any) -> Any:
    """`then` in the lanes where one < other, `otherwise` in the others."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *arguments[:2]), *arguments[2:])

    return FLOAT_VECTOR(FLOAT_VECTOR, FLOAT_VECTOR, FLOAT_VECTOR, FLOAT_VECTOR), generate


@intrinsic
def sum_of(_: Any, vector: Any) -> Any:
    """The sum of all lanes."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        scalar = ir.FloatType()
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(scalar, [scalar, FLOATS]),
            "llvm.vector.reduce.fadd.v16f32",
        )
        return builder.call(function, [ir.Constant(scalar, -0.0), arguments[0]], fastmath=_FAST)

    return types.float32(FLOAT_VECTOR), generate


@intrinsic
def greatest_of(_: Any, vector: Any) -> Any:
    """The greatest lane."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.FloatType(), [FLOATS]),
            "llvm.vector.reduce.fmax.v16f32",
        )
        return builder.call(function, [arguments[0]])

    return types.float32(FLOAT_VECTOR), generate


@intrinsic
def exp(_: Any, vector: Any) -> Any:
    """e to the power of each lane, to about 1e-7 of it; below -87 it is 1e-38 or less.

    x = n ln 2 + r, e^x = 2^n e^r with a polynomial for e^r (Cephes, expf.c); NaN stays NaN.
    """

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        x = arguments[0]
        # Not by minnum: that would turn NaN into a number.
        for bound, operator in ((-87.0, "<"), (88.0, ">")):
            limit = all_floats(bound)
            x = builder.select(builder.fcmp_ordered(operator, x, limit), limit, x)
        n = _call(builder, "llvm.rint", builder.fmul(x, all_floats(1.4426950408889634)))
        rest = multiply_add(builder, n, all_floats(-0.693359375), x)
        rest = multiply_add(builder, n, all_floats(2.12194440e-4), rest)
        power = all_floats(1.9875691500e-4)
        for coefficient in (
            1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
            1.0, 1.0,
        ):  # fmt: skip
            power = multiply_add(builder, power, rest, all_floats(coefficient))
        exponent = builder.add(builder.fptosi(n, WORDS), all_words(127))
        scale = builder.bitcast(builder.shl(exponent, all_words(23)), FLOATS)
        return builder.fmul(power, scale)

    return FLOAT_VECTOR(FLOAT_VECTOR), generate


def multiply_add(builder: Any, one: Any, other: Any, addend: Any) -> Any:
    """one * other + addend: an instruction where the target has one, never a library call."""
    return _call(builder, "llvm.fmuladd", one, other, addend)


def _binary(operation: str) -> Any:
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return getattr(builder, operation)(*arguments, flags=_FAST)

    return FLOAT_VECTOR(FLOAT_VECTOR, FLOAT_VECTOR), generate


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    kind = ir.FunctionType(FLOATS, [FLOATS] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, kind, f"{name}.v16f32")
    return builder.call(function, arguments)


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return pointer_to(context, builder, signature.args[0], *arguments[:2])
