"""Matrix products: `dot_rows` for one token, `tile` for many.

One token needs each weight once, so `dot_rows` reads a matrix in the order of memory, row after
row, and the lanes of a vector are columns. With many tokens each weight is used for all of them:
`tile` keeps its sums in registers, the lanes are tokens (or the features of a head), and one number
of the other matrix at a time is copied to all lanes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.int8_dot import multiply_int8
from kvgen.engine.fast.kernels.simd import (
    add,
    fma,
    load,
    load_from,
    multiply_add,
    prefetch,
    store,
    sum_of,
    zeros,
)
from kvgen.engine.fast.kernels.vector_types import FLOATS, WORDS, spread
from kvgen.engine.fast.kernels.weight_access import row_scale, rows_of, widen
from kvgen.engine.fast.kernels.x86_intrinsics import add_byte_products, add_pair_products
from kvgen.engine.fast.layout import BYTES_AHEAD, LANES, LINE_BYTES, ROWS, Range, Rows


@kernel
def thread_range(count, worker, unit):
    """The part of range(count) that one thread works on; it begins at a multiple of `unit`."""
    units = (count + unit - 1) // unit
    begin = units * worker.thread // worker.n_threads
    end = units * (worker.thread + 1) // worker.n_threads
    return Range(min(count, begin * unit), min(count, end * unit))


@kernel
def dot_tail(weight, offset, x, begin, n):
    """What is left of a row behind its whole vectors, times x."""
    noinline()
    total = np.float32(0)
    for i in range(begin, n):  # a matrix ends where the next one begins, or where the file ends
        total += widen(weight[offset + i]) * x[i]
    return total


@kernel
def dot_row(weight, offset, x, n):
    """One row of a matrix times x [n]."""
    one, two, three, four = zeros(), zeros(), zeros(), zeros()
    line = LINE_BYTES // weight.itemsize
    ahead = offset + BYTES_AHEAD // weight.itemsize
    i = 0
    while i + 4 * LANES <= n:
        for j in range(i, i + 4 * LANES, line):
            prefetch(weight, ahead + j)
        one = fma(load(weight, offset + i), load(x, i), one)
        two = fma(load(weight, offset + i + LANES), load(x, i + LANES), two)
        three = fma(load(weight, offset + i + 2 * LANES), load(x, i + 2 * LANES), three)
        four = fma(load(weight, offset + i + 3 * LANES), load(x, i + 3 * LANES), four)
        i += 4 * LANES
    while i + LANES <= n:
        one = fma(load(weight, offset + i), load(x, i), one)
        i += LANES
    total = sum_of(add(add(one, two), add(three, four)))
    return total if i == n else total + dot_tail(weight, offset, x, i, n)


@kernel
def dot_four_rows(weight, offset, x, n):
    """Four rows of a matrix times x [n]: each number of x is loaded once for all."""
    a, b, c, d = offset, offset + n, offset + 2 * n, offset + 3 * n
    one, two, three, four = zeros(), zeros(), zeros(), zeros()
    one_, two_, three_, four_ = zeros(), zeros(), zeros(), zeros()
    line = LINE_BYTES // weight.itemsize
    ahead = offset + BYTES_AHEAD // weight.itemsize
    i = 0
    while i + 2 * LANES <= n:
        for j in range(0, 8 * LANES, line):  # four rows lie one behind the other
            prefetch(weight, ahead + 4 * i + j)
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
    if i < n:
        first += dot_tail(weight, a, x, i, n)
        second += dot_tail(weight, b, x, i, n)
        third += dot_tail(weight, c, x, i, n)
        fourth += dot_tail(weight, d, x, i, n)
    return first, second, third, fourth


@kernel
def dot_rows(matrix, x, y, rows, digits):
    """Write some rows of W x + bias into y.

    A matrix that is `streamed` from main memory is read row by row: of four rows at once, each line
    of the CPU's cache comes too late, and they were slower by a fifth.
    `digits` has room for 3 n bytes in whole lines.
    """
    noinline()
    weight, like, n, bias = rows_of(matrix, rows.end), matrix.like, matrix.n, matrix.bias
    if multiply_int8(matrix, weight, x, y, rows, digits):
        return
    row = rows.begin
    while not matrix.streamed and row + 4 <= rows.end:
        first, second, third, fourth = dot_four_rows(weight, row * n, x, n)
        y[row] = first * row_scale(like, matrix.scales, row) + bias[row]
        y[row + 1] = second * row_scale(like, matrix.scales, row + 1) + bias[row + 1]
        y[row + 2] = third * row_scale(like, matrix.scales, row + 2) + bias[row + 2]
        y[row + 3] = fourth * row_scale(like, matrix.scales, row + 3) + bias[row + 3]
        row += 4
    while row < rows.end:
        total = dot_row(weight, row * n, x, n)
        y[row] = total * row_scale(like, matrix.scales, row) + bias[row]
        row += 1


@intrinsic(prefer_literal=True)
def tile(
    _: Any, n_rows: Any, n_vectors: Any, chains: Any, a: Any, b: Any, c: Any, n: Any, fresh: Any
) -> Any:
    """C (+)= A B for n_rows x (16 n_vectors) numbers of C, all sums in registers.

    A [n_rows, n] float32, B [n, 16 n_vectors] as stored, C float32, each of them `Rows`. Where A
    and B are words, each holds two numbers of bfloat16 (C float32), or four bytes, without signs in
    A and with signs in B (C int32). `fresh` starts from 0, else the sums are added to C.

    A sum can take a product every four cycles or so, so small tiles keep several `chains` of sums:
    chain k takes the products k, k + chains, ... and in the end all are added.
    """
    if not isinstance(n_rows, types.IntegerLiteral):
        return None
    R, V, U = (each.literal_value for each in (n_rows, n_vectors, chains))
    kinds = [operand.types[0] for operand in (a, b, c)]
    in_bytes = kinds[2].dtype == types.int32
    total_kind = WORDS if in_bytes else FLOATS
    multiply: Callable[..., Any]
    if kinds[0].dtype == types.float32:
        multiply = multiply_add
    else:
        multiply = add_byte_products if in_bytes else add_pair_products

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        def start_and_pitch(operand: int) -> Any:
            numbers, start, pitch = (
                builder.extract_value(arguments[3 + operand], field) for field in range(3)
            )
            array = context.make_array(kinds[operand])(context, builder, numbers)
            return builder.gep(array.data, [start]), pitch

        def at(base: Any, *parts: Any) -> Any:
            for part in parts:
                base = builder.gep(base, [part])
            return base

        count = arguments[6]
        number = lambda value: ir.Constant(count.type, value)  # noqa: E731
        (a_start, a_pitch), (b_start, b_pitch), (c_start, c_pitch) = map(start_and_pitch, range(3))
        a_rows = [at(a_start, builder.mul(a_pitch, number(r))) for r in range(R)]
        targets = [
            [
                builder.bitcast(
                    at(c_start, builder.mul(c_pitch, number(r)), number(LANES * v)),
                    total_kind.as_pointer(),
                )
                for v in range(V)
            ]
            for r in range(R)
        ]
        sums = [
            [[cgutils.alloca_once(builder, total_kind) for _ in range(V)] for _ in range(R)]
            for _ in range(U)
        ]
        none = ir.Constant(total_kind, None)
        for chain in sums[1:]:
            for total in itertools.chain(*chain):
                builder.store(none, total)
        with builder.if_else(arguments[7]) as (then, otherwise):
            with then:
                for total in itertools.chain(*sums[0]):
                    builder.store(none, total)
            with otherwise:
                for total, target in zip(
                    itertools.chain(*sums[0]), itertools.chain(*targets), strict=True
                ):
                    builder.store(builder.load(target, align=4), total)

        def add_product(index: Any, chain: Any) -> None:
            b_row = at(b_start, builder.mul(index, b_pitch))
            lanes = [
                load_from(context, builder, at(b_row, number(LANES * v)), kinds[1].dtype)
                for v in range(V)
            ]
            for r in range(R):
                factor = spread(builder, builder.load(at(a_rows[r], index)))
                for v in range(V):
                    total = builder.load(chain[r][v])
                    builder.store(multiply(builder, factor, lanes[v], total), chain[r][v])

        whole = builder.sub(count, builder.urem(count, number(U))) if U > 1 else count
        with cgutils.for_range(builder, builder.udiv(whole, number(U)) if U > 1 else count) as loop:
            first = builder.mul(loop.index, number(U)) if U > 1 else loop.index
            for u, chain in enumerate(sums):
                add_product(builder.add(first, number(u)) if u else first, chain)
        if U > 1:
            with cgutils.for_range(builder, builder.sub(count, whole)) as loop:
                add_product(builder.add(whole, loop.index), sums[0])
        together = builder.add if in_bytes else builder.fadd
        for r in range(R):
            for v in range(V):
                total = builder.load(sums[0][r][v])
                for chain in sums[1:]:
                    total = together(total, builder.load(chain[r][v]))
                builder.store(total, targets[r][v], align=4)
        return context.get_dummy_value()

    signature = types.none(n_rows, n_vectors, chains, a, b, c, types.intp, types.boolean)
    return signature, generate


@kernel
def tile_across(a, b, c, n):
    """C [6, pitch] = A [6, n] B [n, pitch], where `Rows` B and C are `pitch` apart."""
    noinline()
    pitch, column = c.pitch, 0
    while column + 4 * LANES <= pitch:
        tile(
            ROWS, 4, 1, a, Rows(b.numbers, b.start + column, pitch),
            Rows(c.numbers, c.start + column, pitch), n, True,
        )  # fmt: skip
        column += 4 * LANES
    if column + 2 * LANES <= pitch:
        tile(
            ROWS, 2, 1, a, Rows(b.numbers, b.start + column, pitch),
            Rows(c.numbers, c.start + column, pitch), n, True,
        )  # fmt: skip
        column += 2 * LANES
    if column < pitch:
        tile(
            ROWS, 1, 1, a, Rows(b.numbers, b.start + column, pitch),
            Rows(c.numbers, c.start + column, pitch), n, True,
        )  # fmt: skip


@kernel
def widen_rows(matrix, rows, panel):
    """Up to six rows of a stored matrix [.., n] as float32 in panel [6 * n], the others 0."""
    noinline()
    weight, n, n_rows = rows_of(matrix, rows.end), matrix.n, rows.end - rows.begin
    for row in range(ROWS):
        target = row * n
        if row >= n_rows:
            for i in range(n):
                panel[target + i] = np.float32(0)
            continue
        source = (rows.begin + row) * n
        scale = row_scale(matrix.like, matrix.scales, rows.begin + row)
        i = 0
        while i + LANES <= n:
            prefetch(weight, source + ROWS * n + i)
            store(panel, target + i, load(weight, source + i))
            i += LANES
        while i < n:
            panel[target + i] = widen(weight[source + i])
            i += 1
        if scale != 1:
            for i in range(n):
                panel[target + i] *= scale
