"""Attention in the terminal: summary, a layer's heads, one map, one row with its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvgen.attention.diagnostics import Diagnostics, row_entropy
from kvgen.attention.record import Recording
from kvgen.attention.steps import RowExplanation, attention_weights
from kvgen.render.canvas import (
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

_LABEL = 10  # cells of a token
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
    n_heads = trace.layers[0].q.shape[1]
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
    row = [each.layer for each in trace.layers].index(layer)
    weights = attention_weights(layer_trace)
    group = layer_trace.q.shape[1] // layer_trace.k.shape[1]
    side = 24 if canvas.width >= 52 else max(8, canvas.width - 4)
    per_row = max(1, canvas.width // (side + 2))
    blocks = []
    for head in heads:
        title = f"{layer}.{head} {found.label(row, head, n_rows=trace.length)}"
        thumbnail = thumbnail_lines(causal(weights[head]), canvas, side)
        kv = f"kv {head // group}".ljust(side)
        blocks.append([Text(title), *thumbnail, Text(kv, "dim"), Text()])
    heading = f"layer {layer} · {len(heads)} heads on {layer_trace.k.shape[1]} key/value heads · "
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
    row = [each.layer for each in trace.layers].index(layer)
    weights = attention_weights(layer_trace)[head]
    T = trace.length
    group = layer_trace.q.shape[1] // layer_trace.k.shape[1]
    beside = canvas.width >= 80
    room = canvas.width - (3 + 1 + _LABEL + 2 + 13 + 1) - (26 if beside else 2)
    factor = _pooling(max(T - 1, 1), max(room, 1))
    others = pool_map(causal(weights)[:, 1:], factor)
    cell = max(1, min(3, room // max(others.shape[1], 1)))
    title = (
        f"layer {layer} head {head} (kv head {head // group}) · {_rows_of(trace)} · "
        f"scale {layer_trace.scale:.4g}"
    )
    label = found.label(row, head, n_rows=T)
    if factor > 1:
        title += f" · {factor}x{factor} max-pooled"
    edge = "|" if canvas.mode == "ascii" else "│"
    numbers = _key_numbers(others.shape[1], cell, factor)
    heading = f"  q {'token':<{_LABEL}}  {'key 0':<13}{edge}{numbers}{edge}"
    lines = [Text(heading + (" top other key    H/nats" if beside else ""), "dim")]
    entropies = row_entropy(weights)
    drawn = draw_map(others, canvas, cell_width=cell)
    for line_number, cells in enumerate(drawn):
        query = min(line_number * factor, T - 1)
        sink = weights[query, 0]
        line = Text(f"{query:>3} {token_label(tokens[query], canvas, _LABEL)}  ")
        line += Text(f"{draw_bar(float(sink), canvas, 8):<8}{sink:>4.0%} {edge}")
        line += cells + Text(edge)
        if beside:
            line += Text(_beside(weights[query, 1 : query + 1], tokens, canvas))
            line += Text(f" {entropies[query]:5.2f}")
            if query >= trace.n_prompt:
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
    if not len(others):
        return "   -".ljust(17)
    best = int(np.argmax(others))
    return f"{best + 1:>4} {token_label(tokens[best + 1], canvas, 7)} {others[best]:.2f}"


def explanation(
    trace: AttentionTrace,
    tokens: Sequence[bytes],
    explained: RowExplanation,
    *,
    layer: int,
    head: int,
    query: int,
    canvas: Canvas,
) -> RenderableType:
    """One query's walk through the formula, a line per key."""
    layer_trace = trace.layer(layer)
    S, D = query + 1, layer_trace.q.shape[2]
    d_v = layer_trace.v.shape[2]
    group = layer_trace.q.shape[1] // layer_trace.k.shape[1]
    shown = _most_telling(explained.shares)
    others = [j for j in range(S) if j not in shown]

    def column(values: FloatArray, form: str, *, adds_up: bool = False) -> list[str]:
        """The shown keys' cells, then the others' sum and the whole sum where adding means much."""
        sums = [values[others].sum(), values.sum()] if adds_up else []
        return [format(value, form) for value in (*values[shown], *sums)] + [""] * (2 - len(sums))

    labels = [token_label(tokens[j], canvas, _LABEL) for j in shown]
    columns = {
        "j": [*map(str, shown), "", ""],
        "key": [*labels, f"{len(others)} others", "sum"],
        "1) q·k_j": column(explained.products, ".2f"),
        "|k_j|": column(explained.key_lengths, ".2f"),
        "cos": column(explained.cosines, "+.3f"),
        "2) scaled": column(explained.scaled, ".3f"),
        "3) exp(s-max)": column(explained.exponentials, ".5f", adds_up=True),
        "4) w_j": column(explained.weights, ".4f", adds_up=True),
        "|v_j|": column(explained.value_lengths, ".2f"),
        "5) share": column(explained.shares, "+.3f", adds_up=True),
    }
    for name in ("|k_j|", "|v_j|", "cos", "3) exp(s-max)", "2) scaled"):
        widths = [max(map(cell_len, (heading, *cells))) for heading, cells in columns.items()]
        if sum(widths) + len(widths) + 1 > canvas.width:
            del columns[name]
    table = Table(box=None, padding=(0, 1), collapse_padding=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    *keys, rest, total = zip(*columns.values(), strict=True)
    for cells in (*keys, rest) if others else keys:
        table.add_row(*map(Text, cells))
    table.add_row(*total, style="bold")
    if query < trace.n_prompt:
        origin = f"prefill: k_0..{query} v_0..{query} are computed and kept"
    else:
        origin = (
            f"from the cache k_0..{query - 1} v_0..{query - 1}, new k_{query} v_{query} q_{query}"
        )
    label = token_label(tokens[query], canvas, _LABEL).strip()
    return Group(
        Text(
            f"layer {layer} head {head} (kv head {head // group}) · query {query} {label} · "
            f"d_k = {D}, d_v = {d_v}, scale = {layer_trace.scale:.4g} · "
            f"|q| = {explained.query_length:.2f}"
        ),
        Text(f"o_{query} = sum over j <= {query} of softmax_j(q_{query} · k_j * scale) v_j"),
        table,
        Text(
            f"shapes  q ({D},)  K ({S}, {D})  scores ({S},)  weights ({S},)  V ({S}, {d_v})  "
            f"o ({d_v},)"
        ),
        Text(f"{origin} · q_{query} is not kept: no later step reads it"),
    )


def _most_telling(shares: FloatArray, most: int = 16, kept: int = 12) -> list[int]:
    """All keys, or the 12 with the greatest |share| where there are more than 16."""
    if len(shares) <= most:
        return list(range(len(shares)))
    return sorted(np.argsort(-np.abs(shares), kind="stable")[:kept].tolist())
