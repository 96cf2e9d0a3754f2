"""Operations on the tokens of a chunk: features by tokens [features, pitch], a token a lane."""

from __future__ import annotations

import numpy as np

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.elementwise import activate
from kvgen.engine.fast.kernels.packed import multiply_packed
from kvgen.engine.fast.kernels.products import tile_across, widen_rows
from kvgen.engine.fast.kernels.simd import (
    add,
    div,
    fma,
    load,
    mul,
    splat,
    square_root,
    store,
    sub,
    zeros,
)
from kvgen.engine.fast.layout import LANES, ROWS, Range, Rows, Use


@kernel
def rows_from(rows, first):
    """The rows of a matrix from the row `first` on."""
    return Rows(rows.numbers, rows.start + first * rows.pitch, rows.pitch)


@kernel
def normalise_tokens(x, n, norm, tokens, y):
    """LayerNorm or RMSNorm over the n features of each of some tokens; y may be x."""
    noinline()
    pitch, x_start, y_start = x.pitch, x.start, y.start
    one_part = splat(np.float32(1) / np.float32(n))
    for t in range(tokens.begin, tokens.end, LANES):
        mean = zeros()
        if not norm.rms:
            for i in range(n):
                mean = add(mean, load(x.numbers, x_start + i * pitch + t))
            mean = mul(mean, one_part)
        square = zeros()
        for i in range(n):
            centred = sub(load(x.numbers, x_start + i * pitch + t), mean)
            square = fma(centred, centred, square)
        deviation = square_root(fma(square, one_part, splat(norm.eps)))
        factor = div(splat(np.float32(1)), deviation)
        for i in range(n):
            centred = mul(sub(load(x.numbers, x_start + i * pitch + t), mean), factor)
            scale, shift = splat(norm.scale[i]), splat(norm.shift[i])
            store(y.numbers, y_start + i * pitch + t, fma(centred, scale, shift))


@kernel
def norm_or_copy_tokens(x, n, norm, wanted, tokens, y):
    """The norm of each of some tokens, or the token itself where the model has no such norm."""
    noinline()
    if wanted:
        normalise_tokens(x, n, norm, tokens, y)
    else:
        for i in range(n):
            for t in range(tokens.begin, tokens.end, LANES):
                number = load(x.numbers, x.start + i * x.pitch + t)
                store(y.numbers, y.start + i * y.pitch + t, number)


@kernel
def add_tokens(x, added, n, scale, tokens):
    """x += scale * added, for some tokens of [n, pitch]."""
    noinline()
    factor = splat(scale)
    for i in range(n):
        for t in range(tokens.begin, tokens.end, LANES):
            offset = x.start + i * x.pitch + t
            more = load(added.numbers, added.start + i * added.pitch + t)
            store(x.numbers, offset, fma(more, factor, load(x.numbers, offset)))


@kernel
def put_row(product, bias, use, epilogue, target):
    """Put the first row of a product, with its bias, into the first row of the target."""
    noinline()
    start, pitch, y, y_start = product.start, target.pitch, target.numbers, target.start
    shift, factor = splat(bias), splat(epilogue.residual_scale)
    if use == Use.ADD:
        for t in range(0, pitch, LANES):
            value = add(load(product.numbers, start + t), shift)
            store(y, y_start + t, fma(value, factor, load(y, y_start + t)))
    elif use == Use.TIMES:
        for t in range(0, pitch, LANES):
            value = add(load(product.numbers, start + t), shift)
            store(y, y_start + t, mul(value, load(y, y_start + t)))
    else:
        for t in range(0, pitch, LANES):
            store(y, y_start + t, add(load(product.numbers, start + t), shift))
        if use == Use.ACTIVATE:
            activate(y, y_start, pitch, epilogue.activation)


@kernel
def multiply(matrix, x, rows, use, target, epilogue, packed, own):
    """Some rows of W x + bias for all tokens, six rows at a time, into the target as `use` says.

    Row r of W goes to row r of the target. Where x has been packed, the packed x is multiplied.
    """
    noinline()
    product = Rows(own.product, 0, x.pitch)
    row = rows.begin
    while row < rows.end:
        some = Range(row, min(row + ROWS, rows.end))
        if not multiply_packed(matrix, some, packed, own.panel, product):
            widen_rows(matrix, some, own.panel)
            tile_across(Rows(own.panel, 0, matrix.n), x, product, matrix.n)
        for r in range(some.end - some.begin):
            put_row(
                rows_from(product, r), matrix.bias[row + r], use, epilogue,
                rows_from(target, row + r),
            )  # fmt: skip
        row = some.end


@kernel
def rotate_tokens(x, table, half, cos_sin):
    """RoPE in place on one head of all tokens, each by the angles of its position."""
    noinline()
    pitch = x.pitch
    for i in range(half):
        cosine, sine = (2 * table * half + i) * pitch, ((2 * table + 1) * half + i) * pitch
        one, other = x.start + i * pitch, x.start + (i + half) * pitch
        for t in range(0, pitch, LANES):
            first, second = load(x.numbers, one + t), load(x.numbers, other + t)
            cos, sin = load(cos_sin, cosine + t), load(cos_sin, sine + t)
            store(x.numbers, one + t, sub(mul(first, cos), mul(second, sin)))
            store(x.numbers, other + t, fma(second, cos, mul(first, sin)))
