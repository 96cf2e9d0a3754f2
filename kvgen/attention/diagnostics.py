"""What a head does, as numbers from its weights A [H, T, T].

A_ij is the weight of query i on key j. Rows that cannot match are not counted; a number without
any counted row is NaN. The sink is the first key: a head that finds nothing puts its weight there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvgen.attention.steps import attention_weights, weighted_values
from kvgen.engine.machine import usable_cores
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace, LayerTrace
from kvgen.errors import UsageError

# Each diagnostic with the title of its panel; all lie in 0..1 but the distances.
METRICS = {
    "sink": "sink, all rows",
    "previous": "previous token",
    "induction": "induction",
    "duplicate": "duplicate",
    "entropy": "entropy",
    "distance": "distance",
    "sink-later": "sink mass",
    "entropy-rest": "entropy, rest",
    "distance-all": "distance, all",
}
# The same in words for a legend.
MEANINGS = {
    "sink": "weight on token 0, all rows (1 in row 0)",
    "previous": "weight on the token before",
    "induction": "weight on what followed earlier copies of the token",
    "duplicate": "weight on earlier copies of the token",
    "entropy": "0 = all on one key, 1 = spread evenly",
    "distance": "tokens between query and key, without token 0",
    "sink-later": "weight on token 0, without row 0",
    "entropy-rest": "entropy without token 0",
    "distance-all": "tokens between query and key",
}
# The name of a head whose score is above a threshold: the first three as in ARENA's exercises,
# sinks as in arXiv:2410.10781 section 3.2 (but without row 0), broad by our own judgement.
_LABELS = {
    "previous": ("previous", 0.4),
    "induction": ("induction", 0.4),
    "duplicate": ("duplicate", 0.4),
    "sink-later": ("sink", 0.3),
    "entropy": ("broad", 0.8),
}
_FEWEST_ROWS = 4  # counted rows that a label needs
_ALL_ON_THE_SINK = 0.9  # rows beyond it have no rest to speak of (Vig and Belinkov, footnote 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """A number per metric, layer and head, for the N layers and H heads of a trace."""

    scores: Mapping[str, FloatArray]  # by the names of METRICS, float32 [N, H]
    rows: Mapping[str, FloatArray]  # how many queries each number was made of, [N, H]
    first: FloatArray  # [N, T, H] each query's weight on the first key
    recomputed: float  # greatest |sum_j w_ij v_j - the kernel's output|

    def label(self, row: int, column: int) -> str:
        """The first of the names that fit a head, with its score, or nothing."""
        metric = self.labelled_by(row, column)
        if metric is None:
            return ""
        return f"{_LABELS[metric][0]} {self.scores[metric][row, column]:.2f}"

    def labelled_by(self, row: int, column: int) -> str | None:
        """The metric that gives a head its name, or None."""
        for metric, (_, threshold) in _LABELS.items():
            score = float(self.scores[metric][row, column])
            if self.rows[metric][row, column] >= _FEWEST_ROWS and score > threshold:
                return metric
        return None


def diagnose(trace: AttentionTrace, *, probe: int | None = None) -> Diagnostics:
    """Every diagnostic of every captured head, and how far the maps are from the kernel's output.

    Each map is computed once; one key/value head's maps per core are in memory at a time. With
    `probe` the trace holds that number of random tokens, twice, and induction is
    `probed_induction`.
    """
    matches, follows = _matches(trace.token_ids), _follows_a_match(trace.token_ids)

    def examine(group: LayerTrace) -> tuple[_Numbers, FloatArray, float]:
        weights = attention_weights(group)
        error = float(np.abs(weighted_values(weights, group) - group.z).max())
        # A copy: a view would keep every map in memory.
        return _numbers(weights, matches, follows, probe), weights[:, :, 0].copy(), error

    groups = [group for layer in trace.layers for group in layer.groups()]
    with ThreadPoolExecutor(usable_cores()) as pool:
        examined = list(pool.map(examine, groups))
    n_layers = len(trace.layers)

    def of_layers(name: str, part: int) -> FloatArray:
        values = [np.broadcast_to(numbers[name][part], len(key)) for numbers, key, _ in examined]
        return np.concatenate(values).reshape(n_layers, -1).astype(np.float32)

    first = np.concatenate([key for _, key, _ in examined])  # [N * H, T]
    return Diagnostics(
        scores={name: of_layers(name, 0) for name in METRICS},
        rows={name: of_layers(name, 1) for name in METRICS},
        first=first.reshape(n_layers, -1, trace.length).swapaxes(1, 2),
        recomputed=max(error for _, _, error in examined),
    )


def frame_of(found: Diagnostics, *, layers: Sequence[int], heads: Sequence[int]) -> Any:
    """The scores as a pandas frame, a row for each layer and head.

    Raises UsageError where pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UsageError("a frame needs pandas: pip install pandas") from None
    index = pd.MultiIndex.from_product([layers, heads], names=["layer", "head"])
    return pd.DataFrame({name: found.scores[name].ravel() for name in METRICS}, index=index)


_Numbers = dict[str, tuple[FloatArray, FloatArray | int]]  # scores [H], rows that were counted


def _numbers(
    weights: FloatArray, matches: FloatArray, follows: FloatArray, probe: int | None
) -> _Numbers:
    later = weights.shape[1] - 1
    if probe is None:
        inducing, n_inducing = _mass_on(weights, follows)
    else:
        inducing, n_inducing = probed_induction(weights, probe), probe
    entropies = row_entropy(weights)
    return {
        "sink": (sink_mass(weights), later + 1),
        "sink-later": (sink_mass(weights[:, 1:]), later),
        "previous": (previous_token(weights), later),
        "induction": (inducing, n_inducing),
        "duplicate": _mass_on(weights, matches),
        "entropy": (normalised_entropy(entropies), later),
        "entropy-rest": entropy_of_the_rest(entropies, weights[:, :, 0]),
        "distance": (mean_distance(weights), later),
        "distance-all": (mean_distance(weights, with_first=True), later + 1),
    }


def sink_mass(weights: FloatArray) -> FloatArray:
    """Mean weight on the first token over all rows (Gu et al., arXiv:2410.10781, section 3.2)."""
    if not weights.shape[1]:
        return _nothing(weights)
    return np.asarray(weights[:, :, 0].mean(axis=1))


def previous_token(weights: FloatArray) -> FloatArray:
    """Mean over i >= 1 of A_{i,i-1} (Olsson et al., arXiv:2209.11895)."""
    if weights.shape[1] < 2:
        return _nothing(weights)
    return np.asarray(np.diagonal(weights, -1, axis1=1, axis2=2).mean(axis=1))


def induction(weights: FloatArray, token_ids: Sequence[int]) -> FloatArray:
    """Mean weight on tokens that followed earlier occurrences of the query's token.

    Over rows with a match, the sum of A_ij over 1 <= j <= i with x_{j-1} = x_i (TransformerLens,
    head_detector.py, without its division by T).
    """
    return _mass_on(weights, _follows_a_match(token_ids))[0]


def probed_induction(weights: FloatArray, n_tokens: int) -> FloatArray:
    """Mean of A_{i,i-s+1} over the second copy of s random tokens that come twice.

    The token that followed where the query's token stood before; after Olsson et al.
    (arXiv:2209.11895, prefix matching), who take other lengths and copies.
    """
    T = weights.shape[1]
    rows = np.arange(T - n_tokens, T)
    return np.asarray(weights[:, rows, rows - n_tokens + 1].mean(axis=1))


def duplicate_token(weights: FloatArray, token_ids: Sequence[int]) -> FloatArray:
    """Mean weight on earlier copies of the token, over rows that have one.

    As TransformerLens' detector of duplicate-token heads, without its division by T.
    """
    return _mass_on(weights, _matches(token_ids))[0]


def mean_distance(weights: FloatArray, *, with_first: bool = False) -> FloatArray:
    """How far back a head reads, in positions, by weight; without the first token unless asked.

    Sum of A_ij (i - j) by the sum of A_ij (Vig and Belinkov, arXiv:1906.04284, equation 6), over
    keys j >= 1 as in their section 5.2.3. 0 where all weight is on the first token.
    """
    if weights.shape[1] < 2:
        return _nothing(weights)
    counted = weights if with_first else weights[:, :, 1:]
    places = np.arange(weights.shape[1], dtype=np.float64)
    of_rows, of_keys = counted.sum(axis=2), counted.sum(axis=1)
    far = of_rows @ places - of_keys @ places[len(places) - counted.shape[2] :]
    total = of_rows.sum(axis=1, dtype=np.float64)
    distances = np.divide(far, total, out=np.zeros_like(far), where=total > 0)
    return np.asarray(distances, np.float32)


def row_entropy(weights: FloatArray) -> FloatArray:
    """-sum_j A_ij ln A_ij of every row, in nats (Clark et al., arXiv:1906.04341, section 3.3)."""
    logarithms = np.maximum(weights, np.finfo(np.float32).tiny)
    np.log(logarithms, out=logarithms)
    logarithms *= weights
    return np.asarray(np.abs(logarithms.sum(axis=-1)))  # no -0


def normalised_entropy(entropies: FloatArray) -> FloatArray:
    """Mean over i >= 1 of H_i / ln(i + 1): 0 one key, 1 all visible keys alike. H [H, T] -> [H]."""
    T = entropies.shape[1]
    if T < 2:
        return _nothing(entropies)
    return np.asarray((entropies[:, 1:] / np.log(np.arange(2, T + 1))).mean(axis=1), np.float32)


def entropy_of_the_rest(
    entropies: FloatArray, first: FloatArray
) -> tuple[FloatArray, FloatArray]:  # both [H, T] -> [H] and the rows counted
    """Mean of H_i / ln(i) over keys j >= 1, renormalised, for i >= 2 with A_i0 <= .9.

    Vig and Belinkov (arXiv:1906.04284), equation 7 and footnote 4, who do not divide.
    """
    T = entropies.shape[1]
    counted = (first <= _ALL_ON_THE_SINK) & (np.arange(T) >= 2)
    kept = np.where(counted, 1 - first, 1)
    # With p_j = A_j / (1 - A_0):  -sum p ln p = (H + A_0 ln A_0) / (1 - A_0) + ln(1 - A_0)
    of_first = first * np.log(np.maximum(first, np.finfo(np.float32).tiny))
    rest = (entropies + of_first) / kept + np.log(kept)
    rest = np.where(counted, rest, 0) / np.log(np.maximum(np.arange(T), 2))
    n_rows = counted.sum(axis=1)
    mean = np.divide(rest.sum(axis=1), n_rows, out=_nothing(first), where=n_rows > 0)
    return np.asarray(np.clip(mean, 0, 1), np.float32), n_rows


def _nothing(weights: FloatArray) -> FloatArray:
    return np.full(len(weights), np.nan, np.float32)


def _mass_on(weights: FloatArray, chosen: FloatArray) -> tuple[FloatArray, int]:
    """Mean weight on the chosen keys [T, T] over the rows that have any, and how many have."""
    n_rows = int(chosen.any(axis=1).sum())
    if n_rows == 0:
        return _nothing(weights), 0
    mass = weights.reshape(len(weights), -1) @ chosen.ravel()
    return np.asarray(mass / n_rows, np.float32), n_rows


def _matches(token_ids: Sequence[int]) -> FloatArray:
    """1 where key j is an earlier token that equals query i's [T, T]."""
    ids = np.asarray(token_ids)
    return np.tril((ids[:, None] == ids[None, :]).astype(np.float32), -1)


def _follows_a_match(token_ids: Sequence[int]) -> FloatArray:
    """1 where key j comes right after a token that equals query i's [T, T]."""
    ids = np.asarray(token_ids)
    follows = np.zeros((len(ids), len(ids)), np.float32)
    follows[:, 1:] = ids[:, None] == ids[None, :-1]
    return np.tril(follows)
