"""The vector types of compiled code: for LLVM, and the two that Numba passes to functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from kvgen.engine.fast.layout import LANES, LINE_BYTES


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


INDEX = ir.IntType(32)  # the number of a lane
FLOATS = ir.VectorType(ir.FloatType(), LANES)
HALVES = ir.VectorType(ir.HalfType(), LANES)
BFLOATS = ir.VectorType(_BFloat(), LANES)
WORDS = ir.VectorType(ir.IntType(32), LANES)
SHORTS = ir.VectorType(ir.IntType(16), LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)
# What one instruction multiplies: two numbers, or four, for each lane.
BFLOAT_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
BYTE_LINE = ir.VectorType(ir.IntType(8), LINE_BYTES)
LINE_LANES = ir.VectorType(ir.IntType(32), LINE_BYTES)  # lanes of a BYTE_LINE to choose


class _FloatVector(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("float32x16")


class _IntVector(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("int32x16")


FLOAT_VECTOR = _FloatVector()
INT_VECTOR = _IntVector()


@register_model(_FloatVector)
class _FloatVectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, FLOATS)


@register_model(_IntVector)
class _IntVectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, WORDS)


def all_floats(number: float) -> Any:
    """A constant: sixteen times the same float32."""
    return ir.Constant(FLOATS, [float(np.float32(number))] * LANES)


def all_words(number: int) -> Any:
    """A constant: sixteen times the same 32-bit integer."""
    return ir.Constant(WORDS, [number] * LANES)


def spread(builder: Any, number: Any) -> Any:
    """The instructions that put one number into every lane."""
    undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    vector = builder.insert_element(undefined, number, ir.Constant(INDEX, 0))
    return builder.shuffle_vector(vector, undefined, ir.Constant(WORDS, None))


def pointer_to(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """The instructions that give a pointer to one number of an array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])
