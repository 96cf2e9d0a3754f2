"""One number of each layer and head, or position, as a map with numbered rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

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
) -> list[Text]:
    """A cell for each number [layers, heads]; below each other where the heads are too many.

    `title` stands over the columns. Without `heads` they have no numbers.
    """
    n_columns = numbers.shape[1]
    cell = 2 if 2 * n_columns + _MARGIN <= canvas.width else 1
    per_row = (canvas.width - _MARGIN) // cell
    lines = [Text(" " * _MARGIN + title, "dim")] if title and heads else []
    for begin in range(0, n_columns, per_row):
        shown = heads[begin : begin + per_row]
        if shown and shown[-1] > 9:
            tens = "".join(_tens(head).ljust(cell) for head in shown)
            lines.append(Text(" " * _MARGIN + tens, "dim"))
        over = "".join(f"{head % 10}".ljust(cell) for head in shown) or title
        lines.append(Text("layer ".ljust(_MARGIN) + over, "dim"))
        drawn = draw_map(numbers[:, begin : begin + per_row], canvas, ink, cell_width=cell)
        lines += [Text(f"{layer:>4}  ") + cells for layer, cells in zip(layers, drawn, strict=True)]
    return lines


def _tens(number: int) -> str:
    """The digits before the last one, at every tenth number: 10 and 20 in a row of numbers."""
    return f"{number // 10 % 10}" if number % 10 == 0 else " "
