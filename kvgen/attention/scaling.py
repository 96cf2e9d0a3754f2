"""What the scaling by 1/sqrt(d_k) is for, measured on random queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvgen.engine import formula
from kvgen.engine.tensors import FloatArray

SIZES = (4, 64, 1024)  # of d_k
N_QUERIES, N_KEYS = 200, 64
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingEffect:
    """Scores, weights and gradients of random queries and keys, with or without the scaling.

    A query's gradient is the Frobenius norm of the softmax's Jacobian: how much its weights change
    with what the softmax takes.
    """

    d_k: int
    scaled: bool
    spread: float  # standard deviation of all scores
    greatest_weight: float  # of a query, the mean over the queries
    mean_gradient: float
    median_gradient: float


def scaling_effect(d_k: int, *, scaled: bool) -> ScalingEffect:
    """The effect on N_QUERIES queries and N_KEYS keys of standard normal numbers.

    The same numbers with and without scaling. A product of two such vectors has the variance d_k
    (Vaswani et al. 2017, section 3.2.1, footnote 4).

    >>> effects = [scaling_effect(64, scaled=scaled) for scaled in (False, True)]
    >>> [round(effect.spread) for effect in effects]
    [8, 1]
    """
    random = np.random.RandomState(SEED)
    q = random.standard_normal((N_QUERIES, d_k)).astype(np.float32)
    k = random.standard_normal((N_KEYS, d_k)).astype(np.float32)
    scores = formula.scaled(q @ k.T, d_k**-0.5 if scaled else 1.0)
    spread = float(scores.std())
    weights = formula.softmax(scores)
    gradients = np.linalg.norm(softmax_jacobian(weights), axis=(-2, -1))
    return ScalingEffect(
        d_k=d_k,
        scaled=scaled,
        spread=spread,
        greatest_weight=float(weights.max(axis=-1).mean()),
        mean_gradient=float(gradients.mean()),
        median_gradient=float(np.median(gradients)),
    )


def softmax_jacobian(weights: npt.ArrayLike) -> FloatArray:  # [..., S] -> [..., S, S]
    """The derivative of each weight by each number that the softmax takes: diag(w) - w w^T.

    >>> softmax_jacobian([0.5, 0.5]).tolist()
    [[0.25, -0.25], [-0.25, 0.25]]
    """
    w = np.asarray(weights, np.float32)
    return w[..., None] * (np.eye(w.shape[-1], dtype=np.float32) - w[..., None, :])
