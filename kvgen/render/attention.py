"""Attention in the terminal: all layers and heads at a glance, and a layer's heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.diagnostics import METRICS
from kvgen.attention.record import Recording
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import (
    WEIGHT_INK,
    Canvas,
    Ink,
    Pool,
    draw_level,
    draw_map,
    pool,
    pool_factor,
    pool_map,
    side_by_side,
)
from kvgen.render.head_map import MapView, chosen_cells, notes_of, rows_of

USUAL_PANELS = ("sink", "previous", "induction", "entropy")

_FOOTER = "Weights show where a head reads, not why the model answers."


def verify_line(recording: Recording) -> str:
    """How far the shown maps agree with what the kernel used."""
    line = f"verified: |recomputed - kernel| <= {recording.found.recomputed:.1e}"
    if recording.decode_rows is not None:
        line += f", |decode rows - one full pass| <= {recording.decode_rows:.1e}"
    return line


def summary(
    recording: Recording, canvas: Canvas, *, metrics: Sequence[str] = USUAL_PANELS
) -> RenderableType:
    """Layers x heads, one panel per diagnostic, each on a fixed scale of 0..1.

    Distances, which have no such bound, are shown as parts of the longest one there could be.
    """
    trace = recording.trace
    panels = []
    for name in metrics:
        distance = name.startswith("distance")
        values = recording.found.scores[name]
        if distance:
            values = values / np.float32(max(1, trace.length - 1))
        panels.append((METRICS[name] + (f"/{trace.length - 1}" if distance else ""), values))
    n_heads = len(trace.heads)
    step = 2 if 4 * (2 * n_heads + 3) + 6 <= canvas.width else 1
    panel_width = max(step * n_heads, *(len(title) for title, _ in panels)) + 2
    per_row = max(1, (canvas.width - 6) // panel_width)
    parts: list[RenderableType] = [Text(f"layers x heads · {rows_of(trace)}")]
    for begin in range(0, len(panels), per_row):
        parts += _panels(trace, panels[begin : begin + per_row], canvas, step, panel_width)
    parts.append(Text(_strongest(recording)))
    parts.append(Text(f"next: -l LAYER for its heads. {_FOOTER}", "dim"))
    return Group(*parts)


def _panels(
    trace: AttentionTrace,
    panels: Sequence[tuple[str, FloatArray]],
    canvas: Canvas,
    step: int,
    width: int,
) -> list[Text]:
    n_heads = len(trace.heads)
    numbers = "".join(f"{head % 10}".ljust(step) for head in trace.heads)
    lines = [
        Text("layer ") + Text("".join(name.ljust(width) for name, _ in panels)),
        Text(" head ") + Text("".join(numbers.ljust(width) for _ in panels), "dim"),
    ]
    for row, layer in enumerate(trace.layers):
        line = Text(f"{layer.layer:>4}  ")
        for _, values in panels:
            for value in values[row].tolist():
                line += draw_level(value, canvas) + Text(" " * (step - 1))
            line += Text(" " * (width - step * n_heads))
        lines.append(line)
    return lines


def _strongest(recording: Recording) -> str:
    """The best head of each kind; nothing of a kind that no row counts for."""
    named = []
    for name in ("previous", "induction", "duplicate", "sink"):
        values = recording.found.scores[name]
        if not np.isnan(values).all():
            row, column = np.unravel_index(int(np.nanargmax(values)), values.shape)
            trace = recording.trace
            place = f"{trace.layers[row].layer}.{trace.heads[column]}"
            named.append(f"{name} {place} {values[row, column]:.2f}")
    return "strongest (layer.head): " + "  ".join(named)


def layer_grid(
    recording: Recording, *, layer: int, heads: Sequence[int], canvas: Canvas, view: MapView
) -> RenderableType:
    """A layer's heads as thumbnails, with what each one does where that is clear.

    All on one scale, up to the greatest of them where the shown numbers have no bound.
    """
    trace = recording.trace
    layer_trace = trace.layer(layer)
    row = trace.row_of(layer)
    side = 24 if canvas.width >= 52 else max(8, canvas.width - 4)
    per_row = max(1, canvas.width // (side + 2))
    if view.sink == "split":
        view = replace(view, sink="keep")  # no room for a bar
    blocks = []
    chosen = [chosen_cells(recording, view, layer=layer, head=head) for head in heads]
    most = max(cells.ink.most for cells in chosen)
    for head, cells in zip(heads, chosen, strict=True):
        title = f"{layer}.{head} {recording.found.label(row, trace.column_of(head))}"
        ink = replace(cells.ink, most=most)
        thumbnail = thumbnail_lines(cells.numbers, canvas, side, ink, view.pool)
        kv = f"kv {layer_trace.kv_head(head)}".ljust(side)
        blocks.append([Text(title), *thumbnail, Text(kv, "dim"), Text()])
    heading = f"layer {layer} · {len(heads)} heads on {layer_trace.k.shape[1]} key/value heads · "
    factor = pool_factor(max(chosen[0].numbers.shape), side)
    pooled = f" · {factor}x{factor} {view.pool}-pooled" if factor > 1 else ""
    return Group(
        Text(heading + rows_of(trace) + notes_of(view, chosen[0]) + pooled),
        Text("rows are queries, columns are keys; " + canvas.legend(ink), "dim"),
        *(
            line
            for begin in range(0, len(blocks), per_row)
            for line in side_by_side(blocks[begin : begin + per_row])
        ),
    )


def thumbnail_lines(
    numbers: FloatArray, canvas: Canvas, side: int, ink: Ink = WEIGHT_INK, how: Pool = "max"
) -> list[Text]:
    """A map pooled to at most side x side/2 lines, or widened to fill them."""
    if not numbers.size:
        return [Text()]
    columns = pool_map(numbers, pool_factor(max(numbers.shape), side), how)
    width = max(1, side // max(columns.shape))
    if canvas.mode == "color":
        rows = np.repeat(columns, width, axis=0)
        return draw_map(rows, canvas, ink, cell_width=width, halves=True)
    # A character is about twice as high as wide: rows are pooled twice as much.
    if width == 1:
        rows = pool(columns, np.arange(0, len(columns), 2), 0, how)
    else:
        rows = np.repeat(columns, max(1, width // 2), axis=0)
    return draw_map(rows, canvas, ink, cell_width=width)
