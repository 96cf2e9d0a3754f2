"""float16 where the CPU does not convert it: by its bits, as LLVM instructions on vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)


def converts_halves(context: Any) -> bool:
    """Whether the target converts f16 itself; without F16C, LLVM would call a missing function."""
    triple, _, features = context.codegen().magic_tuple()
    return not triple.startswith(("x86", "i686")) or "+f16c" in features


def from_halves(builder: Any, shorts: Any) -> Any:
    """Bits of f16 as float32, exactly: shift the fraction into place, multiply the exponent."""
    bits = builder.zext(shorts, _WORDS)
    sign = builder.shl(builder.and_(bits, _words(0x8000)), _words(16))
    size = builder.shl(builder.and_(bits, _words(0x7FFF)), _words(13))
    finite = builder.fmul(builder.bitcast(size, _FLOATS), _floats(2.0**112))
    special = builder.bitcast(builder.or_(size, _words(0x7F800000)), _FLOATS)
    is_special = builder.icmp_unsigned(">=", size, _words(0x7C00 << 13))
    value = builder.bitcast(builder.select(is_special, special, finite), _WORDS)
    return builder.bitcast(builder.or_(value, sign), _FLOATS)


def to_halves(builder: Any, floats: Any) -> Any:
    """float32 rounded to bits of f16, to nearest even; beyond its range infinity, NaN stays NaN."""
    bits = builder.bitcast(floats, _WORDS)
    sign = builder.lshr(builder.and_(bits, _words(0x80000000)), _words(16))
    size = builder.and_(bits, _words(0x7FFFFFFF))
    # Subnormal results: adding 2^-1 * 2^-13 * 2^0 lets the addition round at the right place.
    magic = _floats(0.5)
    small = builder.bitcast(builder.fadd(builder.bitcast(size, _FLOATS), magic), _WORDS)
    small = builder.sub(small, builder.bitcast(magic, _WORDS))
    odd = builder.and_(builder.lshr(size, _words(13)), _words(1))
    normal = builder.sub(size, _words((127 - 15) << 23))
    normal = builder.add(builder.add(normal, _words(0xFFF)), odd)
    normal = builder.lshr(normal, _words(13))
    is_small = builder.icmp_unsigned("<", size, _words((127 - 14) << 23))
    value = builder.select(is_small, small, normal)
    is_large = builder.icmp_unsigned(">=", size, _words((127 + 16) << 23))
    is_nan = builder.icmp_unsigned(">", size, _words(0x7F800000))
    value = builder.select(is_large, _words(0x7C00), value)
    value = builder.select(is_nan, _words(0x7E00), value)
    return builder.trunc(builder.or_(value, sign), _SHORTS)


def _floats(number: float) -> Any:
    return ir.Constant(_FLOATS, [number] * LANES)


def _words(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * LANES)
