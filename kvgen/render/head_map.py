"""One head's map in the terminal, and the choice of its measure, window and scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.diagnostics import MEANINGS, row_entropy
from kvgen.attention.measures import MEASURES, SIGNED, measured, rollout
from kvgen.attention.record import RecordedRun
from kvgen.attention.steps import attention_weights
from kvgen.choices import Measure, Pool, Scale, Sink
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import (
    TOKEN_CELLS,
    Canvas,
    causal,
    draw_bar,
    draw_map,
    name_label,
    pool,
    pool_factor,
    token_label,
)
from kvgen.render.ink import Ink
from kvgen.render.layout import flow
from kvgen.render.predicted import next_token, predicts

Span = tuple[int | None, int | None]  # as in a slice
LAST_ALONE = 8  # last queries, which a pooled map shows one by one: decoding is about them
_SUM_TO_ONE = frozenset({"weights", "rollout"})  # each row sums to 1
_WITHIN_ONE = _SUM_TO_ONE | {"share", "cos"}  # the others have no bound of their own
KV_HEAD = "kv head: whose K and V the head reads"
_NEXT_CELLS = 15  # of the token that came next
_WIDE = 80  # columns from which the strongest key stands beside the map, else below it


@dataclass(frozen=True, slots=True, kw_only=True)
class MapView:
    """The measure and the window of a map, and how it is drawn."""

    show: Measure | Literal["rollout"] = "weights"  # rollout: of all layers up to this one
    scale: Scale = "sqrt"
    most: float | None = None  # value drawn at full brightness; None: 1, or the greatest shown
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
    """How many rows a recording has, of the prompt and of decode steps."""
    n_decode = trace.length - trace.n_prompt
    return f"{trace.length} tokens ({trace.n_prompt} prompt + {n_decode} decode)"


def chosen_cells(recording: RecordedRun, view: MapView, *, layer: int, head: int) -> Cells:
    """The part of one head's map, or of the rollout up to its layer, that a view shows.

    Raises UsageError where that was not recorded.
    """
    trace = recording.trace
    if view.show == "rollout":
        whole = causal(rollout(trace, layer))
    else:
        whole = measured(trace, view.show, layer=layer, head=head, norms=recording.residual_norms)
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
    visible = np.abs(numbers[~np.isnan(numbers)])
    most = 1.0 if view.show in _WITHIN_ONE else float(visible.max(initial=0.0))
    ink = Ink(
        name=view.show if view.show == "rollout" else MEASURES[view.show],
        scale=view.scale,
        most=view.most or most or 1.0,
        signed=view.show in SIGNED,
    )
    return Cells(numbers, queries, keys, first, ink)


def notes_of(view: MapView, cells: Cells) -> list[str]:
    """How a view differs from the whole map as it is."""
    notes = []
    if view.sink == "drop":
        kept = "renormalised without" if view.show in _SUM_TO_ONE else "without"
        notes.append(f"{kept} key 0")
    if view.queries != (None, None):
        notes.append(f"queries {_ends(cells.queries)}")
    if view.keys != (None, None):
        notes.append(f"keys {_ends(cells.keys)}")
    return notes


def _ends(places: range) -> str:
    return f"{places[0]}..{places[-1]}" if places else "none"


def head_map(
    recording: RecordedRun,
    tokens: Sequence[bytes],
    *,
    layer: int,
    head: int,
    canvas: Canvas,
    view: MapView,
    names: Mapping[int, bytes] | None = None,
) -> RenderableType:
    """One head's map: each query's row, the first key apart, and the strongest other key.

    The strongest key and the entropy stand beside the map, on a narrow canvas below it; beside a
    small map also the token that came next, with its probability. `names` are the bytes of the
    tokens that the last row predicts.
    """
    trace = recording.trace
    one = trace.layer(layer)
    cells = chosen_cells(recording, view, layer=layer, head=head)
    digits = max(3, len(str(trace.length - 1)))
    of_first = 13 if cells.first is not None else 0
    beside = canvas.width >= _WIDE
    label_width = digits + 1 + TOKEN_CELLS + 2
    room = canvas.width - (label_width + of_first + 1) - (26 if beside else 2)
    with_next = beside and recording.predictions is not None
    with_next = with_next and room - _NEXT_CELLS >= 2 * len(cells.keys)
    room -= _NEXT_CELLS * with_next
    line_starts = pool_starts(len(cells.queries), room, alone=LAST_ALONE)
    key_starts = pool_starts(len(cells.keys), room)
    pooled = pool(pool(cells.numbers, key_starts, 1, view.pool), line_starts, 0, view.pool)
    cell = max(1, min(3, room // max(len(key_starts), 1)))
    edge = "|" if canvas.mode == "ascii" else "│"
    first_title = "key 0".ljust(of_first) if of_first else ""
    left = f"{'q':>{digits}} {'token':<{TOKEN_CELLS}}  "
    heading = f"{left}{first_title}"
    heading += f"{edge}{key_numbers([cells.keys[start] for start in key_starts], cell)}{edge}"
    entropies = None
    if view.show != "rollout":
        entropies = row_entropy(attention_weights(one.only(head))[0])[slice(*view.queries)]
    top = "top other key" if view.sink != "keep" else "top key"
    if view.show == "distance":
        top = "nearest other" if view.sink != "keep" else "nearest key"
    aside = f" {top:<16}" + ("" if entropies is None else " H/nats")
    aside += "  next came" * with_next
    lines = [Text(heading + aside * beside, "dim")]
    below = [] if beside else [Text(left + aside.lstrip(), "dim")]
    drawn = draw_map(pooled, canvas, cells.ink, cell_width=cell)
    ends = [*line_starts[1:].tolist(), len(cells.queries)]
    for row, start, stop in zip(drawn, line_starts.tolist(), ends, strict=True):
        query = cells.queries[start]
        name = f"{query:>{digits}} {token_label(tokens[query], canvas, TOKEN_CELLS)}  "
        line = Text(name)
        if cells.first is not None:
            line += Text(_first_key(_greatest(cells.first[start:stop]), view, canvas))
        line += Text(edge) + row + Text(edge)
        words = _beside(cells, start, stop, tokens, canvas, least=view.show == "distance")
        if entropies is not None:
            words += f" {entropies[start:stop].mean():4.2f}"
        if with_next:
            words += _next_came(recording, cells.queries[start], names or {}, canvas)
        mark = Text()
        if cells.queries[stop - 1] >= trace.n_prompt:
            mark = Text(" <" if canvas.mode == "ascii" else " ◂", "bold")
        if beside:
            lines.append(line + Text(words) + mark)
        else:
            lines.append(line)
            below.append(Text(name + words.removeprefix(" ")) + mark)
    title = [*_name(recording, view, layer, head), *notes_of(view, cells)]
    title += pooling_of(cells.queries, cells.keys, room, view.pool)
    return Group(
        flow(title, canvas.width, between=" · "),
        *lines,
        *below,
        *(predicts(recording, cells.queries[-1], names or {}, canvas) if cells.queries else []),
        *_legend(recording, view, layer, head, cells, canvas),
    )


def _next_came(
    recording: RecordedRun, query: int, names: Mapping[int, bytes], canvas: Canvas
) -> str:
    """The token behind a row and its probability, in 15 cells."""
    came = next_token(recording, query)
    if came is None:
        return " " * _NEXT_CELLS
    return f"  {name_label(came[0], names, canvas, 8)} {came[1]:.2f}"


def _legend(
    recording: RecordedRun, view: MapView, layer: int, head: int, cells: Cells, canvas: Canvas
) -> list[Text]:
    """The cells' numbers, and the words that a map uses."""
    trace = recording.trace
    more, terms = [], []
    if trace.n_prompt < trace.length:
        more.append("< decode step" if canvas.mode == "ascii" else "◂ decode step")
    if view.show == "rollout":
        terms.append("rollout: the part of each token that reaches a position through all layers")
    else:
        terms.append(KV_HEAD)
        terms.append("H: entropy of the row, 0 = all on one key")
    if cells.first is not None:
        sink = " (the sink): where a head rests that finds nothing"
        terms.append("key 0" + (sink if view.show == "weights" else " stands apart"))
    if view.show == "weights":  # a name is given by the weights
        place = trace.row_of(layer), trace.column_of(head)
        metric = recording.diagnostics.labelled_by(*place)
        if metric is not None:
            terms.append(f"{recording.diagnostics.label(*place)}: {MEANINGS[metric]}")
    return [
        canvas.legend(cells.ink, *more),
        flow([Text(term, "dim") for term in terms], canvas.width, between=" · "),
    ]


def _name(recording: RecordedRun, view: MapView, layer: int, head: int) -> list[str]:
    """Which layer and head a map belongs to."""
    rows = rows_of(recording.trace)
    if view.show == "rollout":
        return [f"rollout through layers 0..{layer}", rows]
    one = recording.trace.layer(layer)
    return [
        f"layer {layer} head {head} (kv head {one.kv_head(head)})",
        rows,
        f"scale {one.scale:.4g}",
    ]


def pool_starts(count: int, room: int, *, alone: int = 0) -> npt.NDArray[np.int64]:
    """The first row of each line, or column of each cell; the last few are not pooled."""
    factor = pool_factor(count, room)
    pooled = count - alone if factor > 1 else 0
    return np.array([*range(0, pooled, factor), *range(pooled, count)], np.int64)


def pooling_of(queries: range, keys: range, room: int, how: Pool) -> list[str]:
    """How a map of these rows and columns is pooled in so many cells, where it is."""
    of_rows, of_columns = (pool_factor(len(places), room) for places in (queries, keys))
    if max(of_rows, of_columns) == 1:
        return []
    alone = f", the last {LAST_ALONE} queries alone" if of_rows > 1 else ""
    return [f"{of_rows}x{of_columns} {how}-pooled{alone}"]


def _first_key(value: float, view: MapView, canvas: Canvas) -> str:
    """The first key's number in 13 cells, as a bar where it is a weight."""
    if math.isnan(value):
        return " " * 13
    if view.show in _SUM_TO_ONE:
        return f"{draw_bar(value, canvas, 8):<8}{value:>4.0%} "
    return f"{value:>11.2f}  "


def _greatest(numbers: FloatArray) -> float:
    return float(numbers[np.argmax(np.abs(numbers))]) if len(numbers) else math.nan


def key_numbers(keys: Sequence[int], cell: int) -> str:
    """The keys' numbers over their columns, as many as there is room for."""
    line = ""
    for column, key in enumerate(keys):
        number = str(key)
        start = (column + 1) * cell - len(number)
        if start >= len(line) + (1 if line else 0):
            line = line.ljust(start) + number
    return line.ljust(len(keys) * cell)


def _beside(
    cells: Cells, start: int, stop: int, tokens: Sequence[bytes], canvas: Canvas, *, least: bool
) -> str:
    """The shown key with the greatest number, or the least, its token and number; 18 cells."""
    numbers = cells.numbers[start:stop]
    if not numbers.size or np.isnan(numbers).all() or np.nanmax(numbers) == 0:
        return "   -".ljust(18)
    place = int((np.nanargmin if least else np.nanargmax)(numbers))
    column = place % numbers.shape[1]
    key, value = cells.keys[column], float(numbers.ravel()[place])
    shown = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return f"{key:>4} {token_label(tokens[key], canvas, 7)} {shown:<5}"
