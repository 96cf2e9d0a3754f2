"""The difference of two recordings in the terminal: all heads, a layer's heads, one head's map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.cells import set_cell_size
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.difference import ROUNDING, Difference, MovedWeight, differing_positions
from kvgen.render.attention import first_and_last_key, row_labels
from kvgen.render.canvas import (
    TOKEN_CELLS,
    Canvas,
    bare,
    causal,
    draw_bar,
    draw_map,
    pool,
    token_label,
)
from kvgen.render.head_map import (
    LAST_ALONE,
    Cells,
    MapView,
    key_numbers,
    notes_of,
    pool_starts,
    pooling_of,
)
from kvgen.render.ink import Ink
from kvgen.render.layers_by_heads import layers_by_heads
from kvgen.render.layout import flow, side_by_side, stacked_tables
from kvgen.render.thumbnail import thumbnail

_ARROW = " -> "
_MOST_RANGES = 8  # of positions, before they are counted only
_TOP = 5  # heads and weights that are named
_BAR = 8
_DISTANCE = "distance of a row: half the sum of |w - w'|, 0 = equal, 1 = no key in common"
_NEXT = "next: -l LAYER for its heads, -l LAYER -H HEAD for one map."
_CHANGE = "change: the weight after, less that before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What the two recordings, before and after, are called, and their tokens' bytes."""

    names: tuple[str, str]
    tokens: tuple[Sequence[bytes], Sequence[bytes]]

    @property
    def differing(self) -> list[int]:
        """The positions at which the tokens differ."""
        return differing_positions(*self.tokens)

    def label(self, position: int, canvas: Canvas) -> str:
        """The token at a position, or both where they differ; at most as wide as `width`."""
        before, after = (tokens[position] for tokens in self.tokens)
        if before == after:
            return token_label(before, canvas, _token_cells(canvas)).rstrip()
        return _ARROW.join(
            token_label(token, canvas, _token_cells(canvas, pair=True)).rstrip()
            for token in (before, after)
        )

    def width(self, positions: Sequence[int], canvas: Canvas) -> int:
        """The cells that the labels of these positions need."""
        pair = 2 * _token_cells(canvas, pair=True) + len(_ARROW)
        several = set(positions) & set(self.differing)
        return max(_token_cells(canvas), pair if several else 0)


def _token_cells(canvas: Canvas, *, pair: bool = False) -> int:
    """The cells of a token, alone or beside another one."""
    if not pair or canvas.width >= 100:
        return TOKEN_CELLS
    return 7 if canvas.width >= 80 else 4


def difference_summary(
    difference: Difference, sides: Sides, canvas: Canvas, *, view: MapView
) -> RenderableType:
    """Layers x heads: the mean distance of the rows, on a scale of 0..1; and what moved most."""
    means = difference.means
    ink = Ink(name="mean distance of rows", scale=view.scale, most=view.most or 1.0)
    order = np.argsort(-means, axis=None, kind="stable")[:_TOP]
    places = [np.unravel_index(place, means.shape) for place in order.tolist()]
    largest = [
        f"{difference.layers[row]}.{difference.heads[column]} {means[row, column]:.2f}"
        for row, column in places
        if means[row, column] > ROUNDING
    ]
    if largest:
        largest.insert(0, "largest (layer.head):")
    return Group(
        *_heading(difference, sides, canvas, "layers x heads"),
        *layers_by_heads(means, canvas, ink, layers=difference.layers, heads=difference.heads),
        canvas.legend(ink, masked=False),
        flow([Text(_DISTANCE, "dim")], canvas.width),
        flow([*largest, f"mean of all {means.mean():.2f}"], canvas.width),
        Text(),
        *_moved_weights(difference.moved, difference, sides, canvas),
        flow([Text(_NEXT, "dim")], canvas.width),
    )


def difference_grid(
    difference: Difference,
    sides: Sides,
    canvas: Canvas,
    *,
    layer: int,
    heads: Sequence[int],
    view: MapView,
) -> RenderableType:
    """A layer's heads as thumbnails of the weights' changes, all on one scale."""
    # Twice, so that one map is in memory at a time: first for the scale that all share.
    most = max(_cells(difference, view, layer, head).ink.most for head in heads)
    side = 24 if canvas.width >= 52 else max(8, canvas.width - 4)
    blocks = []
    for head in heads:
        cells = _cells(difference, view, layer, head)
        queries, keys, ink = cells.queries, cells.keys, _bounded(cells.ink, most)
        small = thumbnail(cells.numbers, canvas, side, ink, view.pool)
        mean = difference.rows_of(layer, head)[queries.start : queries.stop].mean()
        title = Text(f"{layer}.{head} distance {mean:.2f}".ljust(side))
        edge = Text(first_and_last_key(keys, small), "dim")
        blocks.append([title, *small.lines, edge, Text()])
    gutter = row_labels(queries, small, lambda query: sides.label(query, canvas))[:-1]
    room = canvas.width - max(line.cell_len for line in gutter) - 2
    per_row = max(1, (room + 2) // (side + 2))
    bands = [
        side_by_side([gutter, *blocks[begin : begin + per_row]])
        for begin in range(0, len(blocks), per_row)
    ]
    notes = [f"layer {layer}", f"{len(heads)} heads", *notes_of(view, cells), _end(view, most)]
    notes += filter(None, [small.note()])
    return Group(
        *_heading(difference, sides, canvas, *notes),
        *(line for band in bands for line in band),
        canvas.legend(ink),
        flow(
            [
                Text("rows are queries, columns are keys", "dim"),
                Text("distance: mean of the rows' half sums of |w - w'|", "dim"),
            ],
            canvas.width,
            between=" · ",
        ),
    )


def difference_map(
    difference: Difference,
    sides: Sides,
    canvas: Canvas,
    *,
    layer: int,
    head: int,
    view: MapView,
) -> RenderableType:
    """One head's change of every weight, each row's distance beside it, and what moved most."""
    cells = _cells(difference, view, layer, head)
    queries, keys, most = cells.queries, cells.keys, cells.ink.most
    ink = _bounded(cells.ink, most)
    digits = max(3, len(str(difference.length - 1)))
    label = sides.width(queries, canvas)
    room = canvas.width - (digits + 1 + label + 1) - 2 - (1 + _BAR + 5)
    line_starts = pool_starts(len(queries), room, alone=LAST_ALONE)
    key_starts = pool_starts(len(keys), room)
    pooled = pool(pool(cells.numbers, key_starts, 1, view.pool), line_starts, 0, view.pool)
    distances = difference.rows_of(layer, head)[queries.start : queries.stop]
    beside = pool(distances[:, None], line_starts, 0, view.pool)[:, 0]
    cell = max(1, min(3, room // max(len(key_starts), 1)))
    edge = "|" if canvas.mode == "ascii" else "│"
    numbers = key_numbers([keys[start] for start in key_starts], cell)
    heading = f"{'q':>{digits}} {'token':<{label}} {edge}{numbers}{edge} distance"
    lines = [Text(heading, "dim")]
    drawn = draw_map(pooled, canvas, ink, cell_width=cell)
    for start, row, distance in zip(line_starts.tolist(), drawn, beside.tolist(), strict=True):
        query = queries[start]
        name = set_cell_size(sides.label(query, canvas), label)
        line = Text(f"{query:>{digits}} {name} {edge}") + row + Text(f"{edge} ")
        lines.append(line + Text(f"{draw_bar(distance, canvas, _BAR):<{_BAR}} {distance:.2f}"))
    mean = f"mean distance of rows {distances.mean():.2f}"
    notes = [f"layer {layer} head {head}", mean, *notes_of(view, cells), _end(view, most)]
    notes += pooling_of(queries, keys, room, view.pool)
    whole = " in the whole map" if notes_of(view, cells) else ""
    moved = difference.moved_in(layer, head, _TOP)
    return Group(
        *_heading(difference, sides, canvas, *notes),
        *lines,
        canvas.legend(ink),
        flow([Text(_DISTANCE, "dim"), Text(_CHANGE, "dim")], canvas.width, between=" · "),
        Text(),
        *_moved_weights(moved, difference, sides, canvas, where=whole),
    )


def _heading(difference: Difference, sides: Sides, canvas: Canvas, *notes: str) -> list[Text]:
    """The names of both recordings, where their tokens differ, and which rows are the same."""
    first, second = sides.names
    facts = [f"{difference.length} tokens", _positions(sides.differing)]
    moved = (difference.rows > ROUNDING).any(axis=(0, 1))
    if not moved.any():
        facts.append("no row differs")
    elif (unchanged := int(moved.argmax())) > 0:
        several = f"rows 0-{unchanged - 1} do not differ"
        facts.append(several if unchanged > 1 else "row 0 does not differ")
    return [
        Text(f"before: {first}", "bold"),
        Text(f"after:  {second}", "bold"),
        flow(facts, canvas.width, between=" · "),
        flow(notes, canvas.width, between=" · "),
    ]


def _positions(places: Sequence[int]) -> str:
    """Positions as numbers and ranges: tokens differ at 3, 5-9."""
    if not places:
        return "the same tokens"
    ranges: list[list[int]] = []
    for place in places:
        if ranges and place == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], place]
        else:
            ranges.append([place])
    shown = ", ".join("-".join(map(str, each)) for each in ranges[:_MOST_RANGES])
    if len(ranges) > _MOST_RANGES:
        return f"tokens differ at {len(places)} positions, the first are {shown}"
    return f"tokens differ at {shown}"


def _moved_weights(
    moved: Sequence[MovedWeight],
    difference: Difference,
    sides: Sides,
    canvas: Canvas,
    *,
    where: str = "",
) -> list[RenderableType]:
    """The weights that moved most, with the tokens of their queries and keys."""
    if not moved:
        return [Text("no weight changed by more than rounding")]
    digits = len(str(difference.length - 1))

    def token(position: int) -> str:
        return f"{position:>{digits}} {sides.label(position, canvas)}"

    columns = ("head", "query", "key", "before", "after", "change")
    rows = [
        {
            "head": f"{weight.layer}.{weight.head}",
            "query": token(weight.query),
            "key": token(weight.key),
            "before": f"{weight.before:.3f}",
            "after": f"{weight.after:.3f}",
            "change": f"{weight.change:+.3f}",
        }
        for weight in moved
    ]
    return stacked_tables(
        {name: name for name in columns},
        rows,
        width=canvas.width,
        keys=("head", "query", "key"),
        words=("query", "key"),
        title=f"greatest changes of a weight{where}",
    )


def _cells(difference: Difference, view: MapView, layer: int, head: int) -> Cells:
    """The part of one head's changes that a view shows; the ink ends at the greatest of them."""
    places = range(difference.length)
    queries, keys = places[slice(*view.queries)], places[slice(*view.keys)]
    whole = causal(difference.change(layer, head))
    shown = whole[queries.start : queries.stop, keys.start : keys.stop]
    most = view.most or float(np.fmax.reduce(np.abs(shown), axis=None, initial=0.0))
    ink = Ink(name="change of weight", scale=view.scale, most=most, signed=True)
    return Cells(shown, queries, keys, None, ink)


def _bounded(ink: Ink, most: float) -> Ink:
    """An ink whose scale ends there, or at 1 where nothing changed but by rounding."""
    return replace(ink, most=most if most > ROUNDING else 1.0)


def _end(view: MapView, most: float) -> str:
    """Where the scale ends, and why there."""
    if view.most is None and most <= ROUNDING:
        return "no weight changed"
    why = "the greatest |change| shown" if view.most is None else "by --range"
    return f"scale to {bare(most)}, {why}"
