"""Inexact products for `--prefill fast`: activations rounded to the width of the weights.

With bf16 weights an activation becomes bfloat16, and a word holds two features of a token; with
int8 weights it becomes a byte, with a scale of each token's greatest activation / 127, and a word
holds four. The CPU multiplies all numbers of a word with those of a weight's word at once.

An engine without this passes None instead of `Packed`, and none of it is compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.products import tile_across
from kvgen.engine.fast.kernels.simd import (
    add,
    div,
    load,
    magnitude,
    maximum,
    mul,
    prefetch,
    rounded,
    splat,
    store,
    where_less,
    zeros,
)
from kvgen.engine.fast.kernels.vector_types import FLOAT_VECTOR, pointer_to
from kvgen.engine.fast.kernels.weight_access import row_scale, rows_of
from kvgen.engine.fast.kernels.x86_intrinsics import (
    flipped_line,
    integer_difference,
    pack_bytes,
    pair_of,
)
from kvgen.engine.fast.layout import LANES, LINE_BYTES, ROWS, WIDEST_DOT, Rows


@intrinsic
def store_pair(_: Any, words: Any, offset: Any, low: Any, high: Any) -> Any:
    """Store sixteen words, each of two numbers rounded to bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = pointer_to(context, builder, signature.args[0], *arguments[:2])
        pair = pair_of(builder, *arguments[2:])
        builder.store(pair, builder.bitcast(at, pair.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(words, types.intp, FLOAT_VECTOR, FLOAT_VECTOR), generate


@intrinsic
def store_quad(_: Any, words: Any, offset: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Store sixteen words, each of four integers from -128 to 127."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = pointer_to(context, builder, signature.args[0], *arguments[:2])
        quad = pack_bytes(builder, arguments[2:])
        builder.store(quad, builder.bitcast(at, quad.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(
        words, types.intp, FLOAT_VECTOR, FLOAT_VECTOR, FLOAT_VECTOR, FLOAT_VECTOR
    ), generate


@kernel
def load_or_zeros(x, i, n, t):
    """Feature i of sixteen tokens, zeros behind the last feature."""
    return load(x.numbers, x.start + i * x.pitch + t) if i < n else zeros()


@kernel
def pack_pairs(x, n, tokens, packed):
    """Write some tokens of x [n, pitch] as bfloat16, two features of a token in a word."""
    noinline()
    for i in range(0, n, 2):
        for t in range(tokens.begin, tokens.end, LANES):
            low, high = load_or_zeros(x, i, n, t), load_or_zeros(x, i + 1, n, t)
            store_pair(packed.words, i // 2 * x.pitch + t, low, high)


@kernel
def pack_quads(x, n, tokens, packed):
    """Write some tokens of x [n, pitch] as bytes, four features of a token in a word."""
    noinline()
    for t in range(tokens.begin, tokens.end, LANES):
        peak, zero_or_nan = zeros(), zeros()
        for i in range(n):
            number = load_or_zeros(x, i, n, t)
            peak = maximum(peak, magnitude(number))
            zero_or_nan = add(zero_or_nan, mul(number, zeros()))
        scale = mul(peak, splat(np.float32(1 / 127)))
        inverse = where_less(zeros(), peak, div(splat(np.float32(1)), scale), zeros())
        store(packed.scales, t, add(scale, zero_or_nan))  # NaN where x is not finite
        total = zeros()
        for i in range(0, n, 4):
            a = rounded(mul(load_or_zeros(x, i, n, t), inverse))
            b = rounded(mul(load_or_zeros(x, i + 1, n, t), inverse))
            c = rounded(mul(load_or_zeros(x, i + 2, n, t), inverse))
            d = rounded(mul(load_or_zeros(x, i + 3, n, t), inverse))
            store_quad(packed.words, i // 4 * x.pitch + t, a, b, c, d)
            total = add(total, add(add(a, b), add(c, d)))
        store(packed.offsets, t, mul(total, splat(np.float32(128))))


def pack_tokens(x, n, tokens, like, packed):
    """Round some tokens of x [n, pitch] for the products to come; returns whether it was done."""
    raise NotImplementedError("compiled code only")


@overload(pack_tokens)
def _pack_tokens(x, n, tokens, like, packed):
    if isinstance(packed, types.NoneType):
        return lambda x, n, tokens, like, packed: False
    pack = pack_pairs if like.dtype == types.uint16 else pack_quads

    def packing(x, n, tokens, like, packed):
        pack(x, n, tokens, packed)
        return True

    return packing


@intrinsic
def copy_line(_: Any, target: Any, to: Any, source: Any, offset: Any, flip: Any) -> Any:
    """Copy 64 bytes between arrays of one type, each bit of a byte changed where `flip` has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = pointer_to(context, builder, signature.args[0], *arguments[:2])
        line, flips = flipped_line(
            builder, pointer_to(context, builder, signature.args[2], *arguments[2:4]), arguments[4]
        )
        builder.store(
            builder.xor(line, flips), builder.bitcast(target, line.type.as_pointer()), align=1
        )
        return context.get_dummy_value()

    return types.none(target, types.intp, source, types.intp, types.int8), generate


@intrinsic
def difference(_: Any, totals: Any, start: Any, offsets: Any, t: Any) -> Any:
    """Sixteen sums of int32 minus sixteen integers, rounded to float32 only at the end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total = pointer_to(context, builder, signature.args[0], *arguments[:2])
        offset = pointer_to(context, builder, signature.args[2], *arguments[2:4])
        return integer_difference(builder, total, offset)

    return FLOAT_VECTOR(totals, types.intp, offsets, types.intp), generate


@kernel
def copy_rows(matrix, rows, panel, group, flip):
    """Copy rows of W into a panel, each in whole words of `group` numbers."""
    noinline()
    weight, n = rows_of(matrix, rows.end), matrix.n
    pitch = (n + group - 1) // group * group
    line = LINE_BYTES // weight.itemsize
    for row in range(rows.end - rows.begin):
        target, source = row * pitch, (rows.begin + row) * n
        i = 0
        while i + line <= n:
            prefetch(weight, source + ROWS * n + i)
            copy_line(panel, target + i, weight, source + i, flip)
            i += line
        while i < n:
            panel[target + i] = weight[source + i] ^ flip
            i += 1
        while i < pitch:
            panel[target + i] = 0
            i += 1


@kernel
def multiply_pairs(matrix, rows, packed, panel, product):
    """Up to six rows of W x, W bfloat16 [.., n]."""
    noinline()
    copy_rows(matrix, rows, panel.view(np.uint16), 2, np.int8(0))
    n_words = (matrix.n + 1) // 2
    words = Rows(packed.words, 0, product.pitch)
    tile_across(Rows(panel.view(np.uint32), 0, n_words), words, product, n_words)


@kernel
def multiply_quads(matrix, rows, packed, panel, product):
    """Up to six rows of W x, W int8 [.., n] with a scale for each row.

    The instruction takes one side without signs: weights are read as w + 128, and 128 times the sum
    of the other side is subtracted.
    """
    noinline()
    copy_rows(matrix, rows, panel.view(np.int8), 4, np.int8(-128))
    n_words, totals, pitch = (matrix.n + 3) // 4, product.numbers.view(np.int32), product.pitch
    words = Rows(packed.words, 0, pitch)
    tile_across(
        Rows(panel.view(np.uint32), 0, n_words), words, Rows(totals, product.start, pitch), n_words
    )
    for row in range(rows.end - rows.begin):
        scale = splat(row_scale(matrix.like, matrix.scales, rows.begin + row))
        start = product.start + row * pitch
        for t in range(0, pitch, LANES):
            total = difference(totals, start + t, packed.offsets, t)
            store(product.numbers, start + t, mul(total, mul(load(packed.scales, t), scale)))


def multiply_packed(matrix, rows, packed, panel, product):
    """product [6, pitch] = up to six rows of W times the packed tokens; returns whether done."""
    raise NotImplementedError("compiled code only")


@overload(multiply_packed)
def _multiply_packed(matrix, rows, packed, panel, product):
    if isinstance(packed, types.NoneType):
        return lambda matrix, rows, packed, panel, product: False
    multiply = multiply_pairs if matrix.types[2].dtype == types.uint16 else multiply_quads

    def multiplied(matrix, rows, packed, panel, product):
        if matrix.n <= WIDEST_DOT:
            multiply(matrix, rows, packed, panel, product)
        return matrix.n <= WIDEST_DOT

    return multiplied
