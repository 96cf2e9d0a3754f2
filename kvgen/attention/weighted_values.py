"""The vectors w_j v_j that a query adds up to its output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvgen.attention.steps import RowExplanation
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import LayerTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedValues:
    """One query's sum over its S keys, beside the kernel's output; vectors have D numbers."""

    parts: FloatArray  # w_j v_j, [S, D]
    output: FloatArray  # their sum o, [D]
    kernel: FloatArray  # z, the output that the kernel wrote, [D]
    difference: float  # greatest |o - z|


def weigh_values(
    layer: LayerTrace, explained: RowExplanation, *, head: int, query: int
) -> WeightedValues:
    """The weights of an explained query times the values of its keys, and their sum."""
    parts = explained.weights[:, None] * layer.v[: query + 1, layer.kv_head(head)]
    output = parts.sum(axis=0)
    kernel = layer.z[query, layer.heads.index(head)]
    return WeightedValues(
        parts=parts,
        output=output,
        kernel=kernel,
        difference=float(np.abs(output - kernel).max()),
    )
