"""Inexact products for `--prefill fast`: activations rounded to the width of the weights.

With bf16 weights an activation becomes bfloat16, and a word holds two features of a token; with
int8 weights it becomes a byte, in steps of each token's greatest activation / 127, and a word holds
four. The CPU multiplies all numbers of a word with those of a weight's word at once.

An engine that does not want this has None in the place of `Packed`, and compiles none of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import carray, types
from numba.extending import intrinsic, overload

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.products import tile_across
from kvgen.engine.fast.kernels.simd import (
    LANES,
    VECTOR,
    add,
    div,
    load,
    magnitude,
    maximum,
    mul,
    place_of,
    rounded,
    splat,
    store,
    where_less,
    zeros,
)
from kvgen.engine.fast.kernels.weight_access import as_pointer, row_scale
from kvgen.engine.fast.kernels.x86_intrinsics import (
    WIDEST,
    flipped_line,
    pack_bytes,
    pair_of,
    whole_difference,
)
from kvgen.engine.tensors import FloatArray


class Packed(NamedTuple):
    """The activations that a product reads, rounded."""

    words: npt.NDArray[np.uint32]  # [features / 2 or 4, tokens]
    steps: FloatArray  # [tokens] what one of a token's bytes stands for
    offsets: FloatArray  # [tokens] 128 times the sum of a token's bytes


@intrinsic
def store_pair(_: Any, words: Any, place: Any, low: Any, high: Any) -> Any:
    """Store sixteen words, each of two numbers rounded to bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = place_of(context, builder, signature.args[0], *arguments[:2])
        pair = pair_of(builder, *arguments[2:])
        builder.store(pair, builder.bitcast(at, pair.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(words, types.intp, VECTOR, VECTOR), generate


@intrinsic
def store_quad(_: Any, words: Any, place: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Store sixteen words, each of four whole numbers from -128 to 127."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = place_of(context, builder, signature.args[0], *arguments[:2])
        quad = pack_bytes(builder, arguments[2:])
        builder.store(quad, builder.bitcast(at, quad.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(words, types.intp, VECTOR, VECTOR, VECTOR, VECTOR), generate


@kernel
def load_or_zeros(x, i, n, pitch, t):
    """Feature i of sixteen tokens, zeros behind the last feature."""
    return load(x, i * pitch + t) if i < n else zeros()


@kernel
def pack_pairs(x, n, pitch, begin, end, packed):
    """The tokens begin:end of x [n, pitch] as bfloat16, feature by feature in pairs."""
    noinline()
    for i in range(0, n, 2):
        for t in range(begin, end, LANES):
            low, high = load(x, i * pitch + t), load_or_zeros(x, i + 1, n, pitch, t)
            store_pair(packed.words, i // 2 * pitch + t, low, high)


@kernel
def pack_quads(x, n, pitch, begin, end, packed):
    """The tokens begin:end of x [n, pitch] as bytes, four features together."""
    noinline()
    for t in range(begin, end, LANES):
        peak, broken = zeros(), zeros()
        for i in range(n):
            peak = maximum(peak, magnitude(load(x, i * pitch + t)))
            broken = add(broken, mul(load(x, i * pitch + t), zeros()))
        step = mul(peak, splat(np.float32(1 / 127)))
        per_step = where_less(zeros(), peak, div(splat(np.float32(1)), step), zeros())
        store(packed.steps, t, add(step, broken))  # NaN where x is not finite
        total = zeros()
        for i in range(0, n, 4):
            a = rounded(mul(load(x, i * pitch + t), per_step))
            b = rounded(mul(load_or_zeros(x, i + 1, n, pitch, t), per_step))
            c = rounded(mul(load_or_zeros(x, i + 2, n, pitch, t), per_step))
            d = rounded(mul(load_or_zeros(x, i + 3, n, pitch, t), per_step))
            store_quad(packed.words, i // 4 * pitch + t, a, b, c, d)
            total = add(total, add(add(a, b), add(c, d)))
        store(packed.offsets, t, mul(total, splat(np.float32(128))))


def pack_tokens(x, n, pitch, begin, end, like, packed):
    """Round the tokens begin:end of x [n, pitch] for the products to come; whether it was done."""
    raise NotImplementedError("compiled code only")


@overload(pack_tokens)
def _pack_tokens(x, n, pitch, begin, end, like, packed):
    if isinstance(packed, types.NoneType):
        return lambda x, n, pitch, begin, end, like, packed: False
    pack = pack_pairs if like.dtype == types.uint16 else pack_quads

    def packing(x, n, pitch, begin, end, like, packed):
        pack(x, n, pitch, begin, end, packed)
        return True

    return packing


@intrinsic
def copy_line(_: Any, target: Any, place: Any, source: Any, offset: Any, flip: Any) -> Any:
    """Copy 64 bytes between arrays of one type, each bit of a byte changed where `flip` has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to = place_of(context, builder, signature.args[0], *arguments[:2])
        line, flips = flipped_line(
            builder, place_of(context, builder, signature.args[2], *arguments[2:4]), arguments[4]
        )
        builder.store(
            builder.xor(line, flips), builder.bitcast(to, line.type.as_pointer()), align=1
        )
        return context.get_dummy_value()

    return types.none(target, types.intp, source, types.intp, types.int8), generate


@intrinsic
def difference(_: Any, totals: Any, place: Any, offsets: Any, start: Any) -> Any:
    """Sixteen sums of int32 less as many whole numbers, as float32: only then is it rounded."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total = place_of(context, builder, signature.args[0], *arguments[:2])
        offset = place_of(context, builder, signature.args[2], *arguments[2:4])
        return whole_difference(builder, total, offset)

    return VECTOR(totals, types.intp, offsets, types.intp), generate


@kernel
def copy_rows(weight, first, n_rows, n, panel, group, flip):
    """Rows of W [.., n] into a panel, each in whole words of `group` numbers."""
    noinline()
    pitch = (n + group - 1) // group * group
    line = 64 // weight.itemsize
    for row in range(n_rows):
        target, source = row * pitch, (first + row) * n
        i = 0
        while i + line <= n:
            copy_line(panel, target + i, weight, source + i, flip)
            i += line
        while i < n:
            panel[target + i] = weight[source + i] ^ flip
            i += 1
        while i < pitch:
            panel[target + i] = 0
            i += 1


@kernel
def multiply_pairs(matrix, like, first, n_rows, n, panel, packed, pitch, product):
    """Up to six rows of W x, W bfloat16 [.., n]."""
    noinline()
    weight = carray(as_pointer(matrix[0]), ((first + n_rows) * n,), like.dtype)
    copy_rows(weight, first, n_rows, n, panel.view(np.uint16), 2, np.int8(0))
    n_words = (n + 1) // 2
    tile_across(panel.view(np.uint32), 0, n_words, packed.words, pitch, product, pitch)


@kernel
def multiply_quads(matrix, like, first, n_rows, n, panel, packed, pitch, product):
    """Up to six rows of W x, W int8 [.., n] with a scale for each row.

    One side of a product of bytes is without signs: the weights are read as w + 128, and 128 times
    the other side's sum is taken away.
    """
    noinline()
    weight = carray(as_pointer(matrix[0]), ((first + n_rows) * n,), like.dtype)
    copy_rows(weight, first, n_rows, n, panel.view(np.int8), 4, np.int8(-128))
    n_words, totals = (n + 3) // 4, product.view(np.int32)
    tile_across(panel.view(np.uint32), 0, n_words, packed.words, pitch, totals, pitch)
    for row in range(n_rows):
        scale = splat(row_scale(like, matrix[1], first + row))
        for t in range(0, pitch, LANES):
            total = difference(totals, row * pitch + t, packed.offsets, t)
            store(product, row * pitch + t, mul(total, mul(load(packed.steps, t), scale)))


def multiply_packed(matrix, like, first, n_rows, n, panel, packed, pitch, product):
    """product [6, pitch] = up to six rows of W times the packed tokens; whether it was done."""
    raise NotImplementedError("compiled code only")


@overload(multiply_packed)
def _multiply_packed(matrix, like, first, n_rows, n, panel, packed, pitch, product):
    if isinstance(packed, types.NoneType):
        return lambda matrix, like, first, n_rows, n, panel, packed, pitch, product: False
    rows = multiply_pairs if like.dtype == types.uint16 else multiply_quads

    def multiplied(matrix, like, first, n_rows, n, panel, packed, pitch, product):
        if n <= WIDEST:
            rows(matrix, like, first, n_rows, n, panel, packed, pitch, product)
        return n <= WIDEST

    return multiplied
