"""What heads add to the residual stream: their values and outputs behind W_O."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kvgen.attention.diagnostics import Diagnostics
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.errors import UsageError


class ResidualNorms(NamedTuple):
    """Norms of what heads add to the residual stream, float32 [N, T, H] for the layers of a trace.

    A norm that follows W_O, as Gemma's, is left out, and so is the bias of W_O.
    """

    values: FloatArray  # |v_j W_O^h|: what a key would add if it had the whole weight
    outputs: FloatArray  # |sum_{j >= 1} w_ij v_j W_O^h|: what a query adds, the first key left out


def measure_residual_norms(
    trace: AttentionTrace, diagnostics: Diagnostics, output_weights: Callable[[int], FloatArray]
) -> ResidualNorms:
    """Pass every value and every head's output through its slice of W_O.

    `output_weights` gives a layer's W_O as [C, H * D].
    """
    values: list[FloatArray] = []
    outputs: list[FloatArray] = []
    for row, layer in enumerate(trace.layers):
        v = layer.v[:, layer.kv_heads]  # [T, H, D]
        others = layer.z - diagnostics.first[row][:, :, None] * v[0]
        matrix = output_weights(layer.layer)
        by_head = matrix.reshape(len(matrix), -1, v.shape[2]).transpose(1, 2, 0)[list(layer.heads)]
        for rows, lengths in ((v, values), (others, outputs)):
            lengths.append(np.linalg.norm(rows.transpose(1, 0, 2) @ by_head, axis=2).T)
    return ResidualNorms(np.array(values, np.float32), np.array(outputs, np.float32))


def strongest_head(
    trace: AttentionTrace, norms: ResidualNorms | None, query: int, *, layer: int | None = None
) -> tuple[int, int]:
    """Layer and head that write most for a query from other keys than the first; ties: the first.

    Of one layer where that is given. Raises UsageError where it was not recorded.
    """
    if norms is None:
        raise UsageError("this recording holds no norms of v W_O: name a head with -l and -H")
    outputs = norms.outputs[:, query]
    rows = range(len(outputs)) if layer is None else [trace.row_of(layer)]
    row = max(rows, key=lambda row: float(outputs[row].max()))
    return trace.layers[row].layer, trace.heads[int(outputs[row].argmax())]
