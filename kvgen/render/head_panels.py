"""Panels of layers x heads: a number of 0..1 for each head, as one cell."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import Canvas, bare, draw_level
from kvgen.render.layout import flow


def head_panels(
    trace: AttentionTrace, panels: Sequence[tuple[str, FloatArray]], canvas: Canvas
) -> list[Text]:
    """Titles with numbers [N, H], side by side, in as many bands as the width needs."""
    n_heads = len(trace.heads)
    cell = 2 if 4 * (2 * n_heads + 3) + 6 <= canvas.width else 1
    width = max(cell * n_heads, *(len(title) for title, _ in panels)) + 2
    per_row = max(1, (canvas.width - 6) // width)
    lines: list[Text] = []
    for begin in range(0, len(panels), per_row):
        lines += _band(trace, panels[begin : begin + per_row], canvas, cell, width)
    return lines


def level_legend(canvas: Canvas, *more: str) -> Text:
    """The levels of a cell, and more words, in lines that fit."""
    levels = [
        Text.assemble(draw_level(value, canvas), (f" {bare(value)}", "dim"))
        for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    levels[0] = Text.assemble(("cells: ", "dim"), levels[0])
    return flow([*levels, *(Text(words, "dim") for words in more)], canvas.width)


def _band(
    trace: AttentionTrace,
    panels: Sequence[tuple[str, FloatArray]],
    canvas: Canvas,
    cell: int,
    width: int,
) -> list[Text]:
    n_heads = len(trace.heads)
    numbers = "".join(f"{head % 10}".ljust(cell) for head in trace.heads)
    lines = [
        Text("layer ") + Text("".join(name.ljust(width) for name, _ in panels)),
        Text(" head ") + Text("".join(numbers.ljust(width) for _ in panels), "dim"),
    ]
    for row, layer in enumerate(trace.layers):
        line = Text(f"{layer.layer:>4}  ")
        for _, values in panels:
            for value in values[row].tolist():
                line += draw_level(value, canvas) + Text(" " * (cell - 1))
            line += Text(" " * (width - cell * n_heads))
        lines.append(line)
    return lines
