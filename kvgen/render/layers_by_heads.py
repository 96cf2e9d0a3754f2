"""One number of each layer and head, or position, as a map with numbered rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.text import Text

from kvgen.engine.tensors import Array
from kvgen.render.canvas import Canvas, draw_map
from kvgen.render.ink import Ink

_MARGIN = 6  # columns of the layers' numbers


def layers_by_heads(
    numbers: Array,
    canvas: Canvas,
    ink: Ink,
    *,
    layers: Sequence[int],
    heads: Sequence[int] = (),
    title: str = "",
    missing: str = " ",
) -> list[Text]:
    """A cell for each number [layers, heads]; below each other where the heads are too many.

    `title` stands over the columns. Without `heads` they have no numbers. `missing` stands for NaN.
    """
    n_columns = numbers.shape[1]
    cell = 2 if 2 * n_columns + _MARGIN <= canvas.width else 1
    per_row = (canvas.width - _MARGIN) // cell
    lines = [Text(" " * _MARGIN + title, "dim")] if title and heads else []
    for begin in range(0, n_columns, per_row):
        shown = heads[begin : begin + per_row]
        *higher, units = _digits(shown) if shown else [title]
        lines += [Text(" " * _MARGIN + _spread(row, cell), "dim") for row in higher]
        over = _spread(units, cell) if shown else title
        lines.append(Text("layer ".ljust(_MARGIN) + over, "dim"))
        part = numbers[:, begin : begin + per_row]
        drawn = draw_map(part, canvas, ink, cell_width=cell)
        for layer, row, cells in zip(layers, part, drawn, strict=True):
            lines.append(Text(f"{layer:>4}  ") + _marked(cells, np.isnan(row), missing, cell))
    return lines


def _marked(cells: Text, gaps: Array, mark: str, cell: int) -> Text:
    """Cells of a row with a mark in those that have no number."""
    parts = [
        Text(mark * cell) if gap else cells[cell * column : cell * (column + 1)]
        for column, gap in enumerate(gaps)
    ]
    return Text().join(parts)


def _digits(numbers: Sequence[int]) -> list[str]:
    """Numbers written downwards, a row for each digit; higher digits only where they change.

    >>> _digits([8, 9, 10, 11, 25])
    ['  1 2', '89015']
    """
    rows = []
    for place in reversed(range(len(str(max(numbers))))):
        row, before = "", 0
        for number in numbers:
            higher = number // 10**place
            row += f"{higher % 10}" if place == 0 or higher != before else " "
            before = higher
        rows.append(row)
    return rows


def _spread(row: str, cell: int) -> str:
    return "".join(character.ljust(cell) for character in row).rstrip()
