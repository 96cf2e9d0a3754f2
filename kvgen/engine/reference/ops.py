"""The operations of a decoder, in plain NumPy: float32 in, float32 out.

T new positions, S visible positions, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from kvgen.engine import formula
from kvgen.engine.config import Activation
from kvgen.engine.params import Norm
from kvgen.engine.tensors import FloatArray


class Projection(NamedTuple):
    """A Linear whose weight has been widened to float32 [out, in]."""

    weight: FloatArray
    bias: FloatArray | None


def linear(x: FloatArray, projection: Projection) -> FloatArray:  # [T, in] -> [T, out]
    """y = x W^T + b."""
    y = x @ projection.weight.T
    return y if projection.bias is None else y + projection.bias


def layer_norm(x: FloatArray, norm: Norm, eps: float) -> FloatArray:  # [T, C] -> [T, C]
    """Zero mean and unit variance, then scale and shift (arXiv:1607.06450)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    y: FloatArray = centred / np.sqrt(variance + np.float32(eps)) * norm.weight
    return y if norm.bias is None else y + norm.bias


def rms_norm(x: FloatArray, norm: Norm, eps: float) -> FloatArray:  # [T, C] -> [T, C]
    """Unit root mean square, then scale (arXiv:1910.07467)."""
    mean_square = np.square(x).mean(axis=-1, keepdims=True)
    y: FloatArray = x / np.sqrt(mean_square + np.float32(eps)) * norm.weight
    return y


def rotate(x: FloatArray, cos: FloatArray, sin: FloatArray) -> FloatArray:  # [T, H, D] -> same
    """RoPE: turn the pair (i, i + n) of every head by its position's angle, cos and sin [T, n].

    What lies beyond 2n in a head stays as it is.
    """
    n = cos.shape[1]
    first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def attend(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    scale: float,
    mask: formula.Mask,
    *,
    softcap: float | None = None,
) -> FloatArray:  # q [T, H, D], k and v [G, S, D], mask [T, S] -> [T, H, D]
    """Attention of the last T of S positions: softmax(q k^T scale) v over what each query sees."""
    scores = formula.scaled(formula.dot_products(q, k.swapaxes(0, 1)), scale, softcap)
    weights = formula.softmax(formula.masked(scores, mask))
    return formula.weighted_sum(weights, v.swapaxes(0, 1))


def activate(x: FloatArray, activation: Activation) -> FloatArray:
    """The MLP's activation function, elementwise."""
    half, one = np.float32(0.5), np.float32(1)
    match activation:
        case "relu":
            return np.maximum(x, np.float32(0))
        case "silu":  # exp(-x) of a very negative x is inf, and x / inf is 0
            with np.errstate(over="ignore"):
                return np.asarray(x / (one + np.exp(-x)))
        case "gelu":
            return np.asarray(half * x * (one + _erf(x / np.float32(math.sqrt(2)))))
        case "gelu_tanh":
            inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
            return np.asarray(half * x * (one + np.tanh(inner)))


def _erf(x: FloatArray) -> FloatArray:
    # NumPy has no erf; the standard library's is slow here and exact, as a reference should be.
    return np.array([math.erf(number) for number in x.flat], np.float32).reshape(x.shape)
