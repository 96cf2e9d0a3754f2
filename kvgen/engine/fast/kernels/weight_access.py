"""Reading stored weights in compiled code: by address, widened to float32 number by number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic, overload

from kvgen.engine.fast.compiler import kernel
from kvgen.engine.fast.layout import Matrix

FRACTION_SHIFT = np.uint32(13)  # float32 has 23 fraction bits, float16 has 10
F16_INFINITY = np.uint32(0x7C00 << 13)
F32_INFINITY = np.uint32(0x7F800000)
EXPONENT_REBASE = np.float32(2.0**112)  # the exponents' biases are 127 and 15


@intrinsic
def as_pointer(_: Any, address: Any) -> Any:
    """An integer address as a pointer, for `numba.carray`."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), generate


def widen(number: Any) -> Any:
    """A stored number as float32: float32, uint16 (bits of bf16), int16 (bits of f16), int8."""
    raise NotImplementedError("compiled code only")


@overload(widen)
def _widen(number):  # Numba compares the signatures
    if number == types.float32:
        return lambda number: number
    if number == types.int8:
        return lambda number: np.float32(number)
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    if number == types.int16:
        # By bits, as not every CPU converts f16: shift the fraction into place and let one exact
        # multiplication move the exponent, subnormals included. Infinity and NaN stay themselves.
        def from_f16(number):
            bits = np.uint32(np.uint16(number))
            magnitude = np.uint32((bits & np.uint32(0x7FFF)) << FRACTION_SHIFT)
            sign = np.uint32((bits & np.uint32(0x8000)) << np.uint32(16))
            if magnitude >= F16_INFINITY:
                return np.uint32(magnitude | sign | F32_INFINITY).view(np.float32)
            return np.uint32(magnitude | sign).view(np.float32) * EXPONENT_REBASE

        return from_f16
    return None


def row_scale(like: Any, address: int, row: int) -> Any:
    """The scale of a matrix's row: for int8 a number at that address, else 1."""
    raise NotImplementedError("compiled code only")


@overload(row_scale)
def _row_scale(like, address, row):
    if like.dtype == types.int8:
        return lambda like, address, row: carray(as_pointer(address), (row + 1,), np.float32)[row]
    return lambda like, address, row: np.float32(1)


@kernel
def layer_matrix(weights, shape, layer, number, n):
    """The matrix [.., n] of a layer that has this number (Q, K, ... DOWN)."""
    return Matrix(
        weights.layers[layer, number, 0],
        weights.layers[layer, number, 1],
        weights.like,
        n,
        weights.biases[layer, number],
        shape.streamed,
    )


@kernel
def head_matrix(weights, shape):
    """The matrix [V, C] that gives the logits."""
    return Matrix(
        weights.head[0], weights.head[1], weights.like, shape.d_model, weights.head_bias,
        shape.streamed,
    )  # fmt: skip


@kernel
def rows_of(matrix, end):
    """The numbers of a matrix as stored, flat, up to row `end`."""
    return carray(as_pointer(matrix.address), (end * matrix.n,), matrix.like.dtype)
