"""Attention(Q, K, V) = softmax(Q K^T scale) V, step by step, from captured tensors.

T queries, S keys, H query heads (those that were captured), D = d_k the size of a query and a key;
values may have another size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvgen.engine import formula
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace, LayerTrace


def products(trace: LayerTrace, *, first: int = 0) -> FloatArray:
    """q_i . k_j of the queries from row `first` on with every key, [H, T - first, T]."""
    return formula.dot_products(trace.q[first:], trace.k[:, trace.kv_heads])


def scaled_scores(trace: LayerTrace, *, first: int = 0) -> FloatArray:
    """What the softmax takes, [H, T - first, T]; -inf where a query does not see a key."""
    T = len(trace.q)
    scores = formula.scaled(products(trace, first=first), trace.scale, trace.softcap)
    return formula.masked(scores, formula.causal_mask(T - first, T, trace.window))


def attention_weights(trace: LayerTrace, *, first: int = 0) -> FloatArray:
    """The causal weights of the queries from row `first` on, [H, T - first, T]; rows sum to 1."""
    return formula.softmax(scaled_scores(trace, first=first))


def weighted_values(weights: FloatArray, trace: LayerTrace) -> FloatArray:
    """z_i = sum_j w_ij v_j for weights [H, T, T], as [T, H, D]."""
    return formula.weighted_sum(weights, trace.v[:, trace.kv_heads])


def decode_error(trace: AttentionTrace, full_pass: AttentionTrace) -> float:
    """Greatest difference between the weights of decode rows and the same rows of one full pass."""
    first = trace.n_prompt
    return max(
        float(
            np.abs(
                attention_weights(stepwise, first=first) - attention_weights(whole, first=first)
            ).max()
        )
        for stepwise, whole in zip(trace.layers, full_pass.layers, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowExplanation:
    """One query's walk through the formula; arrays have one number per visible key."""

    query_length: float  # |q|
    key_lengths: FloatArray  # |k_j|
    products: FloatArray  # 1) q . k_j
    cosines: FloatArray  # q . k_j / (|q| |k_j|)
    scaled: FloatArray  # 2) q . k_j * scale
    exponentials: FloatArray  # 3) exp(scaled - max)
    weights: FloatArray  # 4) exponentials / their sum
    value_lengths: FloatArray  # |v_j|
    output: FloatArray  # sum_j w_j v_j
    shares: FloatArray  # 5) w_j <v_j, o> / |o|^2: signed, sum to 1


def explain_query(trace: LayerTrace, head: int, query: int) -> RowExplanation:
    """One query of a captured head, walked through the keys up to its own."""
    kv_head = trace.kv_head(head)
    return explain_row(
        trace.q[query, trace.heads.index(head)],
        trace.k[: query + 1, kv_head],
        trace.v[: query + 1, kv_head],
        scale=trace.scale,
        softcap=trace.softcap,
        window=trace.window,
    )


# OpenBLAS's AVX-512 kernel for five columns may raise the flag of an invalid number for lanes that
# it throws away: what the products leave in the flags says nothing about them.
@np.errstate(invalid="ignore")
def explain_row(
    q: npt.ArrayLike,
    keys: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> RowExplanation:
    """Walk one query q [d_k] through the keys [S, d_k] and values [S, d_v] up to its own.

    `scale` defaults to 1/sqrt(d_k). With `softcap` the scaled scores are capped, too; keys that
    lie `window` or further behind get the weight 0.

    >>> king, keys = [1, 2, 3], [[1, 2, 3], [-1, -2, -3], [1, 1, 1]]  # queen, car, crown
    >>> explain_row(king, keys, [[1], [2], [3]]).products.tolist()
    [14.0, -14.0, 6.0]
    """
    q, keys, values = (np.asarray(array, np.float32) for array in (q, keys, values))
    products = keys @ q
    query_length = float(np.linalg.norm(q))
    key_lengths = np.linalg.norm(keys, axis=1)
    lengths = query_length * key_lengths
    scaled = formula.scaled(products.copy(), len(q) ** -0.5 if scale is None else scale, softcap)
    seen = formula.causal_mask(1, len(keys), window)[0]
    exponentials = formula.exponentials(formula.masked(scaled.copy(), seen))
    weights = exponentials / exponentials.sum()
    output = weights @ values
    energy = float(output @ output)
    along = weights * (values @ output)
    return RowExplanation(
        query_length=query_length,
        key_lengths=key_lengths,
        products=products,
        cosines=np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0),
        scaled=scaled,
        exponentials=exponentials,
        weights=weights,
        value_lengths=np.linalg.norm(values, axis=1),
        output=output,
        shares=along / np.float32(energy) if energy > 0 else np.zeros_like(along),
    )
