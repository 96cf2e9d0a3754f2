"""Attention in the terminal: summary, a layer's heads, one map, one row with its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.diagnostics import Diagnostics, row_entropy
from kvgen.attention.record import Recording
from kvgen.attention.steps import attention_weights
from kvgen.render.canvas import (
    TOKEN_CELLS,
    Canvas,
    causal,
    draw_bar,
    draw_level,
    draw_map,
    pool_map,
    side_by_side,
    token_label,
)
from kvgen.tensors import FloatArray
from kvgen.trace import AttentionTrace

_FOOTER = "Weights show where a head reads, not why the model answers."


def verify_line(recording: Recording) -> str:
    """How far the shown maps agree with what the kernel used."""
    line = f"verified: |recomputed - kernel| <= {recording.recomputed:.1e}"
    if recording.decode_rows is not None:
        line += f", |decode rows - one full pass| <= {recording.decode_rows:.1e}"
    return line


def _rows_of(trace: AttentionTrace) -> str:
    n_decode = trace.length - trace.n_prompt
    return f"{trace.length} tokens ({trace.n_prompt} prompt + {n_decode} decode)"


def summary(trace: AttentionTrace, found: Diagnostics, canvas: Canvas) -> RenderableType:
    """Layers x heads, one panel per diagnostic, each on a fixed scale of 0..1."""
    panels = [
        ("sink mass", found.sink),
        ("previous token", found.previous),
        ("induction", found.induction),
        ("entropy", found.entropy),
    ]
    n_heads = found.sink.shape[1]
    step = 2 if 4 * (2 * n_heads + 3) + 6 <= canvas.width else 1
    panel_width = max(step * n_heads, len("previous token")) + 2
    per_row = max(1, (canvas.width - 6) // panel_width)
    parts: list[RenderableType] = [Text(f"layers x heads · {_rows_of(trace)}")]
    for begin in range(0, len(panels), per_row):
        parts += _panels(trace, panels[begin : begin + per_row], canvas, step, panel_width)
    parts.append(Text(_strongest(trace, found)))
    parts.append(Text(f"next: -l LAYER for its heads. {_FOOTER}", "dim"))
    return Group(*parts)


def _panels(
    trace: AttentionTrace,
    panels: Sequence[tuple[str, FloatArray]],
    canvas: Canvas,
    step: int,
    width: int,
) -> list[Text]:
    n_heads = trace.layers[0].n_heads
    numbers = "".join(f"{head % 10}".ljust(step) for head in range(n_heads))
    lines = [
        Text("layer ") + Text("".join(name.ljust(width) for name, _ in panels)),
        Text(" head ") + Text("".join(numbers.ljust(width) for _ in panels), "dim"),
    ]
    for row, layer in enumerate(trace.layers):
        line = Text(f"{layer.layer:>4}  ")
        for _, values in panels:
            for head in range(n_heads):
                line += draw_level(float(values[row, head]), canvas) + Text(" " * (step - 1))
            line += Text(" " * (width - step * n_heads))
        lines.append(line)
    return lines


def _strongest(trace: AttentionTrace, found: Diagnostics) -> str:
    """The best head of each kind; nothing of a kind that no row counts for."""
    named = []
    for name, values in (
        ("previous", found.previous),
        ("induction", found.induction),
        ("duplicate", found.duplicate),
        ("sink", found.sink),
    ):
        if not np.isnan(values).all():
            row, head = np.unravel_index(int(np.nanargmax(values)), values.shape)
            place = f"{trace.layers[row].layer}.{head}"
            named.append(f"{name} {place} {values[row, head]:.2f}")
    return "strongest (layer.head): " + "  ".join(named)


def layer_grid(
    trace: AttentionTrace,
    found: Diagnostics,
    *,
    layer: int,
    heads: Sequence[int],
    canvas: Canvas,
) -> RenderableType:
    """A layer's heads as thumbnails, with what each one does where that is clear."""
    layer_trace = trace.layer(layer)
    row = trace.row_of(layer)
    weights = attention_weights(layer_trace)
    side = 24 if canvas.width >= 52 else max(8, canvas.width - 4)
    per_row = max(1, canvas.width // (side + 2))
    blocks = []
    for head in heads:
        title = f"{layer}.{head} {found.label(row, head, n_rows=trace.length)}"
        thumbnail = thumbnail_lines(causal(weights[head]), canvas, side)
        kv = f"kv {layer_trace.kv_head(head)}".ljust(side)
        blocks.append([Text(title), *thumbnail, Text(kv, "dim"), Text()])
    heading = f"layer {layer} · {len(heads)} heads on {layer_trace.n_kv_heads} key/value heads · "
    factor = _pooling(trace.length, side)
    pooled = f" · {factor}x{factor} max-pooled" if factor > 1 else ""
    return Group(
        Text(heading + _rows_of(trace) + pooled),
        Text("rows are queries, columns are keys; " + canvas.legend(), "dim"),
        *(
            line
            for begin in range(0, len(blocks), per_row)
            for line in side_by_side(blocks[begin : begin + per_row])
        ),
    )


def _pooling(n: int, cells: int) -> int:
    return math.ceil(n / cells)


def thumbnail_lines(weights: FloatArray, canvas: Canvas, side: int) -> list[Text]:
    """A map [T, T] pooled to at most side x side/2 lines, or widened to fill them."""
    T = weights.shape[1]
    factor = _pooling(T, side)
    if canvas.mode == "color":
        pooled = pool_map(weights, factor)
        width = max(1, side // pooled.shape[1])
        return draw_map(np.repeat(pooled, width, axis=0), canvas, cell_width=width, halves=True)
    # A character is about twice as high as wide: rows are pooled twice as much.
    columns = pool_map(weights, factor)
    width = max(1, side // columns.shape[1])
    rows = columns
    if width == 1:
        starts = np.arange(0, len(columns), 2)
        rows = np.fmax.reduceat(columns, starts, axis=0)
    else:
        rows = np.repeat(columns, max(1, width // 2), axis=0)
    return draw_map(rows, canvas, cell_width=width)


def head_map(
    trace: AttentionTrace,
    tokens: Sequence[bytes],
    found: Diagnostics,
    *,
    layer: int,
    head: int,
    canvas: Canvas,
) -> RenderableType:
    """One head's map: each query's row, the first key apart, the strongest other key beside it."""
    layer_trace = trace.layer(layer)
    row = trace.row_of(layer)
    weights = attention_weights(layer_trace)[head]
    T = trace.length
    beside = canvas.width >= 80
    digits = max(3, len(str(T - 1)))
    room = canvas.width - (digits + 1 + TOKEN_CELLS + 2 + 13 + 1) - (26 if beside else 2)
    factor = _pooling(max(T - 1, 1), max(room, 1))
    others = pool_map(causal(weights)[:, 1:], factor)
    cell = max(1, min(3, room // max(others.shape[1], 1)))
    title = (
        f"layer {layer} head {head} (kv head {layer_trace.kv_head(head)}) · {_rows_of(trace)} · "
        f"scale {layer_trace.scale:.4g}"
    )
    label = found.label(row, head, n_rows=T)
    if factor > 1:
        title += f" · lines and columns of {factor} (greatest weight, mean H)"
    edge = "|" if canvas.mode == "ascii" else "│"
    numbers = _key_numbers(others.shape[1], cell, factor)
    heading = f"{'q':>{digits}} {'token':<{TOKEN_CELLS}}  {'key 0':<13}{edge}{numbers}{edge}"
    lines = [Text(heading + (" top other key    H/nats" if beside else ""), "dim")]
    entropies = row_entropy(weights)
    drawn = draw_map(others, canvas, cell_width=cell)
    for query, cells in zip(range(0, T, factor), drawn, strict=True):
        pooled = slice(query, min(query + factor, T))  # the queries that share this line
        sink = float(weights[pooled, 0].max())
        line = Text(f"{query:>{digits}} {token_label(tokens[query], canvas, TOKEN_CELLS)}  ")
        line += Text(f"{draw_bar(sink, canvas, 8):<8}{sink:>4.0%} {edge}")
        line += cells + Text(edge)
        if beside:
            line += Text(_beside(weights[pooled, 1:].max(axis=0), tokens, canvas))
            line += Text(f" {entropies[pooled].mean():5.2f}")
            if pooled.stop > trace.n_prompt:
                line += Text(" <" if canvas.mode == "ascii" else " ◂", "bold")
        lines.append(line)
    footer = canvas.legend() + (f" · {label}" if label else "")
    if beside and trace.n_prompt < T:
        footer += " · < decode step" if canvas.mode == "ascii" else " · ◂ decode step"
    return Group(Text(title), *lines, Text(footer, "dim"))


def _key_numbers(n_keys: int, cell: int, factor: int) -> str:
    """The keys' numbers over their columns, as many as there is room for."""
    line = ""
    for column in range(n_keys):
        number = str(column * factor + 1)
        start = (column + 1) * cell - len(number)
        if start >= len(line) + (1 if line else 0):
            line = line.ljust(start) + number
    return line.ljust(n_keys * cell)


def _beside(others: FloatArray, tokens: Sequence[bytes], canvas: Canvas) -> str:
    """The strongest key but the first, its token and weight; 17 cells."""
    best = int(np.argmax(others)) if len(others) else 0
    if not len(others) or others[best] == 0:
        return "   -".ljust(17)
    return f"{best + 1:>4} {token_label(tokens[best + 1], canvas, 7)} {others[best]:.2f}"
