"""One number of each layer and head as a map with numbered rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from kvgen.engine.tensors import FloatArray
from kvgen.render.canvas import Canvas, draw_map
from kvgen.render.ink import Ink

_MARGIN = 6  # columns of the layers' numbers


def layers_by_heads(
    numbers: FloatArray, canvas: Canvas, ink: Ink, *, layers: Sequence[int], heads: Sequence[int]
) -> list[Text]:
    """A cell for each number [layers, heads]; below each other where the heads are too many."""
    cell = 2 if 2 * len(heads) + _MARGIN <= canvas.width else 1
    per_row = (canvas.width - _MARGIN) // cell
    lines = []
    for begin in range(0, len(heads), per_row):
        shown = heads[begin : begin + per_row]
        lines.append(Text("layer " + "".join(f"{head % 10}".ljust(cell) for head in shown), "dim"))
        drawn = draw_map(numbers[:, begin : begin + per_row], canvas, ink, cell_width=cell)
        lines += [Text(f"{layer:>4}  ") + cells for layer, cells in zip(layers, drawn, strict=True)]
    return lines
