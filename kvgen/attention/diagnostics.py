"""What a head does, as numbers between 0 and 1 from its weights A [H, T, T].

A_ij is the weight of query i on key j. Rows that cannot match are not counted; a number that no
row counts for is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvgen.attention.steps import attention_weights
from kvgen.tensors import FloatArray
from kvgen.trace import AttentionTrace

_FEWEST_ROWS = 4  # a label needs at least so many counted rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """One number per layer and head, float32 [N, H], for the layers of a trace."""

    sink: FloatArray
    previous: FloatArray
    induction: FloatArray
    duplicate: FloatArray
    entropy: FloatArray
    distance: FloatArray  # in positions, the sink left out
    n_induction_rows: int
    n_duplicate_rows: int

    def label(self, row: int, head: int, *, n_rows: int) -> str:
        """The strongest thing to say of a head with its score, or nothing. `n_rows` is T.

        Thresholds: previous-token, induction and duplicate-token above .4 (as in ARENA's
        exercises), sink above .3 (arXiv:2410.10781), broad from .8 of the greatest entropy.
        """
        named = [
            ("previous", float(self.previous[row, head]), 0.4, n_rows - 1),
            ("induction", float(self.induction[row, head]), 0.4, self.n_induction_rows),
            ("duplicate", float(self.duplicate[row, head]), 0.4, self.n_duplicate_rows),
            ("sink", float(self.sink[row, head]), 0.3, n_rows),
            ("broad", float(self.entropy[row, head]), 0.8, n_rows - 1),
        ]
        for name, score, threshold, counted in named:
            if counted >= _FEWEST_ROWS and score > threshold:
                return f"{name} {score:.2f}"
        return ""


def diagnose(trace: AttentionTrace, *, probe: int | None = None) -> Diagnostics:
    """Every diagnostic of every captured head; one layer's maps are in memory at a time.

    With `probe` the trace is of so many random tokens twice, and induction is `probed_induction`.
    """
    rows = []
    for layer in trace.layers:
        weights = attention_weights(layer)
        rows.append(
            [
                sink_mass(weights),
                previous_token(weights),
                induction(weights, trace.token_ids)
                if probe is None
                else probed_induction(weights, probe),
                duplicate_token(weights, trace.token_ids),
                normalised_entropy(weights),
                mean_distance(weights),
            ]
        )
    sink, previous, inducing, duplicate, entropy, distance = np.array(rows, np.float32).swapaxes(
        0, 1
    )
    return Diagnostics(
        sink=sink,
        previous=previous,
        induction=inducing,
        duplicate=duplicate,
        entropy=entropy,
        distance=distance,
        n_induction_rows=int(_follows_a_match(trace.token_ids).any(axis=1).sum()),
        n_duplicate_rows=int(_matches(trace.token_ids).any(axis=1).sum()),
    )


def sink_mass(weights: FloatArray) -> FloatArray:
    """Mean weight on the first token over all rows (Gu et al., arXiv:2410.10781, section 3.2)."""
    return np.asarray(weights[:, :, 0].mean(axis=1))


def previous_token(weights: FloatArray) -> FloatArray:
    """Mean over i >= 1 of A_{i,i-1} (Olsson et al., arXiv:2209.11895)."""
    if weights.shape[1] < 2:
        return np.full(len(weights), np.nan, np.float32)
    return np.asarray(np.diagonal(weights, -1, axis1=1, axis2=2).mean(axis=1))


def induction(weights: FloatArray, token_ids: Sequence[int]) -> FloatArray:
    """Mean weight on tokens that followed earlier occurrences of the query's token.

    Over rows with a match, the sum of A_ij over 1 <= j <= i with x_{j-1} = x_i (TransformerLens,
    head_detector.py, without its division by T).
    """
    follows = _follows_a_match(token_ids)
    counted = follows.any(axis=1)
    if not counted.any():
        return np.full(len(weights), np.nan, np.float32)
    mass = (weights * follows).sum(axis=2)
    return np.asarray(mass[:, counted].mean(axis=1))


def probed_induction(weights: FloatArray, n_tokens: int) -> FloatArray:
    """Mean of A_{i,i-s+1} over the second copy of s random tokens that come twice.

    The token that followed where the query's token stood before; after Olsson et al.
    (arXiv:2209.11895, prefix matching), who take other lengths and copies.
    """
    T = weights.shape[1]
    rows = np.arange(T - n_tokens, T)
    return np.asarray(weights[:, rows, rows - n_tokens + 1].mean(axis=1))


def duplicate_token(weights: FloatArray, token_ids: Sequence[int]) -> FloatArray:
    """Mean weight on earlier tokens that are the same, over rows that have such.

    As TransformerLens' detector of duplicate-token heads, without its division by T.
    """
    same = _matches(token_ids)
    counted = same.any(axis=1)
    if not counted.any():
        return np.full(len(weights), np.nan, np.float32)
    return np.asarray((weights * same).sum(axis=2)[:, counted].mean(axis=1))


def mean_distance(weights: FloatArray) -> FloatArray:
    """How far back a head reads, in positions, by weight; the first token is left out.

    Sum of A_ij (i - j) by the sum of A_ij, over keys j >= 1 (Vig and Belinkov, arXiv:1906.04284,
    equation 6 and section 5.2.3).
    """
    T = weights.shape[1]
    if T < 2:
        return np.full(len(weights), np.nan, np.float32)
    back = (np.arange(T)[:, None] - np.arange(T))[1:, 1:]
    own = weights[:, 1:, 1:]
    total = own.sum(axis=(1, 2))
    far = (own * back).sum(axis=(1, 2))
    distances: FloatArray = np.divide(far, total, out=np.zeros_like(far), where=total > 0)
    return distances


def normalised_entropy(weights: FloatArray) -> FloatArray:
    """Mean over i >= 1 of -sum_j A_ij ln A_ij / ln(i + 1): 0 one key, 1 all visible keys alike."""
    T = weights.shape[1]
    if T < 2:
        return np.full(len(weights), np.nan, np.float32)
    greatest = np.log(np.arange(2, T + 1))
    return np.asarray((row_entropy(weights)[:, 1:] / greatest).mean(axis=1), np.float32)


def row_entropy(weights: FloatArray) -> FloatArray:
    """-sum_j A_ij ln A_ij of every row, in nats (Clark et al., arXiv:1906.04341, section 3.3)."""
    logarithms = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return np.asarray(np.abs((weights * logarithms).sum(axis=-1)))  # no -0


def _matches(token_ids: Sequence[int]) -> np.ndarray:  # bool [T, T]
    ids = np.asarray(token_ids)
    return np.tril(ids[:, None] == ids[None, :], -1)


def _follows_a_match(token_ids: Sequence[int]) -> np.ndarray:  # bool [T, T]
    ids = np.asarray(token_ids)
    follows = np.zeros((len(ids), len(ids)), bool)
    follows[:, 1:] = ids[:, None] == ids[None, :-1]
    return np.tril(follows)
