"""One head's map in the terminal, and which part of a map is shown, of what, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.diagnostics import row_entropy
from kvgen.attention.measures import MEASURES, SIGNED, Measure, measured, rollout
from kvgen.attention.record import Recording
from kvgen.attention.steps import attention_weights
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import (
    TOKEN_CELLS,
    Canvas,
    Ink,
    Pool,
    Scale,
    causal,
    draw_bar,
    draw_map,
    pool,
    pool_factor,
    token_label,
)

Sink = Literal["split", "keep", "drop"]
Span = tuple[int | None, int | None]  # as in a slice
_PINNED = 8  # last queries that a pooled map shows one by one: in decode they are looked at
_SUM_TO_ONE = frozenset({"weights", "rollout"})  # rows of parts of a whole
_WITHIN_ONE = _SUM_TO_ONE | {"share", "cos"}  # the others have no bound of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class MapView:
    """What is shown of a map, and how."""

    show: Measure | Literal["rollout"] = "weights"  # rollout: of all layers up to this one
    scale: Scale = "sqrt"
    most: float | None = None  # what is as bright as can be; None: 1, or the greatest shown
    sink: Sink = "split"  # the first key apart, as any other, or left out and the rest renormalised
    pool: Pool = "max"
    queries: Span = (None, None)
    keys: Span = (None, None)


class Cells(NamedTuple):
    """The part of a map that is shown; NaN where a query does not see a key."""

    numbers: FloatArray  # [queries, keys]
    queries: range
    keys: range
    first: FloatArray | None  # the first key's numbers, where it stands apart
    ink: Ink


def rows_of(trace: AttentionTrace) -> str:
    """How many rows a recording has, and where from."""
    n_decode = trace.length - trace.n_prompt
    return f"{trace.length} tokens ({trace.n_prompt} prompt + {n_decode} decode)"


def chosen_cells(recording: Recording, view: MapView, *, layer: int, head: int) -> Cells:
    """What a view shows of one head, or of the rollout up to its layer.

    Raises UsageError for what was not recorded.
    """
    trace = recording.trace
    if view.show == "rollout":
        whole = causal(rollout(trace, layer))
    else:
        whole = measured(trace, view.show, layer=layer, head=head, written=recording.written)
    queries, keys = (range(trace.length)[slice(*span)] for span in (view.queries, view.keys))
    whole = whole[queries.start : queries.stop]
    first = whole[:, 0] if view.sink == "split" else None
    if view.sink != "keep":
        keys = range(max(1, keys.start), max(1, keys.stop))
    if view.sink == "drop" and view.show in _SUM_TO_ONE:
        rest = 1 - whole[:, :1]
        nothing = np.full_like(whole, np.nan)
        whole = np.divide(whole, rest, out=nothing, where=rest > np.finfo(np.float32).eps)
    numbers = whole[:, keys.start : keys.stop]
    seen = np.abs(numbers[~np.isnan(numbers)])
    most = 1.0 if view.show in _WITHIN_ONE else float(seen.max(initial=0.0))
    ink = Ink(
        name=view.show if view.show == "rollout" else MEASURES[view.show],
        scale=view.scale,
        most=view.most or most or 1.0,
        signed=view.show in SIGNED,
    )
    return Cells(numbers, queries, keys, first, ink)


def notes_of(view: MapView, cells: Cells) -> str:
    """What a reader must know of a view that is not the whole map as it is."""
    notes = []
    if view.sink == "drop":
        kept = "renormalised without" if view.show in _SUM_TO_ONE else "without"
        notes.append(f"{kept} key 0")
    if view.queries != (None, None):
        notes.append(f"queries {_ends(cells.queries)}")
    if view.keys != (None, None):
        notes.append(f"keys {_ends(cells.keys)}")
    return "".join(f" · {note}" for note in notes)


def _ends(places: range) -> str:
    return f"{places[0]}..{places[-1]}" if places else "none"


def head_map(
    recording: Recording,
    tokens: Sequence[bytes],
    *,
    layer: int,
    head: int,
    canvas: Canvas,
    view: MapView,
) -> RenderableType:
    """One head's map: each query's row, the first key apart, the strongest other key beside it."""
    trace = recording.trace
    one = trace.layer(layer)
    cells = chosen_cells(recording, view, layer=layer, head=head)
    digits = max(3, len(str(trace.length - 1)))
    of_first = 13 if cells.first is not None else 0
    beside = canvas.width >= 80
    room = canvas.width - (digits + 1 + TOKEN_CELLS + 2 + of_first + 1) - (26 if beside else 2)
    line_starts = _starts(len(cells.queries), room, alone=_PINNED)
    key_starts = _starts(len(cells.keys), room)
    pooled = pool(pool(cells.numbers, key_starts, 1, view.pool), line_starts, 0, view.pool)
    cell = max(1, min(3, room // max(len(key_starts), 1)))
    edge = "|" if canvas.mode == "ascii" else "│"
    first_title = "key 0".ljust(of_first) if of_first else ""
    heading = f"{'q':>{digits}} {'token':<{TOKEN_CELLS}}  {first_title}"
    heading += f"{edge}{_key_numbers([cells.keys[start] for start in key_starts], cell)}{edge}"
    if beside:
        top = "top other key" if view.sink != "keep" else "top key"
        heading += f" {top:<16}" + ("" if view.show == "rollout" else " H/nats")
    lines = [Text(heading, "dim")]
    entropies = row_entropy(attention_weights(one.only(head))[0])[slice(*view.queries)]
    drawn = draw_map(pooled, canvas, cells.ink, cell_width=cell)
    ends = [*line_starts[1:].tolist(), len(cells.queries)]
    for start, stop, row in zip(line_starts.tolist(), ends, drawn, strict=True):
        query = cells.queries[start]
        line = Text(f"{query:>{digits}} {token_label(tokens[query], canvas, TOKEN_CELLS)}  ")
        if cells.first is not None:
            line += Text(_first_key(_greatest(cells.first[start:stop]), view, canvas))
        line += Text(edge) + row + Text(edge)
        if beside:
            line += Text(_beside(cells, start, stop, tokens, canvas))
            line += Text("" if view.show == "rollout" else f" {entropies[start:stop].mean():4.2f}")
            if cells.queries[stop - 1] >= trace.n_prompt:
                line += Text(" <" if canvas.mode == "ascii" else " ◂", "bold")
        lines.append(line)
    title = f"{_name(recording, view, layer, head)}{notes_of(view, cells)}"
    factors = [pool_factor(len(places), room) for places in (cells.queries, cells.keys)]
    if max(factors) > 1:
        title += f" · {factors[0]}x{factors[1]} {view.pool}-pooled"
        title += f", the last {_PINNED} queries alone" if factors[0] > 1 else ""
    footer = canvas.legend(cells.ink)
    if view.show != "rollout" and (
        label := recording.found.label(trace.row_of(layer), trace.column_of(head))
    ):
        footer += f" · {label}"
    if beside and trace.n_prompt < trace.length:
        footer += " · < decode step" if canvas.mode == "ascii" else " · ◂ decode step"
    return Group(Text(title), *lines, Text(footer, "dim"))


def _name(recording: Recording, view: MapView, layer: int, head: int) -> str:
    """What a map is of."""
    rows = rows_of(recording.trace)
    if view.show == "rollout":
        return f"rollout through layers 0..{layer} · {rows}"
    one = recording.trace.layer(layer)
    return (
        f"layer {layer} head {head} (kv head {one.kv_head(head)}) · {rows} · scale {one.scale:.4g}"
    )


def _starts(count: int, room: int, *, alone: int = 0) -> npt.NDArray[np.int64]:
    """Where each line or column begins: with each one, or pooled but for the last few."""
    factor = pool_factor(count, room)
    pooled = count - alone if factor > 1 else 0
    return np.array([*range(0, pooled, factor), *range(pooled, count)], np.int64)


def _first_key(value: float, view: MapView, canvas: Canvas) -> str:
    """The first key's number in 13 cells, as a bar where it is a weight."""
    if math.isnan(value):
        return " " * 13
    if view.show in _SUM_TO_ONE:
        return f"{draw_bar(value, canvas, 8):<8}{value:>4.0%} "
    return f"{value:>11.2f}  "


def _greatest(numbers: FloatArray) -> float:
    return float(numbers[np.argmax(np.abs(numbers))]) if len(numbers) else math.nan


def _key_numbers(keys: Sequence[int], cell: int) -> str:
    """The keys' numbers over their columns, as many as there is room for."""
    line = ""
    for column, key in enumerate(keys):
        number = str(key)
        start = (column + 1) * cell - len(number)
        if start >= len(line) + (1 if line else 0):
            line = line.ljust(start) + number
    return line.ljust(len(keys) * cell)


def _beside(cells: Cells, start: int, stop: int, tokens: Sequence[bytes], canvas: Canvas) -> str:
    """The strongest of the shown keys, its token and number; 18 cells."""
    numbers = cells.numbers[start:stop]
    if not numbers.size or np.isnan(numbers).all() or np.nanmax(numbers) == 0:
        return "   -".ljust(18)
    column = int(np.nanargmax(numbers)) % numbers.shape[1]
    key, value = cells.keys[column], float(np.nanmax(numbers))
    shown = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return f"{key:>4} {token_label(tokens[key], canvas, 7)} {shown:<5}"
