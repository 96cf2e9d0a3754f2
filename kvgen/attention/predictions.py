"""What each position predicts: the likeliest next tokens, and how sure the model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.engine.finite import require_finite
from kvgen.engine.tensors import FloatArray

Ids = npt.NDArray[np.int32]


class Candidates(NamedTuple):
    """The K likeliest next tokens of P positions, before any sampling filter."""

    ids: Ids  # [P, K] the most probable first; of equal ones the lower id
    probabilities: FloatArray  # [P, K]
    entropies: FloatArray  # [P] of the probabilities of all tokens, in nats


def likeliest(logits: FloatArray, n_candidates: int) -> Candidates:  # [P, V]
    """The likeliest tokens of each row of logits, and the entropy of the whole row.

    >>> likeliest(np.log(np.float32([[0.1, 0.6, 0.3]])), 2).ids.tolist()
    [[1, 2]]
    """
    n_candidates = min(n_candidates, logits.shape[1])
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, dtype=np.float64)
    # H = -sum p ln p = ln Z - sum e^s s / Z, where p = e^s / Z
    means = np.einsum("pv,pv->p", shifted, exponentials) / totals
    # All that equal the lowest value taken come with it: of these the lower ids are chosen.
    lowest = np.partition(shifted, -n_candidates, axis=1)[:, -n_candidates]
    ids = np.empty((len(logits), n_candidates), np.int64)
    for row, (numbers, least) in enumerate(zip(shifted, lowest, strict=True)):
        best = np.flatnonzero(numbers >= least)  # ascending, as the stable order below needs them
        ids[row] = best[np.argsort(-numbers[best], kind="stable")][:n_candidates]
    return Candidates(
        ids.astype(np.int32),
        (np.take_along_axis(exponentials, ids, axis=1) / totals[:, None]).astype(np.float32),
        np.maximum(np.log(totals) - means, 0).astype(np.float32),
    )


def probabilities_of(logits: FloatArray, tokens: Sequence[int]) -> FloatArray:  # [P, V], P -> [P]
    """How probable one token is in each row of logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = np.exp(shifted[np.arange(len(tokens)), list(tokens)].astype(np.float64))
    return np.asarray(chosen / np.exp(shifted).sum(axis=1, dtype=np.float64), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What each of T positions predicts, and how probable the token was that came next."""

    ids: Ids  # [T, K]: see Candidates
    probabilities: FloatArray  # [T, K]
    entropies: FloatArray  # [T]
    next_probabilities: FloatArray  # [T]; NaN for the last position where no token was chosen


class PredictionLog:
    """Hears the logits of a session's positions, some at a time, and keeps the likeliest tokens."""

    def __init__(self, prompt_ids: Sequence[int], *, n_candidates: int = 5) -> None:
        self._prompt_ids = list(prompt_ids)
        self._n_candidates = n_candidates
        self._parts: list[Candidates] = []
        self._next: list[FloatArray] = []

    def hear(self, first: int, logits: FloatArray) -> None:
        """Take in the logits [T, V] of the positions from `first` on.

        Raises NonFiniteError where they are not finite: then none is the likeliest.
        """
        require_finite(logits)
        if first == 0:
            self._parts, self._next = [], []
        self._parts.append(likeliest(logits, self._n_candidates))
        known = self._prompt_ids[first + 1 : first + 1 + len(logits)]
        self._next.append(probabilities_of(logits[: len(known)], known))

    def predictions(self, log_probabilities: Sequence[float]) -> Predictions:
        """What was heard; the chosen tokens behind the prompt had these log-probabilities."""
        chosen = np.exp(np.array([*log_probabilities] or [np.nan], np.float64))
        columns = zip(*self._parts, strict=True)
        ids, probabilities, entropies = (np.concatenate(column) for column in columns)
        return Predictions(
            ids=ids,
            probabilities=probabilities,
            entropies=entropies,
            next_probabilities=np.concatenate([*self._next, chosen]).astype(np.float32),
        )
