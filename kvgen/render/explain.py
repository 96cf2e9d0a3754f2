"""One query's walk through the formula, with the numbers of every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvgen.attention.steps import RowExplanation
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import TOKEN_CELLS, Canvas, token_label

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
) -> RenderableType:
    """One query's walk through the formula, a line per key; `chosen` says who named the head."""
    layer_trace = trace.layer(layer)
    S, D = query + 1, layer_trace.q.shape[2]
    d_v = layer_trace.v.shape[2]
    shown = _most_telling(explained.shares)
    others = [j for j in range(S) if j not in shown]

    def column(values: FloatArray, form: str, *, adds_up: bool = False) -> list[str]:
        """The shown keys' cells, then the others' sum and the whole sum where adding means much."""
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
    for name in ("w·|v|", "|k_j|", "|v_j|", "cos", "3) exp(s-max)", "2) scaled"):
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
    label = token_label(tokens[query], canvas, TOKEN_CELLS).strip()
    return Group(
        Text(
            f"layer {layer} head {head} (kv head {layer_trace.kv_head(head)}) · "
            f"query {query} {label} · d_k = {D}, d_v = {d_v}, scale = {layer_trace.scale:.4g} · "
            f"|q| = {explained.query_length:.2f}"
        ),
        *([Text(_CHOSEN, "dim")] if chosen else []),
        Text(f"o_{query} = sum over j <= {query} of softmax_j(q_{query}·k_j * scale) v_j"),
        table,
        Text(
            f"shapes  q ({D},)  K ({S}, {D})  scores ({S},)  weights ({S},)  V ({S}, {d_v})  "
            f"o ({d_v},)"
        ),
        Text(f"{origin} · q_{query} is not kept: no later step reads it"),
        *_remark(explained, tokens, canvas),
    )


def _remark(explained: RowExplanation, tokens: Sequence[bytes], canvas: Canvas) -> list[Text]:
    """A word where the key with most of the weight is not what most of the output is made of."""
    read, makes = int(explained.weights.argmax()), int(explained.shares.argmax())
    weight, share = float(explained.weights[read]), float(explained.shares[read])
    if read == makes or weight < 0.3 or share > weight / 2:
        return []
    names = [token_label(tokens[j], canvas, TOKEN_CELLS).strip() for j in (read, makes)]
    short = explained.value_lengths[read] < explained.value_lengths[makes] / 2
    why = "its v is short" if short else "its v points elsewhere"
    return [
        Text(
            f"! {weight:.2f} of the weight goes to {names[0]}, but {why}: it makes {share:.0%} of "
            f"the output; {names[1]} makes {explained.shares[makes]:.0%}",
            "bold",
        )
    ]


def _most_telling(shares: FloatArray, most: int = 16, kept: int = 12) -> list[int]:
    """All keys, or the 12 with the greatest |share| where there are more than 16."""
    if len(shares) <= most:
        return list(range(len(shares)))
    return sorted(np.argsort(-np.abs(shares), kind="stable")[:kept].tolist())
