"""Vectors by their first numbers, a line each, and the sum of weighted values that way."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.weighted_values import WeightedValues
from kvgen.engine.tensors import FloatArray
from kvgen.render.canvas import TOKEN_CELLS, Canvas, token_label
from kvgen.render.explain import most_telling
from kvgen.render.layout import stacked_tables

_MOST_THAT_FIT = 8  # numbers of a vector that are enough on a wide screen


def weighted_values_table(
    tokens: Sequence[bytes],
    weighed: WeightedValues,
    *,
    shares: FloatArray,
    canvas: Canvas,
    n_numbers: int | None = None,
) -> RenderableType:
    """The first numbers of w_j v_j of each key, of their sum o, and of z, which the kernel wrote.

    The keys are those of the explanation: `shares` are its. None: as many numbers as fit.
    """
    S, D = weighed.parts.shape
    shown = most_telling(shares)
    others = [j for j in range(S) if j not in shown]
    names = [(str(j), token_label(tokens[j], canvas, TOKEN_CELLS)) for j in shown]
    vectors = [*weighed.parts[shown]]
    if others:
        names.append(("", f"{len(others)} others"))
        vectors.append(weighed.parts[others].sum(axis=0))
    names += [("", "sum: o"), ("", "kernel: z")]
    vectors += [weighed.output, weighed.kernel]
    tables, shown_numbers = vector_tables(
        {"j": "j", "key": "key"},
        [{"j": j, "key": key} for j, key in names],
        np.array(vectors),
        keys=("j", "key"),
        canvas=canvas,
        n_numbers=n_numbers,
    )
    return Group(
        Text(f"w_j v_j: numbers {shown_numbers} of {D}"),
        *tables,
        Text(f"o and z, which the kernel wrote, differ by at most {weighed.difference:.1e}"),
    )


def vector_tables(
    headings: Mapping[str, str],
    rows: Sequence[Mapping[str, str]],
    vectors: FloatArray,
    *,
    keys: Collection[str],
    canvas: Canvas,
    n_numbers: int | None = None,
    fewest: int = 1,
) -> tuple[list[RenderableType], str]:
    """Rows with the first numbers of their vectors [R, D] behind them, and which numbers these are.

    None: as many as fit, but not less than `fewest`. Columns that do not fit stand in tables below,
    which begin with the columns named in `keys`.
    """
    D = vectors.shape[1]
    counts = [n_numbers] if n_numbers else range(_MOST_THAT_FIT, fewest - 1, -1)
    tables: list[RenderableType] = []
    count = D
    for count in dict.fromkeys(min(count, D) for count in counts):
        numbers = vectors[:, :count]
        form = f"+{decimals(numbers)}"
        names = [f"[{number}]" for number in range(count)]
        filled = [
            {**row, **{name: format(x, form) for name, x in zip(names, vector, strict=True)}}
            for row, vector in zip(rows, numbers.tolist(), strict=True)
        ]
        tables = stacked_tables(
            {**headings, **{name: name for name in names}},
            filled,
            width=canvas.width,
            keys=keys,
            padding=1,
        )
        if len(tables) == 1:
            break
    return tables, f"0..{count - 1}" if count > 1 else "0"


def decimals(numbers: npt.ArrayLike) -> str:
    """The format in which the greatest of the numbers has four digits, six decimals at most.

    >>> decimals([1.5, -0.25])
    '.3f'
    """
    most = float(np.abs(np.asarray(numbers)).max(initial=0.0))
    after_the_point = 3 - (math.floor(math.log10(most)) if most > 0 else 0)
    return f".{min(max(after_the_point, 0), 6)}f"
