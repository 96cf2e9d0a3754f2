"""A recording as what the page reads: facts as JSON, and a block of numbers for each layer.

A layer is written in one of three ways (`tier`), by its size and by `Detail`:

- `exact`: q, k and v as float32; the page computes every map and number from them.
- `full`: the same in 16 bits, with a scale for each vector (scores are off by about 0.001).
- `maps`: the weights alone, in 8 bits; over 512 tokens the greatest of neighbouring ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from kvgen.attention.contributions import Contributions
from kvgen.attention.diagnostics import MEANINGS, METRICS, Diagnostics
from kvgen.attention.extras import listed
from kvgen.attention.lens import Lens
from kvgen.attention.record import RecordedRun
from kvgen.attention.steps import attention_weights
from kvgen.choices import Detail
from kvgen.engine.tensors import Array
from kvgen.engine.trace import LayerTrace
from kvgen.errors import UsageError
from kvgen.page.blocks import (
    encode,
    greatest_of_neighbours,
    lower_triangle,
    n_neighbours,
    vectors_in_16_bits,
    weights_in_8_bits,
)

FORMAT, VERSION = "kvgen.page", 1
Tier = Literal["exact", "full", "maps"]
MOST_BYTES = 32 * 2**20  # of a page, unless told
_EXACT_BYTES, _FULL_BYTES = 3 * 2**20, 16 * 2**20  # of all layers together
_DETAILED_LAYERS = 4  # where not all can be written in full


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into the file: facts that JSON can hold, and the layers' blocks by their names."""

    facts: dict[str, Any]
    blocks: dict[str, str]


def content_of(
    run: RecordedRun,
    tokens: Sequence[str],
    names: Mapping[int, str],
    facts: Mapping[str, Any],
    *,
    more: Mapping[str, Any] = MappingProxyType({}),
    lens: Lens | None = None,
    contributions: Contributions | None = None,
    detail: Detail = "auto",
    detailed_layers: Sequence[int] | None = None,
    most_bytes: int = MOST_BYTES,
) -> Content:
    """All that the page shows of a run.

    `tokens` and `names` are labels without control characters, `more` facts of edited runs
    (`whatIfs`) and of changed rows (`interventions`).

    Where not all layers can be written in full, `detailed_layers` are (None: those with the heads
    that rest least on the first token). Raises UsageError where the page would be too large.
    """
    trace = run.trace
    tiers = _tiers(run, detail, detailed_layers)
    rope_dims = facts.get("rope_dims", [])
    layers, blocks = [], {}
    for row, layer in enumerate(trace.layers):
        arrays = _arrays(run, row, layer, tiers[row])
        places, blocks[f"layer-{layer.layer}"] = encode(arrays)
        layers.append(
            {
                "number": layer.layer,
                "scale": layer.scale,
                "softcap": layer.softcap,
                "window": layer.window,
                # So many first numbers of q and k are turned: number i with i + half of them.
                "ropeDim": rope_dims[layer.layer] if layer.layer < len(rope_dims) else None,
                "tier": tiers[row],
                "bin": n_neighbours(trace.length) if tiers[row] == "maps" else 1,
                "arrays": places,
            }
        )
    size = sum(map(len, blocks.values()))
    if size > most_bytes:
        raise UsageError(
            f"the page would have {size / 2**20:.0f} MiB, more than {most_bytes / 2**20:.0f}: "
            "choose layers and heads with -l and -H, or fewer tokens"
        )
    first = trace.layers[0]
    return Content(
        {
            "format": FORMAT,
            "version": VERSION,
            "run": dict(facts),
            "tokens": list(tokens),
            "ids": list(trace.token_ids),
            "sampledLast": run.sampled_last,
            "nPrompt": trace.n_prompt,
            "heads": list(trace.heads),
            "groupSize": first.group_size,
            "headDim": first.q.shape[2],
            "layers": layers,
            "diagnostics": _diagnostics(run.diagnostics),
            "verified": {
                "recomputed": run.diagnostics.recomputed,
                "decodeRows": run.decode_rows,
            },
            "predictions": _plain(run.predictions),
            "lens": _plain(lens),
            "contributions": _plain(contributions),
            "names": {str(token): name for token, name in names.items()},
            **more,
        },
        blocks,
    )


def _tiers(run: RecordedRun, detail: Detail, detailed_layers: Sequence[int] | None) -> list[Tier]:
    """How each layer is written."""
    trace = run.trace
    numbers = sum(layer.q.size + layer.k.size + layer.v.size for layer in trace.layers)
    if detail == "maps":
        return ["maps"] * len(trace.layers)
    if 4 * numbers <= _EXACT_BYTES:
        return ["exact"] * len(trace.layers)
    if detail == "full" or 2 * numbers <= _FULL_BYTES:
        return ["full"] * len(trace.layers)
    chosen = detailed_layers
    if chosen is None:
        sinks = np.nan_to_num(run.diagnostics.scores["sink-later"], nan=1.0).min(axis=1)
        rows = np.argsort(sinks, kind="stable")[:_DETAILED_LAYERS]
        chosen = [trace.layers[row].layer for row in rows]
    return ["full" if layer.layer in chosen else "maps" for layer in trace.layers]


def _arrays(run: RecordedRun, row: int, layer: LayerTrace, tier: Tier) -> dict[str, Array]:
    """The arrays of one layer, head by head."""
    if tier == "maps":
        pooled = greatest_of_neighbours(attention_weights(layer), n_neighbours(run.trace.length))
        return {"weights": lower_triangle(weights_in_8_bits(pooled))}
    vectors = {name: getattr(layer, name).swapaxes(0, 1) for name in "qkv"}  # [heads, T, D]
    arrays: dict[str, Array] = {}
    for name, rows in vectors.items():
        if tier == "exact":
            arrays[name] = np.asarray(rows, np.float32)
        else:
            arrays[name], arrays[f"{name}Scales"] = vectors_in_16_bits(rows)
    if run.residual_norms is not None:
        arrays["valueNorms"] = run.residual_norms.values[row].T  # [H, T] |v_j W_O|
    return arrays


def _diagnostics(found: Diagnostics) -> dict[str, Any]:
    n_layers, n_heads = found.scores["sink"].shape
    return {
        "metrics": [
            {
                "name": name,
                "title": METRICS[name],
                "meaning": MEANINGS[name],
                "values": listed(found.scores[name]),
            }
            for name in METRICS
        ],
        "labels": [
            [found.label(row, column) for column in range(n_heads)] for row in range(n_layers)
        ],
    }


def _plain(part: Any) -> dict[str, Any] | None:
    """A dataclass of arrays as lists."""
    if part is None:
        return None
    return {_camel(field.name): listed(getattr(part, field.name)) for field in fields(part)}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
