"""Attention in the terminal: all layers and heads at a glance, and a layer's heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.diagnostics import MEANINGS, METRICS
from kvgen.attention.record import RecordedRun
from kvgen.render.canvas import TOKEN_CELLS, Canvas, token_label
from kvgen.render.head_map import MapView, chosen_cells, notes_of, rows_of
from kvgen.render.head_panels import head_panels, level_legend
from kvgen.render.layout import flow, side_by_side
from kvgen.render.thumbnail import Thumbnail, thumbnail

USUAL_PANELS = ("sink-later", "previous", "induction", "entropy")

_FOOTER = "Weights show where a head reads, not why the model answers."
_NARROW = 80  # columns below which token labels are short
_SHORT_LABEL = 4


def verify_line(recording: RecordedRun) -> str:
    """How far the output recomputed from the shown maps is from the kernel's."""
    line = f"verified: |recomputed - kernel| <= {recording.diagnostics.recomputed:.1e}"
    if recording.decode_rows is not None:
        line += f", |decode rows - one full pass| <= {recording.decode_rows:.1e}"
    return line


def summary(
    recording: RecordedRun, canvas: Canvas, *, metrics: Sequence[str] = USUAL_PANELS
) -> RenderableType:
    """Layers x heads, one panel per diagnostic, each on a fixed scale of 0..1.

    Distances, which have no such bound, are divided by the longest possible one.
    """
    trace = recording.trace
    panels = []
    for name in metrics:
        distance = name.startswith("distance")
        values = recording.diagnostics.scores[name]
        if distance:
            values = values / np.float32(max(1, trace.length - 1))
        panels.append((METRICS[name] + (f"/{trace.length - 1}" if distance else ""), values))
    meanings = [
        Text(f"{title}: {MEANINGS[metric]}", "dim")
        for metric, (title, _) in zip(metrics, panels, strict=True)
    ]
    return Group(
        Text(f"layers x heads · {rows_of(trace)}"),
        *head_panels(trace, panels, canvas),
        level_legend(canvas, "each a mean over rows; blank: no row to count"),
        flow(meanings, canvas.width, between=" · "),
        Text(_strongest(recording)),
        Text(f"next: -l LAYER for its heads. {_FOOTER}", "dim"),
    )


def _strongest(recording: RecordedRun) -> str:
    """The best head of each kind; a kind without a counted row is left out."""
    named = []
    for metric in ("previous", "induction", "duplicate", "sink-later"):
        values = recording.diagnostics.scores[metric]
        name = metric.removesuffix("-later")
        if not np.isnan(values).all():
            row, column = np.unravel_index(int(np.nanargmax(values)), values.shape)
            trace = recording.trace
            place = f"{trace.layers[row].layer}.{trace.heads[column]}"
            named.append(f"{name} {place} {values[row, column]:.2f}")
    return "strongest (layer.head): " + "  ".join(named)


def layer_grid(
    recording: RecordedRun,
    tokens: Sequence[bytes] = (),
    *,
    layer: int,
    heads: Sequence[int],
    canvas: Canvas,
    view: MapView,
) -> RenderableType:
    """A layer's heads as thumbnails, named by their diagnostics where these are clear.

    Rows are labelled with their tokens where these are given. All heads are on one scale, up to
    the greatest of them where the shown numbers have no bound.
    """
    trace = recording.trace
    layer_trace = trace.layer(layer)
    side = 24 if canvas.width >= 52 else max(8, canvas.width - 4)
    if view.sink == "split":
        view = replace(view, sink="keep")  # no room for a bar
    chosen = [chosen_cells(recording, view, layer=layer, head=head) for head in heads]
    ink = replace(chosen[0].ink, most=max(cells.ink.most for cells in chosen))
    drawn = [thumbnail(cells.numbers, canvas, side, ink, view.pool) for cells in chosen]
    blocks = []
    for head, cells, small in zip(heads, chosen, drawn, strict=True):
        label = ""
        if view.show == "weights":  # a name is given by the weights
            label = recording.diagnostics.label(trace.row_of(layer), trace.column_of(head))
        title = Text(f"{layer}.{head} {label}".ljust(side))
        edge = Text(first_and_last_key(cells.keys, small), "dim")
        kv = Text(f"kv {layer_trace.kv_head(head)}", "dim")
        blocks.append([title, *small.lines, edge, kv, Text()])
    n_cells = TOKEN_CELLS if canvas.width >= _NARROW else _SHORT_LABEL

    def name_of(query: int) -> str:
        return token_label(tokens[query], canvas, n_cells) if tokens else ""

    gutter = row_labels(chosen[0].queries, drawn[0], name_of)
    room = canvas.width - max(line.cell_len for line in gutter) - 2
    per_row = max(1, (room + 2) // (side + 2))
    bands = [
        side_by_side([gutter, *blocks[begin : begin + per_row]])
        for begin in range(0, len(blocks), per_row)
    ]
    heading = [
        f"layer {layer}",
        f"{len(heads)} heads on {layer_trace.k.shape[1]} key/value heads",
        rows_of(trace),
        *notes_of(view, chosen[0]),
        *filter(None, [drawn[0].note()]),
    ]
    return Group(
        flow(heading, canvas.width, between=" · "),
        *(line for band in bands for line in band),
        canvas.legend(ink),
        Text("rows are queries, columns are keys · kv: whose K and V the head reads", "dim"),
    )


def first_and_last_key(keys: range, small: Thumbnail) -> str:
    """The first and the last key below the columns of a map."""
    if not keys:
        return ""
    first, last = f"{keys[0]}", f"{keys[-1]}" if len(keys) > 1 else ""
    return first + last.rjust(small.lines[-1].cell_len - len(first))


def row_labels(queries: range, small: Thumbnail, label: Callable[[int], str]) -> list[Text]:
    """The first query of each line, with its label, and words for the other lines of a block."""
    digits = len(str(queries[-1] if queries else 0))
    labels = [Text("query".rjust(digits), "dim")]
    before = -1
    for row in small.first_rows:
        words = ""
        if row != before and row < len(queries):
            query = queries[row]
            words = f"{query:>{digits}}" + (f" {name}" if (name := label(query)) else "")
        labels.append(Text(words, "dim"))
        before = row
    return [*labels, Text("key", "dim"), Text(), Text()]
