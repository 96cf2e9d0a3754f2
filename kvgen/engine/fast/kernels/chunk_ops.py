"""Operations on many tokens at once: features by tokens [features, pitch], a token in each lane."""

from __future__ import annotations

import numpy as np

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.elementwise import activate
from kvgen.engine.fast.kernels.packed import multiply_packed
from kvgen.engine.fast.kernels.products import ROWS, tile_across, widen_rows
from kvgen.engine.fast.kernels.simd import (
    LANES,
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

# What becomes of a product. Not plain integers: the compiler would make a copy of `multiply` for
# each that is written in a call.
SET, ADD, ACTIVATE, TIMES = (np.int64(use) for use in range(4))
START = np.int64(0)


@kernel
def normalise_tokens(x, x_start, n, norm, norm_start, rms, eps, pitch, begin, end, y, y_start):
    """LayerNorm or RMSNorm over the n features of each token begin:end; y may be x."""
    noinline()
    share_of_one = splat(np.float32(1) / np.float32(n))
    for t in range(begin, end, LANES):
        mean = zeros()
        if not rms:
            for i in range(n):
                mean = add(mean, load(x, x_start + i * pitch + t))
            mean = mul(mean, share_of_one)
        square = zeros()
        for i in range(n):
            away = sub(load(x, x_start + i * pitch + t), mean)
            square = fma(away, away, square)
        deviation = square_root(fma(square, share_of_one, splat(eps)))
        factor = div(splat(np.float32(1)), deviation)
        for i in range(n):
            away = mul(sub(load(x, x_start + i * pitch + t), mean), factor)
            scale, shift = splat(norm[0, norm_start + i]), splat(norm[1, norm_start + i])
            store(y, y_start + i * pitch + t, fma(away, scale, shift))


@kernel
def norm_or_copy_tokens(x, n, norm, wanted, shape, pitch, begin, end, y):
    """The norm of each token begin:end, or the token itself where the model has no such norm."""
    noinline()
    if wanted:
        normalise_tokens(
            x, START, n, norm, START, shape.rms, shape.norm_eps, pitch, begin, end, y, START
        )
    else:
        for i in range(n):
            for t in range(begin, end, LANES):
                store(y, i * pitch + t, load(x, i * pitch + t))


@kernel
def add_tokens(x, added, n, scale, pitch, begin, end):
    """x += scale * added for the tokens begin:end."""
    noinline()
    factor = splat(scale)
    for i in range(n):
        for t in range(begin, end, LANES):
            place = i * pitch + t
            store(x, place, fma(load(added, place), factor, load(x, place)))


@kernel
def put_row(product, start, shift, use, scale, activation, pitch, y, place):
    """One row of a product, with its bias, where it belongs."""
    noinline()
    bias, factor = splat(shift), splat(scale)
    if use == ADD:
        for t in range(0, pitch, LANES):
            value = add(load(product, start + t), bias)
            store(y, place + t, fma(value, factor, load(y, place + t)))
    elif use == TIMES:
        for t in range(0, pitch, LANES):
            value = add(load(product, start + t), bias)
            store(y, place + t, mul(value, load(y, place + t)))
    else:
        for t in range(0, pitch, LANES):
            store(y, place + t, add(load(product, start + t), bias))
        if use == ACTIVATE:
            activate(y, place, pitch, activation)


@kernel
def multiply(
    matrix, like, x, n, bias, use, scale, activation, pitch, work, thread, y, y_start, begin, end
):
    """Rows begin:end of W x + bias for all tokens into y (at y_start), six rows at a time.

    `use` says what becomes of them: SET; ADD to what is there, times `scale`; ACTIVATE; TIMES what
    is there. Where x has been packed, that is multiplied.
    """
    noinline()
    panel, product, packed = work.own_panel[thread], work.own_product[thread], work.packed
    row = begin
    while row < end:
        n_rows = min(ROWS, end - row)
        if not multiply_packed(matrix, like, row, n_rows, n, panel, packed, pitch, product):
            widen_rows(matrix, like, row, n_rows, n, panel)
            tile_across(panel, 0, n, x, pitch, product, pitch)
        for r in range(n_rows):
            put_row(
                product, r * pitch, bias[row + r], use, scale, activation, pitch, y,
                y_start + (row + r) * pitch,
            )  # fmt: skip
        row += n_rows


@kernel
def rotate_tokens(x, start, table, half, pitch, turns):
    """RoPE in place on one head of all tokens, each by the angles of its position."""
    noinline()
    for i in range(half):
        cosine, sine = (2 * table * half + i) * pitch, ((2 * table + 1) * half + i) * pitch
        one, other = start + i * pitch, start + (i + half) * pitch
        for t in range(0, pitch, LANES):
            first, second = load(x, one + t), load(x, other + t)
            cos, sin = load(turns, cosine + t), load(turns, sine + t)
            store(x, one + t, sub(mul(first, cos), mul(second, sin)))
            store(x, other + t, fma(second, cos, mul(first, sin)))
