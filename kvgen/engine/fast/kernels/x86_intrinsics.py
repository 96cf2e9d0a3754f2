"""Instructions that only some CPUs have (target.py): products of bytes, and of bfloat16 pairs."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from kvgen.engine.fast.kernels.vector_types import (
    BFLOAT_PAIRS,
    BFLOATS,
    BYTE_LINE,
    FLOATS,
    INDEX,
    LINE_LANES,
    SHORTS,
    WORDS,
    all_words,
)


def add_byte_products(builder: Any, unsigned: Any, signed: Any, totals: Any) -> Any:
    """totals + the products of 64 bytes without and 64 with sign, four in each lane of int32."""
    kind = ir.FunctionType(WORDS, [WORDS, BYTE_LINE, BYTE_LINE])
    name = "llvm.x86.avx512.vpdpbusd.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(
        function, [totals, *(_as(builder, x, BYTE_LINE) for x in (unsigned, signed))]
    )


def add_pair_products(builder: Any, one: Any, other: Any, totals: Any) -> Any:
    """totals + the products of 32 bfloat16 numbers, two in each lane of float32."""
    kind = ir.FunctionType(FLOATS, [FLOATS, BFLOAT_PAIRS, BFLOAT_PAIRS])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [totals, *(_as(builder, x, BFLOAT_PAIRS) for x in (one, other))])


def pair_of(builder: Any, low: Any, high: Any) -> Any:
    """Two vectors of float32 rounded to bfloat16, as the halves of sixteen words."""
    words = [
        builder.zext(builder.bitcast(builder.fptrunc(x, BFLOATS), SHORTS), WORDS)
        for x in (low, high)
    ]
    return builder.or_(words[0], builder.shl(words[1], all_words(16)))


def pack_bytes(builder: Any, numbers: Any) -> Any:
    """Four vectors of integers in float32, from -128 to 127, as the bytes of sixteen words."""
    packed = ir.Constant(WORDS, None)
    for byte, vector in enumerate(numbers):
        word = builder.fptosi(vector, WORDS)
        low = builder.and_(word, all_words(255))
        packed = builder.or_(packed, builder.shl(low, all_words(8 * byte)))
    return packed


def flipped_line(builder: Any, pointer: Any, flip: Any) -> Any:
    """64 bytes at a pointer, and 64 times the same byte."""
    line = builder.load(builder.bitcast(pointer, BYTE_LINE.as_pointer()), align=1)
    first = builder.insert_element(ir.Constant(BYTE_LINE, ir.Undefined), flip, INDEX(0))
    everywhere = ir.Constant(LINE_LANES, None)
    return line, builder.shuffle_vector(first, first, everywhere)


def integer_difference(builder: Any, totals: Any, offsets: Any) -> Any:
    """Sixteen int32 at a pointer minus the integers in float32 at another, as float32."""
    total = builder.load(builder.bitcast(totals, WORDS.as_pointer()), align=4)
    offset = builder.load(builder.bitcast(offsets, FLOATS.as_pointer()), align=4)
    return builder.sitofp(builder.sub(total, builder.fptosi(offset, WORDS)), FLOATS)


def _as(builder: Any, vector: Any, kind: ir.VectorType) -> Any:
    return vector if vector.type == kind else builder.bitcast(vector, kind)
