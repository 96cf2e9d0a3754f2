"""Decoding step by step: the live query, the rows that it reads, the row that is appended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.steps import attention_weights
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import TOKEN_CELLS, Canvas, draw_map, pool, pool_factor, token_label
from kvgen.render.ink import WEIGHT_INK


def decode_steps(
    trace: AttentionTrace, tokens: Sequence[bytes], *, layer: int, head: int, canvas: Canvas
) -> RenderableType:
    """One head's decode rows, a step each: where its query reads, and which rows are kept.

    The strongest keys stand beside each row, on a narrow canvas below it.
    """
    weights = attention_weights(trace.layer(layer).only(head))[0]
    P, T = trace.n_prompt, trace.length
    digits = len(str(T))
    below = canvas.width < 70
    n_strongest = 2 if below or canvas.width >= 90 else 1
    aside = digits + TOKEN_CELLS + digits + 19  # the words before the row
    beside = 0 if below else n_strongest * (digits + TOKEN_CELLS + 7)
    room = max(10, canvas.width - aside - beside)
    factor = pool_factor(T, room)
    starts = np.arange(0, T, factor)
    edge = "|" if canvas.mode == "ascii" else "│"
    pooled = f" · columns of {factor} (greatest weight)" if factor > 1 else ""
    lines: list[Text] = [
        Text(
            f"layer {layer} head {head} (kv head {trace.layer(layer).kv_head(head)}) · decode "
            f"steps{pooled}"
        ),
        Text(
            f"prefill: {P} queries; k_0..{P - 1} and v_0..{P - 1} are kept, the queries are not",
            "dim",
        ),
    ]
    for query in range(P, T):
        row = weights[query]
        shown = np.full((1, T), np.nan, np.float32)
        shown[0, : query + 1] = row[: query + 1]
        line = Text(f"q_{query:<{digits}} {token_label(tokens[query], canvas, TOKEN_CELLS)}")
        line.append(f" reads 0..{query - 1:<{digits}} +1 ")
        line += Text(edge) + draw_map(pool(shown, starts, 1), canvas)[0]
        line.append(edge)
        lines.append(line)
        if below:
            lines.append(Text(" " * (digits + 2)))
        for key in np.argsort(-row[: query + 1], kind="stable")[:n_strongest]:
            label = token_label(tokens[key], canvas, TOKEN_CELLS)
            lines[-1].append(f" {key:>{digits}} {label} {row[key]:.2f}")
    lines.append(canvas.legend(WEIGHT_INK, "after the row: its strongest keys"))
    lines.append(
        Text(
            "+1: the step's own k and v are appended to the cache and read at every later step; "
            "its q is used in this step only",
            "dim",
        )
    )
    return Group(*lines)


def live_row(
    weights: FloatArray,
    tokens: Sequence[bytes],
    *,
    layer: int,
    head: int,
    n_prompt: int,
    canvas: Canvas,
) -> RenderableType:
    """The row of the newest query, over S positions, and the cache that it reads."""
    S = len(weights)
    factor = pool_factor(S, max(10, canvas.width - 4))
    edge = "|" if canvas.mode == "ascii" else "│"
    strongest = "  ".join(
        f"{key} {token_label(tokens[key], canvas, TOKEN_CELLS).strip()} {weights[key]:.2f}"
        for key in np.argsort(-weights, kind="stable")[:3]
    )
    kept, new = ("#", "+") if canvas.mode == "ascii" else ("█", "░")
    columns = -(-S // factor)
    old = (S - 1) // factor if n_prompt < S else 0
    cache = Text(f"{edge}{kept * old}{new * (columns - old)}{edge}", "dim")
    row = (
        Text(edge)
        + draw_map(pool(weights[None], np.arange(0, S, factor), 1), canvas)[0]
        + Text(edge)
    )
    appended = S - 1 if n_prompt < S else 0
    return Group(
        Text(f"layer {layer} head {head} · q_{S - 1} is live · reads {strongest}"),
        row,
        cache,
        canvas.legend(WEIGHT_INK, masked=False),
        Text(
            f"K and V: {appended} rows from the cache, {S - appended} new · Q: q_{S - 1} only, "
            "and it is not kept",
            "dim",
        ),
    )
