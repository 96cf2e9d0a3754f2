"""Blocks, words and tables fitted into a width: nothing is cut off, it is stacked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 10_000  # columns: wider than any table
_BESIDE = 3  # columns between a map and the table beside it


def side_by_side(blocks: Sequence[Sequence[Text]], *, gap: int = 2) -> list[Text]:
    """Blocks of lines next to each other, each padded to its widest line."""
    lines: list[Text] = [Text() for _ in range(max(map(len, blocks), default=0))]
    for number, block in enumerate(blocks):
        width = max((line.cell_len for line in block), default=0)
        last = number == len(blocks) - 1
        for row, line in enumerate(lines):
            cells = block[row] if row < len(block) else Text()
            line.append_text(cells)
            line.append(" " * (0 if last else width - cells.cell_len + gap))
    return lines


def in_bands(blocks: Sequence[list[Text]], width: int, *, gap: int = 2) -> list[Text]:
    """Blocks of lines next to each other, in as many bands as their width needs."""
    lines: list[Text] = []
    begin = 0
    while begin < len(blocks):
        end = begin + 1
        while end < len(blocks) and _width_of(blocks[begin : end + 1], gap) <= width:
            end += 1
        lines += side_by_side(blocks[begin:end], gap=gap)
        begin = end
    for line in lines:
        line.rstrip()
    return lines


def _width_of(blocks: Sequence[list[Text]], gap: int) -> int:
    return sum(max(line.cell_len for line in block) + gap for block in blocks) - gap


def flow(parts: Sequence[Text | str], width: int, *, between: str = "  ") -> Text:
    """Parts one after another, with line ends where the next one does not fit.

    A part is broken only where it is longer than a line, between words.
    """
    text, used = Text(), 0
    for part in (Text(part) if isinstance(part, str) else part for part in parts):
        if used and used + len(between) + part.cell_len <= width:
            text.append(between)
            used += len(between)
        elif used:
            text.append("\n")
            used = 0
        words = list(part.split(" "))
        whole = (
            part if part.cell_len <= width or len(words) == 1 else flow(words, width, between=" ")
        )
        text.append_text(whole)
        used += cell_len(whole.plain.rpartition("\n")[2])
    return text


def stacked_tables(
    headings: dict[str, str],
    rows: Sequence[Mapping[str, str | Text]],
    *,
    width: int,
    keys: Collection[str] = (),
    words: Collection[str] = (),
    padding: int = 2,
    title: str | None = None,
    bold_last: bool = False,
) -> list[RenderableType]:
    """A plain table of rows by column; where it is too wide, several below each other.

    The title belongs to the first. Each begins with the columns named in `keys`. Columns named in
    `words` stand left, the others right. Cells are folded where the keys alone are too wide.
    """
    remaining = [name for name in headings if name not in keys]
    first = [name for name in headings if name in keys]

    def table(names: Sequence[str], pad: int, *, fold: bool = False) -> Table:
        drawn = Table(box=None, padding=(0, pad, 0, 0), pad_edge=False)
        for name in names:
            justify: Literal["left", "right"] = "left" if name in words else "right"
            drawn.add_column(
                Text(headings[name]), justify=justify, no_wrap=not fold, overflow="fold"
            )
        for number, row in enumerate(rows):
            bold = "bold" if bold_last and number == len(rows) - 1 else None
            # Text, not str: a cell may hold a token, and [/] would be read as markup.
            cells = [Text.assemble(row.get(name, "")) for name in names]
            drawn.add_row(*cells, style=bold)
        return drawn

    def fitting() -> tuple[Table, int]:
        """A table of the key columns and as many others as fit, and the number of these."""
        shown = table([*first, *remaining], padding)
        if width_of(shown) <= width:
            return shown, len(remaining)
        for count in range(len(remaining), 0, -1):
            shown = table([*first, *remaining[:count]], 1)
            if width_of(shown) <= width:
                return shown, count
        return table([*first, *remaining[:1]], 1, fold=True), 1

    tables: list[RenderableType] = []
    while remaining or not tables:
        shown, count = fitting()
        # Not the table's own title, which would be broken at the width of the table.
        tables.append(Group(Text(title), shown) if title and not tables else shown)
        remaining = remaining[count:]
    return tables


def width_of(view: RenderableType) -> int:
    """The columns that a table or a text takes where nothing bounds it."""
    return Console(width=_UNBOUNDED).measure(view).maximum


def beside_or_below(
    left: RenderableType, right: RenderableType, width: int, *, gap: int = 4
) -> RenderableType:
    """Two views next to each other where both fit, else the second below the first."""
    if width_of(left) + gap + width_of(right) > width:
        return Group(left, Text(), right)
    both = Table.grid(padding=(0, gap, 0, 0), pad_edge=False)
    both.add_row(left, right)
    return both


def map_and_tables(
    drawn: Sequence[Text], legend: RenderableType, tables: Sequence[RenderableType], width: int
) -> list[RenderableType]:
    """A map above its legend, with a table beside the map where there is room, else below."""
    cells = max(line.cell_len for line in drawn)
    if len(tables) == 1 and cells + _BESIDE + width_of(tables[0]) <= width:
        both = Table.grid(padding=(0, _BESIDE, 0, 0), pad_edge=False)
        both.add_row(Group(*drawn), tables[0])
        return [both, legend]
    return [*drawn, legend, Text(), *tables]
