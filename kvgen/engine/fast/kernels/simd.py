"""Sixteen float32 numbers as one value of compiled code.

Written as generic LLVM vector instructions, so that the compiler makes of it what the CPU has: one
register of AVX-512, two of AVX2, four of NEON. Arrays are flat, places in them are offsets, and
nothing is checked: callers see to it that sixteen numbers are there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from kvgen.engine.fast.kernels.float16 import LANES as LANES
from kvgen.engine.fast.kernels.float16 import converts_halves, from_halves, to_halves

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_INDEX = ir.IntType(32)
# What rounding allows: sums in another order and contracted, as the scalar kernels (compiler.py).
_FAST = ("nsz", "arcp", "contract", "afn", "reassoc")


class _VectorType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("float32x16")


VECTOR = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


@intrinsic
def load(_: Any, array: Any, offset: Any) -> Any:
    """Sixteen numbers of float32, uint16 (bits of bf16), int16 (bits of f16) or int8."""
    kind = array.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature, arguments)
        return load_from(context, builder, place, kind)

    return VECTOR(array, types.intp), generate


def load_from(context: Any, builder: Any, place: Any, kind: Any) -> Any:
    """The instructions that load sixteen stored numbers at a pointer as float32, words as such."""

    def raw(vector: ir.VectorType, align: int) -> Any:
        return builder.load(builder.bitcast(place, vector.as_pointer()), align=align)

    if kind == types.float32:
        return raw(_FLOATS, 4)
    if kind == types.uint32:
        return raw(_WORDS, 4)
    if kind == types.uint16:
        bits = builder.shl(builder.zext(raw(_SHORTS, 2), _WORDS), _words(16))
        return builder.bitcast(bits, _FLOATS)
    if kind == types.int8:
        return builder.sitofp(builder.sext(raw(_BYTES, 1), _WORDS), _FLOATS)
    assert kind == types.int16
    if converts_halves(context):
        return builder.fpext(raw(_HALVES, 2), _FLOATS)
    return from_halves(builder, raw(_SHORTS, 2))


@intrinsic
def store(_: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Store sixteen numbers as float32, or rounded as int16 (bits of f16)."""
    kind = array.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature, arguments)
        value = arguments[2]
        if kind == types.float32:
            builder.store(value, builder.bitcast(place, _FLOATS.as_pointer()), align=4)
        elif converts_halves(context):
            halves = builder.fptrunc(value, _HALVES)
            builder.store(halves, builder.bitcast(place, _HALVES.as_pointer()), align=2)
        else:
            shorts = to_halves(builder, value)
            builder.store(shorts, builder.bitcast(place, _SHORTS.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.none(array, types.intp, VECTOR), generate


@intrinsic
def store_one(_: Any, array: Any, offset: Any, number: Any) -> Any:
    """Store one float32 as float32, or rounded as int16 (bits of f16)."""
    kind = array.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature, arguments)
        if kind == types.float32:
            builder.store(arguments[2], place)
        else:
            value = _splat(builder, arguments[2])
            first = ir.Constant(_INDEX, 0)
            if converts_halves(context):
                half = builder.extract_element(builder.fptrunc(value, _HALVES), first)
                builder.store(half, builder.bitcast(place, ir.HalfType().as_pointer()))
            else:
                builder.store(builder.extract_element(to_halves(builder, value), first), place)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.float32), generate


@intrinsic
def zeros(_: Any) -> Any:
    """Sixteen times 0."""
    return VECTOR(), lambda *_: ir.Constant(_FLOATS, None)


@intrinsic
def splat(_: Any, number: Any) -> Any:
    """Sixteen times the same float32."""
    return VECTOR(types.float32), lambda _, builder, __, arguments: _splat(builder, arguments[0])


@intrinsic
def steps(_: Any) -> Any:
    """0, 1, 2, ... 15."""
    numbers = ir.Constant(_FLOATS, [float(lane) for lane in range(LANES)])
    return VECTOR(), lambda *_: numbers


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
    return VECTOR(VECTOR, VECTOR, VECTOR), lambda _, builder, __, arguments: multiply_add(
        builder, *arguments
    )


@intrinsic
def maximum(_: Any, one: Any, other: Any) -> Any:
    """The greater number of each lane."""
    return VECTOR(VECTOR, VECTOR), lambda _, builder, __, arguments: _call(
        builder, "llvm.maxnum", *arguments
    )


@intrinsic
def magnitude(_: Any, vector: Any) -> Any:
    """Each lane without its sign."""
    return VECTOR(VECTOR), lambda _, builder, __, arguments: _call(builder, "llvm.fabs", *arguments)


@intrinsic
def rounded(_: Any, vector: Any) -> Any:
    """Each lane as the nearest whole number, halves to the even one."""
    return VECTOR(VECTOR), lambda _, builder, __, arguments: _call(builder, "llvm.rint", *arguments)


@intrinsic
def square_root(_: Any, vector: Any) -> Any:
    """The square root of each lane."""
    return VECTOR(VECTOR), lambda _, builder, __, arguments: _call(builder, "llvm.sqrt", *arguments)


@intrinsic
def where_less(_: Any, one: Any, other: Any, then: Any, otherwise: Any) -> Any:
    """`then` in the lanes where one < other, `otherwise` in the others."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *arguments[:2]), *arguments[2:])

    return VECTOR(VECTOR, VECTOR, VECTOR, VECTOR), generate


@intrinsic
def sum_of(_: Any, vector: Any) -> Any:
    """The sum of all lanes."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        scalar = ir.FloatType()
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(scalar, [scalar, _FLOATS]),
            "llvm.vector.reduce.fadd.v16f32",
        )
        return builder.call(function, [ir.Constant(scalar, -0.0), arguments[0]], fastmath=_FAST)

    return types.float32(VECTOR), generate


@intrinsic
def greatest_of(_: Any, vector: Any) -> Any:
    """The greatest lane."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.FloatType(), [_FLOATS]),
            "llvm.vector.reduce.fmax.v16f32",
        )
        return builder.call(function, [arguments[0]])

    return types.float32(VECTOR), generate


@intrinsic
def exp(_: Any, vector: Any) -> Any:
    """e to the power of each lane, to about 1e-7 of it; what lies below -87 gives 1e-38 or less.

    x = n ln 2 + r, e^x = 2^n e^r with a polynomial for e^r (Cephes, expf.c); NaN stays NaN.
    """

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        x = arguments[0]
        # Not by minnum: that would turn NaN into a number.
        for bound, operator in ((-87.0, "<"), (88.0, ">")):
            limit = _floats(bound)
            x = builder.select(builder.fcmp_ordered(operator, x, limit), limit, x)
        n = _call(builder, "llvm.rint", builder.fmul(x, _floats(1.4426950408889634)))
        rest = multiply_add(builder, n, _floats(-0.693359375), x)
        rest = multiply_add(builder, n, _floats(2.12194440e-4), rest)
        power = _floats(1.9875691500e-4)
        for coefficient in (
            1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
            1.0, 1.0,
        ):  # fmt: skip
            power = multiply_add(builder, power, rest, _floats(coefficient))
        exponent = builder.add(builder.fptosi(n, _WORDS), _words(127))
        scale = builder.bitcast(builder.shl(exponent, _words(23)), _FLOATS)
        return builder.fmul(power, scale)

    return VECTOR(VECTOR), generate


def multiply_add(builder: Any, one: Any, other: Any, addend: Any) -> Any:
    """one * other + addend: an instruction where the target has one, never a library call."""
    return _call(builder, "llvm.fmuladd", one, other, addend)


def _binary(operation: str) -> Any:
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return getattr(builder, operation)(*arguments, flags=_FAST)

    return VECTOR(VECTOR, VECTOR), generate


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, kind, f"{name}.v16f32")
    return builder.call(function, arguments)


def place_of(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """A pointer to one number of an array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return place_of(context, builder, signature.args[0], *arguments[:2])


def _splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    vector = builder.insert_element(undefined, number, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(vector, undefined, ir.Constant(_WORDS, None))


def _floats(number: float) -> Any:
    return ir.Constant(_FLOATS, [float(np.float32(number))] * LANES)


def _words(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * LANES)
