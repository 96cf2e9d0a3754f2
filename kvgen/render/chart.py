"""Curves in a terminal: seconds by position, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

SEVERAL = ("◉", "@")  # where curves meet; the second in ASCII


class Curve(NamedTuple):
    """Points from left to right, all above 0."""

    name: str
    mark: str  # one character
    style: str
    x: Sequence[float]
    y: Sequence[float]


def chart(curves: Sequence[Curve], *, width: int, height: int, ascii_only: bool) -> list[Text]:
    """Lines of a chart: y in milliseconds on a logarithmic scale, x in positions.

    Several points that fall into one column are drawn at their geometric mean.
    """
    low = min(min(curve.y) for curve in curves)
    high = max(max(curve.y) for curve in curves)
    # At least one decade, so that noise does not look like growth.
    bottom, top = math.log10(low) - 0.1, max(math.log10(high), math.log10(low) + 1) + 0.1
    first = min(curve.x[0] for curve in curves)
    last = max(max(curve.x[-1] for curve in curves), first + 1)
    margin = 10
    columns = max(10, width - margin - 1)
    cells = [[(" ", "")] * columns for _ in range(height)]
    several = SEVERAL[ascii_only]
    for curve in curves:
        of_column: dict[int, list[float]] = {}
        for x, y in zip(curve.x, curve.y, strict=True):
            column = round((x - first) / (last - first) * (columns - 1))
            of_column.setdefault(column, []).append(math.log10(y))
        for column, logs in of_column.items():
            up = (sum(logs) / len(logs) - bottom) / (top - bottom)
            row = cells[round((1 - up) * (height - 1))]
            row[column] = (curve.mark, curve.style) if row[column][0] == " " else (several, "")
    rule, corner, tick = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    marked = _rows_of_ticks(bottom, top, height)
    lines = []
    for number, row in enumerate(cells):
        line = Text().append(f"{marked.get(number, ''):>{margin - 2}} {rule}", "dim")
        for mark, style in row:
            line.append(mark, style or None)
        line.rstrip()
        lines.append(line)
    lines.append(Text(" " * (margin - 1) + corner + tick * columns, "dim"))
    left, right = f"{first:,.0f}", f"{last:,.0f} positions"
    lines.append(Text(" " * margin + left + right.rjust(columns - len(left)), "dim"))
    return lines


def _rows_of_ticks(bottom: float, top: float, height: int) -> dict[int, str]:
    """Which rows are marked with 1, 2, 5, 10, ... milliseconds, as many as have room."""
    marked: dict[int, str] = {}
    for multiples in ((1,), (1, 3), (1, 2, 5)):
        values = [
            multiple * 10.0**decade
            for decade in range(math.floor(bottom), math.ceil(top) + 1)
            for multiple in multiples
        ]
        inside = [value for value in values if bottom <= math.log10(value) <= top]
        rows = {
            round((1 - (math.log10(value) - bottom) / (top - bottom)) * (height - 1)): value
            for value in inside
        }
        if len(rows) >= 3 or multiples == (1, 2, 5):
            for row, value in rows.items():
                marked[row] = f"{value:g} s" if value >= 1 else f"{1e3 * value:g} ms"
            break
    return marked
