"""Matrix products: `dot_rows` for one token, `tile` for many.

One token reads each weight once, so `dot_rows` reads a matrix as the memory likes it, row after
row, and the lanes of a vector are columns. With many tokens each weight is used for all of them:
`tile` keeps its sums in registers, the lanes are tokens (or the features of a head), and one number
of the other matrix at a time is spread over all lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.int8_dot import multiply_bytes
from kvgen.engine.fast.kernels.simd import (
    _FLOATS,
    _WORDS,
    LANES,
    _splat,
    add,
    fma,
    load,
    load_from,
    multiply_add,
    store,
    sum_of,
    zeros,
)
from kvgen.engine.fast.kernels.weight_access import as_pointer, row_scale, widen
from kvgen.engine.fast.kernels.x86_intrinsics import add_byte_products, add_pair_products

ROWS = 6  # rows of a tile: 6 x 4 sums, 4 loads and a spread number fill 32 registers


@kernel
def share(count, thread, n_threads, unit):
    """The part of range(count) that is one thread's: begin and end, multiples of `unit`."""
    units = (count + unit - 1) // unit
    begin, end = units * thread // n_threads, units * (thread + 1) // n_threads
    return min(count, begin * unit), min(count, end * unit)


@kernel
def dot_row(weight, offset, x, n):
    """One row of a matrix times x [n]."""
    noinline()
    one, two, three, four = zeros(), zeros(), zeros(), zeros()
    i = 0
    while i + 4 * LANES <= n:
        one = fma(load(weight, offset + i), load(x, i), one)
        two = fma(load(weight, offset + i + LANES), load(x, i + LANES), two)
        three = fma(load(weight, offset + i + 2 * LANES), load(x, i + 2 * LANES), three)
        four = fma(load(weight, offset + i + 3 * LANES), load(x, i + 3 * LANES), four)
        i += 4 * LANES
    while i + LANES <= n:
        one = fma(load(weight, offset + i), load(x, i), one)
        i += LANES
    total = sum_of(add(add(one, two), add(three, four)))
    while i < n:  # a matrix ends where the next one begins, or where the file ends
        total += widen(weight[offset + i]) * x[i]
        i += 1
    return total


@kernel
def dot_four_rows(weight, offset, x, n):
    """Four rows of a matrix times x [n]: each number of x is loaded once for all."""
    noinline()
    a, b, c, d = offset, offset + n, offset + 2 * n, offset + 3 * n
    one, two, three, four = zeros(), zeros(), zeros(), zeros()
    one_, two_, three_, four_ = zeros(), zeros(), zeros(), zeros()
    i = 0
    while i + 2 * LANES <= n:
        even, odd = load(x, i), load(x, i + LANES)
        one = fma(load(weight, a + i), even, one)
        two = fma(load(weight, b + i), even, two)
        three = fma(load(weight, c + i), even, three)
        four = fma(load(weight, d + i), even, four)
        one_ = fma(load(weight, a + i + LANES), odd, one_)
        two_ = fma(load(weight, b + i + LANES), odd, two_)
        three_ = fma(load(weight, c + i + LANES), odd, three_)
        four_ = fma(load(weight, d + i + LANES), odd, four_)
        i += 2 * LANES
    if i + LANES <= n:
        even = load(x, i)
        one = fma(load(weight, a + i), even, one)
        two = fma(load(weight, b + i), even, two)
        three = fma(load(weight, c + i), even, three)
        four = fma(load(weight, d + i), even, four)
        i += LANES
    first, second = sum_of(add(one, one_)), sum_of(add(two, two_))
    third, fourth = sum_of(add(three, three_)), sum_of(add(four, four_))
    while i < n:
        first += widen(weight[a + i]) * x[i]
        second += widen(weight[b + i]) * x[i]
        third += widen(weight[c + i]) * x[i]
        fourth += widen(weight[d + i]) * x[i]
        i += 1
    return first, second, third, fourth


@kernel
def dot_rows(matrix, like, x, n, bias, streamed, y, begin, end, spare):
    """y[begin:end] = the same rows of W x + bias, W [.., n] at the address matrix[0].

    Its scales, where rows have one, lie at matrix[1]. A matrix that is `streamed` from main memory
    is read as one stream, which the CPU sees coming by itself: several rows at once, or asking for
    what lies ahead, were slower by a fifth.
    `spare` has room for 3 n bytes in whole products.
    """
    noinline()
    weight = carray(as_pointer(matrix[0]), (end * n,), like.dtype)
    if multiply_bytes(matrix, weight, x, n, bias, streamed, y, begin, end, spare):
        return
    row = begin
    while not streamed and row + 4 <= end:
        first, second, third, fourth = dot_four_rows(weight, row * n, x, n)
        y[row] = first * row_scale(like, matrix[1], row) + bias[row]
        y[row + 1] = second * row_scale(like, matrix[1], row + 1) + bias[row + 1]
        y[row + 2] = third * row_scale(like, matrix[1], row + 2) + bias[row + 2]
        y[row + 3] = fourth * row_scale(like, matrix[1], row + 3) + bias[row + 3]
        row += 4
    while row < end:
        total = dot_row(weight, row * n, x, n)
        y[row] = total * row_scale(like, matrix[1], row) + bias[row]
        row += 1


@intrinsic(prefer_literal=True)
def tile(
    _: Any,
    n_rows: Any,
    n_vectors: Any,
    a: Any,
    a_offset: Any,
    a_pitch: Any,
    b: Any,
    b_offset: Any,
    b_pitch: Any,
    n: Any,
    c: Any,
    c_offset: Any,
    c_pitch: Any,
    fresh: Any,
) -> Any:
    """C (+)= A B for n_rows x (16 n_vectors) numbers of C, all sums in registers.

    A [n_rows, n] float32, B [n, 16 n_vectors] as stored, C float32; each with an offset and the
    distance of its rows. Where A and B are words, each holds two numbers of bfloat16 (C float32),
    or four bytes, without signs in A and with signs in B (C int32). `fresh` starts from 0, else
    what C holds is added to.
    """
    if not isinstance(n_rows, types.IntegerLiteral):
        return None
    R, V = n_rows.literal_value, n_vectors.literal_value
    stored = b.dtype
    in_bytes = c.dtype == types.int32
    total_kind = _WORDS if in_bytes else _FLOATS
    multiply: Callable[..., Any]
    if a.dtype == types.float32:
        multiply = multiply_add
    else:
        multiply = add_byte_products if in_bytes else add_pair_products

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def start(place: int) -> Any:
            array = context.make_array(signature.args[place])(context, builder, arguments[place])
            return builder.gep(array.data, [arguments[place + 1]])

        def at(base: Any, *parts: Any) -> Any:
            for part in parts:
                base = builder.gep(base, [part])
            return base

        word = arguments[3].type
        number = lambda value: ir.Constant(word, value)  # noqa: E731
        a_start, b_start, c_start = start(2), start(5), start(9)
        a_step, b_step, count, c_step = (arguments[i] for i in (4, 7, 8, 11))
        a_rows = [at(a_start, builder.mul(a_step, number(r))) for r in range(R)]
        c_places = [
            [
                builder.bitcast(
                    at(c_start, builder.mul(c_step, number(r)), number(LANES * v)),
                    total_kind.as_pointer(),
                )
                for v in range(V)
            ]
            for r in range(R)
        ]
        sums = [[cgutils.alloca_once(builder, total_kind) for _ in range(V)] for _ in range(R)]
        none = ir.Constant(total_kind, None)
        with builder.if_else(arguments[12]) as (then, otherwise):
            with then:
                for row in sums:
                    for place in row:
                        builder.store(none, place)
            with otherwise:
                for row, places in zip(sums, c_places, strict=True):
                    for place, held in zip(row, places, strict=True):
                        builder.store(builder.load(held, align=4), place)
        with cgutils.for_range(builder, count) as loop:
            b_row = at(b_start, builder.mul(loop.index, b_step))
            lanes = [
                load_from(context, builder, at(b_row, number(LANES * v)), stored) for v in range(V)
            ]
            for r in range(R):
                spread = _splat(builder, builder.load(at(a_rows[r], loop.index)))
                for v in range(V):
                    total = builder.load(sums[r][v])
                    builder.store(multiply(builder, spread, lanes[v], total), sums[r][v])
        for row, places in zip(sums, c_places, strict=True):
            for place, held in zip(row, places, strict=True):
                builder.store(builder.load(place), held, align=4)
        return context.get_dummy_value()

    signature = types.none(
        n_rows, n_vectors, a, types.intp, types.intp, b, types.intp, types.intp, types.intp, c,
        types.intp, types.intp, types.boolean,
    )  # fmt: skip
    return signature, generate


@kernel
def tile_across(a, a_offset, n, b, pitch, c, width):
    """C [6, width] = A [6, n] B [n, width]: rows of B and C are `pitch` apart."""
    noinline()
    column = 0
    while column + 4 * LANES <= width:
        tile(ROWS, 4, a, a_offset, n, b, column, pitch, n, c, column, pitch, True)
        column += 4 * LANES
    if column + 2 * LANES <= width:
        tile(ROWS, 2, a, a_offset, n, b, column, pitch, n, c, column, pitch, True)
        column += 2 * LANES
    if column < width:
        tile(ROWS, 1, a, a_offset, n, b, column, pitch, n, c, column, pitch, True)


@kernel
def widen_rows(matrix, like, first, n_rows, n, panel):
    """Up to six rows of a stored matrix [.., n] as float32 in panel [6 * n], the others 0."""
    noinline()
    weight = carray(as_pointer(matrix[0]), ((first + n_rows) * n,), like.dtype)
    for row in range(ROWS):
        target = row * n
        if row >= n_rows:
            for i in range(n):
                panel[target + i] = np.float32(0)
            continue
        source = (first + row) * n
        scale = row_scale(like, matrix[1], first + row)
        i = 0
        while i + LANES <= n:
            store(panel, target + i, load(weight, source + i))
            i += LANES
        while i < n:
            panel[target + i] = widen(weight[source + i])
            i += 1
        if scale != 1:
            for i in range(n):
                panel[target + i] *= scale
