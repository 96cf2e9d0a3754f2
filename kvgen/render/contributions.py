"""Direct logit attribution: what each head and MLP adds to a logit, as a map and as a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.contributions import Contributions, Sources
from kvgen.render.canvas import TOKEN_CELLS, Canvas, quoted, token_label
from kvgen.render.explain import most_telling
from kvgen.render.ink import Ink
from kvgen.render.layers_by_heads import layers_by_heads
from kvgen.render.layout import flow, map_and_tables, side_by_side, stacked_tables
from kvgen.render.numbers import signed

_TOP = 8  # parts that are named
_MLP_COLUMNS = 11  # of the MLPs' map beside that of the heads, with the gap
_COPIES = "copies: what the head adds to the logit of the token that it reads most; > 0: it copies"
_LIMIT = (
    "A part counts for what it writes itself, with the final norm's scale as it is, not for what "
    "later layers make of it."
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
    beside = replace(canvas, width=canvas.width - _MLP_COLUMNS)
    heads = layers_by_heads(found.heads, beside, ink, layers=range(L), heads=range(H), title="head")
    mlps = layers_by_heads(found.mlps[:, None], beside, ink, layers=range(L), title="MLP")
    above = next(row for row, line in enumerate(heads) if line.plain.startswith("layer"))
    return Group(
        flow([Text("contributions to", "bold"), Text(what, "bold"),
              Text(f"after position {found.query} '{query}'", "bold")], canvas.width, between=" "),
        flow([f"{name} {signed(value)}" for name, value in sums.items() if value is not None],
             canvas.width, between=" · "),
        Text(),
        *map_and_tables(
            side_by_side([heads, [Text()] * above + mlps]),
            canvas.legend(ink, masked=False),
            _greatest(found, tokens, canvas),
            canvas.width,
        ),
        flow([Text(_COPIES, "dim")], canvas.width),
        flow([Text(_LIMIT, "dim")], canvas.width),
        flow([Text(_verified(found), "dim")], canvas.width),
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
            "adds": signed(found.parts[j]),
            "copies": signed(found.copies[j]),
        }
        for j in shown
    ]
    if others:
        part, weight = found.parts[others].sum(), found.weights[others].sum()
        rows.append({"key": f"{len(others)} others", "w": f"{weight:.4f}", "adds": signed(part)})
    rows.append(
        {"key": "sum", "w": f"{found.weights.sum():.4f}", "adds": signed(found.parts.sum())}
    )
    headings = {"j": "j", "key": "key", "w": "w_j", "adds": "adds", "copies": "copies"}
    tables = stacked_tables(
        headings, rows, width=canvas.width, keys=("j", "key"), words=("key",), bold_last=True
    )
    return Group(
        flow(
            [
                Text(f"head {found.layer}.{found.head} adds {signed(found.parts.sum())}", "bold"),
                Text(f"to {_wanted(whole, names, canvas)},", "bold"),
                Text("by the keys that it reads", "bold"),
            ],
            canvas.width,
            between=" ",
        ),
        *tables,
        flow(
            [
                Text("adds: what w_j v_j W_O adds to that logit", "dim"),
                Text("copies: what it adds to the logit of the key's own token", "dim"),
            ],
            canvas.width,
            between=" · ",
        ),
    )


def _wanted(found: Contributions, names: Mapping[int, bytes], canvas: Canvas) -> str:
    """The logit in words."""
    token = quoted(found.token, names, canvas)
    if found.against is None:
        return f"the logit of {token}"
    return f"logit {token} - logit {quoted(found.against, names, canvas)}"


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
            "copies": signed(found.copies[layer, head]),
        }
        for layer in range(L)
        for head in range(H)
    ]
    rows += [{"part": f"MLP {layer}", "adds": found.mlps[layer]} for layer in range(L)]
    rows += [{"part": "embedding", "adds": found.embedding}]
    rows += [{"part": "position", "adds": found.position}] * (found.position is not None)
    rows.sort(key=lambda row: -abs(row["adds"]))
    shown = [row | {"adds": signed(row["adds"])} for row in rows[:_TOP]]
    headings = {
        "part": "greatest parts", "adds": "adds", "reads": "reads most", "w": "weight",
        "copies": "copies",
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
