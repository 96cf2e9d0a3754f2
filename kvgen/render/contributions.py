"""Direct logit attribution: what each head and MLP adds to a logit, as a map and as a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.contributions import Contributions, Sources
from kvgen.render.canvas import TOKEN_CELLS, Canvas, name_label, token_label
from kvgen.render.explain import most_telling
from kvgen.render.ink import Ink
from kvgen.render.layers_by_heads import layers_by_heads
from kvgen.render.layout import flow, side_by_side, stacked_tables

_TOP = 8  # parts that are named
_LIMIT = (
    "a part counts for what it writes itself, with the final norm's scale as it is, not for what "
    "later layers make of it"
)
_COPY = (
    "to that token: what the head adds to the logit of the token that it reads; above 0: it copies"
)


def contributions_view(
    found: Contributions,
    tokens: Sequence[bytes],
    names: Mapping[int, bytes],
    canvas: Canvas,
) -> RenderableType:
    """All parts of a logit, or of the difference of two: sums, a map, and the greatest parts."""
    what = _wanted(found, names, canvas)
    query = token_label(tokens[found.query], canvas, TOKEN_CELLS).strip()
    sums = {
        "embedding": found.embedding,
        "position": found.position,
        "heads": found.heads.sum(),
        "MLPs": found.mlps.sum(),
        "biases": found.attention_biases.sum() + found.bias,
        "sum": found.total,
    }
    most = max(np.abs(found.heads).max(), np.abs(found.mlps).max(), 1e-30)
    ink = Ink(name="adds", signed=True, most=float(most))
    L, H = found.heads.shape
    heads = layers_by_heads(found.heads, canvas, ink, layers=range(L), heads=range(H))
    mlps = layers_by_heads(found.mlps[:, None], canvas, ink, layers=range(L), title="MLP")
    return Group(
        Text(f"contributions to {what} behind position {found.query} {query}", "bold"),
        flow([f"{name} {value:+.3f}" for name, value in sums.items() if value is not None],
             canvas.width, between=" · "),
        Text(),
        *side_by_side([heads, mlps]),
        canvas.legend(ink, masked=False),
        Text(),
        *_greatest(found, tokens, canvas),
        flow([Text(_LIMIT, "dim"), Text(_COPY, "dim")], canvas.width, between=" · "),
        Text(_verified(found), "dim"),
    )  # fmt: skip


def sources_view(
    found: Sources,
    whole: Contributions,
    tokens: Sequence[bytes],
    names: Mapping[int, bytes],
    canvas: Canvas,
) -> RenderableType:
    """One head's contribution by the keys that it reads."""
    shown = most_telling(found.parts / max(np.abs(found.parts).sum(), 1e-30))
    others = [j for j in range(len(found.parts)) if j not in shown]
    rows = [
        {
            "j": str(j),
            "key": token_label(tokens[j], canvas, TOKEN_CELLS),
            "w": f"{found.weights[j]:.4f}",
            "adds": f"{found.parts[j]:+.3f}",
            "copy": f"{found.copies[j]:+.3f}",
        }
        for j in shown
    ]
    if others:
        part, weight = found.parts[others].sum(), found.weights[others].sum()
        rows.append({"key": f"{len(others)} others", "w": f"{weight:.4f}", "adds": f"{part:+.3f}"})
    rows.append({"key": "sum", "w": f"{found.weights.sum():.4f}",
                 "adds": f"{found.parts.sum():+.3f}"})  # fmt: skip
    headings = {"j": "j", "key": "key", "w": "w_j", "adds": "adds", "copy": "to the key's token"}
    tables = stacked_tables(
        headings, rows, width=canvas.width, keys=("j", "key"), words=("key",), bold_last=True
    )
    return Group(
        Text(
            f"head {found.layer}.{found.head} adds {found.parts.sum():+.3f} to "
            f"{_wanted(whole, names, canvas)}, by the keys that it reads",
            "bold",
        ),
        *tables,
        flow(
            [
                Text("adds: what w_j v_j W_O adds", "dim"),
                Text("to the key's token: the same for the logit of the token at j", "dim"),
            ],
            canvas.width,
            between=" · ",
        ),
    )


def _wanted(found: Contributions, names: Mapping[int, bytes], canvas: Canvas) -> str:
    """The logit in words."""
    token = name_label(found.token, names, canvas, TOKEN_CELLS).strip()
    if found.against is None:
        return f"the logit of {token}"
    return f"logit {token} - logit {name_label(found.against, names, canvas, TOKEN_CELLS).strip()}"


def _greatest(
    found: Contributions, tokens: Sequence[bytes], canvas: Canvas
) -> list[RenderableType]:
    """The parts that add most, either way; of heads also what they read."""
    L, H = found.heads.shape
    rows = [
        {
            "part": f"head {layer}.{head}",
            "adds": found.heads[layer, head],
            "reads": f"{found.read[layer, head]} "
            + token_label(tokens[found.read[layer, head]], canvas, TOKEN_CELLS).strip(),
            "w": f"{found.read_weights[layer, head]:.2f}",
            "copy": f"{found.copies[layer, head]:+.3f}",
        }
        for layer in range(L)
        for head in range(H)
    ]
    rows += [{"part": f"MLP {layer}", "adds": found.mlps[layer]} for layer in range(L)]
    rows += [{"part": "embedding", "adds": found.embedding}]
    rows.sort(key=lambda row: -abs(row["adds"]))
    shown = [row | {"adds": f"{row['adds']:+.3f}"} for row in rows[:_TOP]]
    headings = {
        "part": "greatest", "adds": "adds", "reads": "reads most", "w": "weight",
        "copy": "to that token",
    }  # fmt: skip
    return stacked_tables(
        headings, shown, width=canvas.width, keys=("part",), words=("part", "reads")
    )


def _verified(found: Contributions) -> str:
    """The sum beside the model's own logit."""
    if found.softcap is None:
        return f"verified: |sum - the model's own logit {found.logit:.3f}| <= {found.error:.1e}"
    return (
        f"verified: the sum is before the soft cap of {found.softcap:g}; |capped sum - the model's "
        f"own logit| <= {found.error:.1e}"
    )
