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
    entropy: FloatArray
    n_induction_rows: int

    def label(self, row: int, head: int, *, n_rows: int) -> str:
        """The strongest thing to say of a head with its score, or nothing. `n_rows` is T.

        Thresholds: previous-token and induction above .4 (as in ARENA's exercises), sink above .3
        (arXiv:2410.10781), broad from .8 of the greatest entropy.
        """
        named = [
            ("previous", float(self.previous[row, head]), 0.4, n_rows - 1),
            ("induction", float(self.induction[row, head]), 0.4, self.n_induction_rows),
            ("sink", float(self.sink[row, head]), 0.3, n_rows),
            ("broad", float(self.entropy[row, head]), 0.8, n_rows - 1),
        ]
        for name, score, threshold, counted in named:
            if counted >= _FEWEST_ROWS and score > threshold:
                return f"{name} {score:.2f}"
        return ""


def diagnose(trace: AttentionTrace) -> Diagnostics:
    """Every diagnostic of every captured head; one layer's maps are in memory at a time."""
    rows = []
    for layer in trace.layers:
        weights = attention_weights(layer)
        rows.append(
            [
                sink_mass(weights),
                previous_token(weights),
                induction(weights, trace.token_ids),
                normalised_entropy(weights),
            ]
        )
    sink, previous, inducing, entropy = np.array(rows, np.float32).swapaxes(0, 1)
    return Diagnostics(
        sink=sink,
        previous=previous,
        induction=inducing,
        entropy=entropy,
        n_induction_rows=int(_follows_a_match(trace.token_ids).any(axis=1).sum()),
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


def _follows_a_match(token_ids: Sequence[int]) -> np.ndarray:  # bool [T, T]
    ids = np.asarray(token_ids)
    follows = np.zeros((len(ids), len(ids)), bool)
    follows[:, 1:] = ids[:, None] == ids[None, :-1]
    return np.tril(follows)
