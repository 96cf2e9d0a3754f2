"""Instructions that only some CPUs have: products of bytes, and of pairs of bfloat16.

Whether they are there is asked of what is compiled for, which need not be this machine.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

from kvgen.engine.fast.kernels.float16 import LANES

_TARGET: str = cpu_target.target_context.codegen().magic_tuple()[2]
MULTIPLIES_BYTES = "+avx512vnni" in _TARGET
MULTIPLIES_PAIRS = "+avx512bf16" in _TARGET
WIDEST = 2**16  # products of bytes whose sum stays within 31 bits


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_BFLOATS = ir.VectorType(_BFloat(), LANES)
_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
_QUADS = ir.VectorType(ir.IntType(8), 4 * LANES)


def add_byte_products(builder: Any, unsigned: Any, signed: Any, totals: Any) -> Any:
    """totals + the products of 64 bytes without and 64 with sign, four in each lane of int32."""
    kind = ir.FunctionType(_WORDS, [_WORDS, _QUADS, _QUADS])
    name = "llvm.x86.avx512.vpdpbusd.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [totals, *(_as(builder, x, _QUADS) for x in (unsigned, signed))])


def add_pair_products(builder: Any, one: Any, other: Any, totals: Any) -> Any:
    """totals + the products of 32 bfloat16 numbers, two in each lane of float32."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _PAIRS, _PAIRS])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [totals, *(_as(builder, x, _PAIRS) for x in (one, other))])


def pair_of(builder: Any, low: Any, high: Any) -> Any:
    """Two vectors of float32 rounded to bfloat16, as the halves of sixteen words."""
    words = [
        builder.zext(builder.bitcast(builder.fptrunc(x, _BFLOATS), _SHORTS), _WORDS)
        for x in (low, high)
    ]
    return builder.or_(words[0], builder.shl(words[1], ir.Constant(_WORDS, [16] * LANES)))


def pack_bytes(builder: Any, numbers: Any) -> Any:
    """Four vectors of whole float32 numbers from -128 to 127, as the bytes of sixteen words."""
    packed = ir.Constant(_WORDS, None)
    for place, vector in enumerate(numbers):
        word = builder.fptosi(vector, _WORDS)
        low = builder.and_(word, ir.Constant(_WORDS, [255] * LANES))
        packed = builder.or_(packed, builder.shl(low, ir.Constant(_WORDS, [8 * place] * LANES)))
    return packed


def flipped_line(builder: Any, place: Any, flip: Any) -> Any:
    """64 bytes at a pointer, and 64 times the same byte."""
    line = builder.load(builder.bitcast(place, _QUADS.as_pointer()), align=1)
    first = builder.insert_element(ir.Constant(_QUADS, ir.Undefined), flip, ir.IntType(32)(0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), 4 * LANES), None)
    return line, builder.shuffle_vector(first, first, everywhere)


def whole_difference(builder: Any, totals: Any, offsets: Any) -> Any:
    """Sixteen int32 at a pointer less the whole float32 numbers at another, as float32."""
    total = builder.load(builder.bitcast(totals, _WORDS.as_pointer()), align=4)
    offset = builder.load(builder.bitcast(offsets, _FLOATS.as_pointer()), align=4)
    return builder.sitofp(builder.sub(total, builder.fptosi(offset, _WORDS)), _FLOATS)


def _as(builder: Any, vector: Any, kind: ir.VectorType) -> Any:
    return vector if vector.type == kind else builder.bitcast(vector, kind)
