"""Conversion of float16 by its bits, for CPUs that have no instruction for it."""

from __future__ import annotations

from typing import Any

from kvgen.engine.fast.kernels.vector_types import FLOATS, SHORTS, WORDS, all_floats, all_words


def converts_halves(context: Any) -> bool:
    """Whether the target converts f16 itself; without F16C, LLVM would call a missing function."""
    triple, _, features = context.codegen().magic_tuple()
    return not triple.startswith(("x86", "i686")) or "+f16c" in features


def from_halves(builder: Any, shorts: Any) -> Any:
    """Bits of f16 as float32, exactly: shift the fraction into place, multiply the exponent."""
    bits = builder.zext(shorts, WORDS)
    sign = builder.shl(builder.and_(bits, all_words(0x8000)), all_words(16))
    size = builder.shl(builder.and_(bits, all_words(0x7FFF)), all_words(13))
    finite = builder.fmul(builder.bitcast(size, FLOATS), all_floats(2.0**112))
    special = builder.bitcast(builder.or_(size, all_words(0x7F800000)), FLOATS)
    is_special = builder.icmp_unsigned(">=", size, all_words(0x7C00 << 13))
    value = builder.bitcast(builder.select(is_special, special, finite), WORDS)
    return builder.bitcast(builder.or_(value, sign), FLOATS)


def to_halves(builder: Any, floats: Any) -> Any:
    """float32 rounded to bits of f16, to nearest even; beyond its range infinity, NaN stays NaN."""
    bits = builder.bitcast(floats, WORDS)
    sign = builder.lshr(builder.and_(bits, all_words(0x80000000)), all_words(16))
    size = builder.and_(bits, all_words(0x7FFFFFFF))
    # Subnormal results: the sum with 0.5 is rounded at the last bit that float16 can hold.
    magic = all_floats(0.5)
    small = builder.bitcast(builder.fadd(builder.bitcast(size, FLOATS), magic), WORDS)
    small = builder.sub(small, builder.bitcast(magic, WORDS))
    odd = builder.and_(builder.lshr(size, all_words(13)), all_words(1))
    normal = builder.sub(size, all_words((127 - 15) << 23))
    normal = builder.add(builder.add(normal, all_words(0xFFF)), odd)
    normal = builder.lshr(normal, all_words(13))
    is_small = builder.icmp_unsigned("<", size, all_words((127 - 14) << 23))
    value = builder.select(is_small, small, normal)
    is_large = builder.icmp_unsigned(">=", size, all_words((127 + 16) << 23))
    is_nan = builder.icmp_unsigned(">", size, all_words(0x7F800000))
    value = builder.select(is_large, all_words(0x7C00), value)
    value = builder.select(is_nan, all_words(0x7E00), value)
    return builder.trunc(builder.or_(value, sign), SHORTS)
