"""One query's walk through the formula, with the numbers of every stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.steps import RowExplanation
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import TOKEN_CELLS, Canvas, token_label
from kvgen.render.head_map import KV_HEAD
from kvgen.render.layout import flow, stacked_tables

_TERMS = (
    "1) dot product",
    "cos: without the lengths",
    "2) times the scale",
    "3) e^(score - the greatest)",
    "4) divided by their sum: the weight",
    "5) part of o, signed",
    KV_HEAD,
)
_CHOSEN = "the head that writes most for this query, |sum over j >= 1 of w_j v_j W_O|"


def explanation(
    trace: AttentionTrace,
    tokens: Sequence[bytes],
    explained: RowExplanation,
    *,
    layer: int,
    head: int,
    query: int,
    canvas: Canvas,
    chosen: bool = False,
    predicted: Sequence[Text] = (),
) -> RenderableType:
    """One query's walk through the formula, a line per key.

    `chosen`: no head was named, and this one writes most. `predicted` says what comes next. Where
    not all columns fit, there are several tables.
    """
    layer_trace = trace.layer(layer)
    S, D = query + 1, layer_trace.q.shape[2]
    d_v = layer_trace.v.shape[2]
    shown = most_telling(explained.shares)
    others = [j for j in range(S) if j not in shown]

    def column(values: FloatArray, form: str, *, adds_up: bool = False) -> list[str]:
        """The shown keys' cells, then the others' sum and the whole sum where a sum means much."""
        sums = [values[others].sum(), values.sum()] if adds_up else []
        return [format(value, form) for value in (*values[shown], *sums)] + [""] * (2 - len(sums))

    labels = [token_label(tokens[j], canvas, TOKEN_CELLS) for j in shown]
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
        "w·|v|": column(explained.weights * explained.value_lengths, ".3f"),
        "5) share": column(explained.shares, "+.3f", adds_up=True),
    }
    cells = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    *keys, rest, total = cells
    tables = stacked_tables(
        {name: name for name in columns},
        [*keys, *([rest] if others else []), total],
        width=canvas.width,
        keys=("j", "key"),
        padding=1,
        bold_last=True,
    )
    if query < trace.n_prompt:
        origin = f"prefill: k_0..{query} v_0..{query} are computed and kept"
    else:
        origin = (
            f"from the cache k_0..{query - 1} v_0..{query - 1}, new k_{query} v_{query} q_{query}"
        )
    label = token_label(tokens[query], canvas, TOKEN_CELLS).strip()
    return Group(
        flow(
            [
                f"layer {layer} head {head} (kv head {layer_trace.kv_head(head)})",
                f"query {query} {label}",
                f"d_k = {D}, d_v = {d_v}, scale = {layer_trace.scale:.4g}",
                f"|q| = {explained.query_length:.2f}",
            ],
            canvas.width,
            between=" · ",
        ),
        *([Text(_CHOSEN, "dim")] if chosen else []),
        Text(f"o_{query} = sum over j <= {query} of softmax_j(q_{query}·k_j * scale) v_j"),
        *tables,
        flow([Text(term, "dim") for term in _TERMS], canvas.width, between=" · "),
        flow(
            [
                f"shapes  q ({D},)",
                f"K ({S}, {D})",
                f"scores ({S},)",
                f"weights ({S},)",
                f"V ({S}, {d_v})",
                f"o ({d_v},)",
            ],
            canvas.width,
        ),
        Text(f"{origin} · q_{query} is not kept: no later step reads it"),
        *predicted,
        *_remark(explained, tokens, canvas),
    )


def _remark(explained: RowExplanation, tokens: Sequence[bytes], canvas: Canvas) -> list[Text]:
    """A remark where the key with the greatest weight adds little to the output."""
    read, makes = int(explained.weights.argmax()), int(explained.shares.argmax())
    weight, part = float(explained.weights[read]), float(explained.shares[read])
    if read == makes or weight < 0.3 or part > weight / 2:
        return []
    names = [token_label(tokens[j], canvas, TOKEN_CELLS).strip() for j in (read, makes)]
    short = explained.value_lengths[read] < explained.value_lengths[makes] / 2
    why = "its v is short" if short else "its v points elsewhere"
    return [
        Text(
            f"! {weight:.2f} of the weight goes to {names[0]}, but {why}: it makes {part:.0%} of "
            f"the output; {names[1]} makes {explained.shares[makes]:.0%}",
            "bold",
        )
    ]


def most_telling(shares: FloatArray, most: int = 16, kept: int = 12) -> list[int]:
    """All keys, or the 12 with the greatest |share| where there are more than 16."""
    if len(shares) <= most:
        return list(range(len(shares)))
    return sorted(np.argsort(-np.abs(shares), kind="stable")[:kept].tolist())
