"""The measures that a map can show, weights among them, each as numbers [T, T] of one head."""

from __future__ import annotations

import numpy as np

from kvgen.attention.residual import ResidualNorms
from kvgen.attention.similarity import distances
from kvgen.attention.steps import attention_weights, products, scaled_scores
from kvgen.choices import Measure
from kvgen.engine.formula import softmax
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.errors import UsageError

MEASURES: dict[Measure, str] = {
    "weights": "weight",
    "scores": "q·k",
    "scaled": "q·k, scaled",
    "norm": "|w v W_O|",
    "share": "share of o",
    "cos": "cos(q, k)",
    "distance": "|q - k|",
}
SIGNED = frozenset({"scores", "scaled", "share", "cos"})


def measured(
    trace: AttentionTrace, measure: Measure, *, layer: int, head: int, norms: ResidualNorms | None
) -> FloatArray:
    """One head's numbers [T, T]; NaN where a query does not see a key.

    `norm` is |w_ij v_j W_O| (Kobayashi et al., arXiv:2004.10102), `share` the signed part
    w_ij <v_j, z_i> / |z_i|^2 of the head's output, which sums to 1 in every row; NaN where z is 0.
    Raises UsageError for `norm` where no norms of v W_O were recorded.
    """
    one = trace.layer(layer).only(head)
    scaled = scaled_scores(one)[0]
    hidden = np.isneginf(scaled)
    if measure == "scaled":
        numbers = scaled
    elif measure == "distance":
        numbers = distances(one.q[:, 0], one.k[:, one.kv_head(head)])
    elif measure in ("scores", "cos"):
        numbers = products(one)[0]
        if measure == "cos":
            keys = one.k[:, one.kv_head(head)]
            lengths = np.outer(*(np.linalg.norm(rows, axis=1) for rows in (one.q[:, 0], keys)))
            numbers = np.divide(numbers, lengths, out=np.zeros_like(numbers), where=lengths > 0)
    else:
        numbers = softmax(scaled)
        if measure == "norm":
            if norms is None:
                raise UsageError("this recording holds no norms of v W_O: leave out --show norm")
            numbers = numbers * norms.values[trace.row_of(layer), :, trace.column_of(head)]
        elif measure == "share":
            z = one.z[:, 0]
            energy = (z * z).sum(axis=1, keepdims=True)
            along = numbers * (z @ one.v[:, one.kv_head(head)].T)
            nothing = np.full_like(along, np.nan)
            numbers = np.divide(along, energy, out=nothing, where=energy > 0)
    return np.where(hidden, np.float32(np.nan), numbers)


def rollout(trace: AttentionTrace, layer: int) -> FloatArray:
    """How much of each token reaches each position through all layers up to this one [T, T].

    R^l = (mean over heads of A^l / 2 + I / 2) R^{l-1}; rows sum to 1 (Abnar and Zuidema,
    arXiv:2005.00928, section 3). Raises UsageError where a layer or a head was not recorded.
    """
    first = trace.layers[0]
    if len(first.heads) < first.group_size * first.k.shape[1]:
        raise UsageError("rollout needs every head: record without -H")
    there = [one.layer for one in trace.layers]
    if missing := sorted(set(range(layer + 1)) - set(there)):
        raise UsageError(f"rollout needs every layer up to {layer}: record layer {missing[0]} too")
    identity = np.eye(trace.length, dtype=np.float32)
    flow = identity
    for number in range(layer + 1):
        one = trace.layer(number)
        groups = (attention_weights(group).sum(axis=0) for group in one.groups())
        total = sum(groups, np.zeros_like(identity))
        flow = (total / np.float32(2 * len(one.heads)) + identity / np.float32(2)) @ flow
    return flow
