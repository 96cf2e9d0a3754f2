"""A whole map in a small square: pooled or widened to fit, and its pooling in words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from rich.text import Text

from kvgen.choices import Pool
from kvgen.engine.tensors import FloatArray
from kvgen.render.canvas import Canvas, draw_map, pool, pool_factor, pool_map
from kvgen.render.ink import WEIGHT_INK, Ink


class Thumbnail(NamedTuple):
    """A map as lines of text, and which of its rows each line shows."""

    lines: list[Text]
    first_rows: list[int]  # for each line the first row that it shows
    n_rows: int  # rows of the map in a line; 1 too where a row takes several lines
    n_columns: int  # columns of the map in a cell
    how: Pool
    in_halves: bool  # two rows in a line, each in its own half: nothing is pooled

    def note(self) -> str:
        """The tokens of a line and of a cell, where there is more than one."""
        counts = [f"{self.n_rows} tokens a row"] if self.n_rows > 1 else []
        counts += [f"{self.n_columns} a column"] if self.n_columns > 1 else []
        if not counts:
            return ""
        if self.in_halves:
            return f"{counts[0]}, one in each half"
        return f"{', '.join(counts)} ({'the greatest' if self.how == 'max' else 'their mean'})"


def thumbnail(
    numbers: FloatArray, canvas: Canvas, side: int, ink: Ink = WEIGHT_INK, how: Pool = "max"
) -> Thumbnail:
    """A map [R, K] pooled to at most `side` columns and half as many lines, or widened to them."""
    if not numbers.size:
        return Thumbnail([Text()], [0], 1, 1, how, False)
    factor = pool_factor(max(numbers.shape), side)
    cells = pool_map(numbers, factor, how)
    width = max(1, side // max(cells.shape))
    # A character is about twice as high as wide: a line holds two rows of cells.
    if canvas.mode == "color":
        lines = draw_map(
            np.repeat(cells, width, axis=0), canvas, ink, cell_width=width, halves=True
        )
        rows = [2 * line // width for line in range(len(lines))]
        halves = width == factor == 1 and len(cells) > 1
    else:
        halves = False
        if width == 1:
            rows = list(range(0, len(cells), 2))
            cells = pool(cells, np.array(rows), 0, how)
        else:
            rows = [row for row in range(len(cells)) for _ in range(max(1, width // 2))]
            cells = cells[rows]
        lines = draw_map(cells, canvas, ink, cell_width=width)
    n_rows = min(len(numbers), 2 * factor if width == 1 else 1)
    return Thumbnail(lines, [row * factor for row in rows], n_rows, factor, how, halves)
