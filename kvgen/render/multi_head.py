"""What each head of a layer adds for one query, as numbers, and their sum beside one product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.multi_head import HeadSum, OutputProjection
from kvgen.engine.trace import LayerTrace
from kvgen.render.canvas import TOKEN_CELLS, Canvas, token_label
from kvgen.render.layout import flow
from kvgen.render.vectors import decimals, vector_tables

_FEWEST = 4  # numbers of each vector, also where they need a table of their own
_TERMS = (
    "z_h: the head's output, sum over j of w_j v_j, from the kernel",
    "W_O^h: the rows of W_O that belong to the head",
    "share: signed part along the output",
    "kv: whose K and V the head reads",
)


def multi_head_view(
    layer: LayerTrace,
    tokens: Sequence[bytes],
    found: HeadSum,
    projection: OutputProjection,
    *,
    query: int,
    canvas: Canvas,
) -> RenderableType:
    """One query's attention output in one layer: a line per head, the bias, the sum, the product.

    Where not all columns fit, there are several tables.
    """
    H, D = found.z.shape
    C = found.output.shape[0]
    read = np.linalg.norm(found.z, axis=1)
    vectors = [*found.written]
    names = [(str(head), str(layer.kv_head(head))) for head in layer.heads]
    shares = [*found.shares.tolist()]
    if found.bias is not None:
        names.append(("bias b", ""))
        vectors.append(found.bias)
        shares.append(found.bias_share)
    names += [("sum", ""), ("product", "")]
    vectors += [found.total, found.output]
    lengths = [float(np.linalg.norm(vector)) for vector in vectors]
    of_z = [format(length, decimals(read)) for length in read] + [""] * (len(names) - H)
    of_parts = decimals(lengths)
    of_shares = [f"{share:+.3f}" for share in (*shares, sum(shares))] + [""]
    columns = {
        "head": [name for name, _ in names],
        "kv": [kv for _, kv in names],
        "|z_h|": of_z,
        "|z_h W_O^h|": [format(length, of_parts) for length in lengths],
        "share": of_shares,
    }
    tables, shown = vector_tables(
        {name: name for name in columns},
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        np.array(vectors),
        keys=("head",),
        canvas=canvas,
        fewest=_FEWEST,
    )
    bias = "" if found.bias is None else " + b"
    label = token_label(tokens[query], canvas, TOKEN_CELLS).strip()
    notes = []
    if projection.norm_follows:
        notes.append("The model normalises this output before it adds it: that is left out here.")
    if projection.residual_scale != 1:
        notes.append(f"The model adds {projection.residual_scale:g} times this output.")
    return Group(
        flow(
            [
                f"layer {layer.layer}",
                f"query {query} {label}",
                f"{H} heads on {layer.k.shape[1]} key/value heads",
                f"d_v = {D}, d_model = {C}",
            ],
            canvas.width,
            between=" · ",
        ),
        flow(
            [
                f"output = concat(z_0, .., z_{H - 1}) W_O{bias}",
                f"= sum over heads of z_h W_O^h{bias}",
            ],
            canvas.width,
            between=" ",
        ),
        *tables,
        flow(
            [Text(term, "dim") for term in (*_TERMS, f"[ ]: numbers {shown} of {C}")],
            canvas.width,
            between=" · ",
        ),
        flow(
            [
                f"shapes  z_h ({D},)",
                f"W_O^h ({D}, {C})",
                f"concat(z) ({H * D},)",
                f"W_O ({H * D}, {C})",
                f"output ({C},)",
            ],
            canvas.width,
        ),
        flow(
            [
                "the sum and the product of all heads at once differ by at most "
                f"{found.difference:.1e}"
            ],
            canvas.width,
        ),
        *(flow([note], canvas.width) for note in notes),
    )
