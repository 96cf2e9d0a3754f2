"""Attention(Q, K, V) = softmax(Q K^T scale) V, stage by stage, in NumPy.

The reference engine, the what-ifs and the explained maps all compute by these functions.
T queries, which are the last of S positions; H query heads, G key/value heads; D the size of a
query and a key. Query head h reads key/value head h // (H/G).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvgen.engine.tensors import FloatArray

Mask = npt.NDArray[np.bool_]  # which keys a query sees


def dot_products(q: FloatArray, k: FloatArray) -> FloatArray:  # [T, H, D], [S, G, D] -> [H, T, S]
    """q_i . k_j of every query with every key.

    The H/G query heads of a group are stacked into one matrix, so that keys are never repeated.
    """
    T, H, D = q.shape
    S, G, _ = k.shape
    stacked = q.reshape(T, G, H // G, D).transpose(1, 2, 0, 3).reshape(G, -1, D)  # [G, H/G * T, D]
    products: FloatArray = stacked @ k.transpose(1, 2, 0)
    return products.reshape(H, T, S)


def scaled(products: FloatArray, scale: float, softcap: float | None = None) -> FloatArray:
    """The scores: products times the scale, soft-capped where there is a cap; in their place."""
    products *= np.float32(scale)
    return soft_cap(products, softcap)


def soft_cap(x: FloatArray, cap: float | None) -> FloatArray:
    """c tanh(x / c): close to x where it is small, never beyond c; x itself without a cap."""
    return x if cap is None else np.float32(cap) * np.tanh(x / np.float32(cap))


def causal_mask(T: int, S: int, window: int | None = None) -> Mask:  # [T, S]
    """Which of S keys each of the last T positions sees: itself and what lies before it.

    With a window only the `window` - 1 keys before it.
    """
    behind = np.arange(S - T, S)[:, None] - np.arange(S)  # how far key s lies behind query t
    return (behind >= 0) & (behind < (window or S + 1))


def masked(scores: FloatArray, mask: Mask) -> FloatArray:  # [..., T, S]
    """The scores with -inf where a query does not see a key, in their place."""
    np.copyto(scores, -np.inf, where=~mask)
    return scores


def softmax(scores: FloatArray) -> FloatArray:  # [..., S]
    """The weights: each row's exponentials by their sum, in place of the scores."""
    weights = exponentials(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def exponentials(scores: FloatArray) -> FloatArray:  # [..., S]
    """exp(score - the row's greatest), in place of the scores; of -inf it is 0."""
    scores -= scores.max(axis=-1, keepdims=True)
    return np.exp(scores, out=scores)


def weighted_sum(
    weights: FloatArray, v: FloatArray
) -> FloatArray:  # [H, T, S], [S, G, D] -> [T, H, D]
    """z_i = sum_j w_ij v_j of every head."""
    H, T, S = weights.shape
    _, G, D = v.shape
    z = weights.reshape(G, -1, S) @ v.swapaxes(0, 1)  # [G, H/G * T, D]
    return z.reshape(H, T, D).swapaxes(0, 1)
