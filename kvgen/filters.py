"""The filters of sampling: logits [V] -> logits [V]; what one takes out becomes -inf.

`kvgen.sampling` chains them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kvgen.engine.tensors import FloatArray

REMOVED = np.float32(-np.inf)


def add_bias(logits: FloatArray, bias: Mapping[int, float]) -> FloatArray:
    """Add a number to the logits of single ids; -inf bans an id, one beyond the logits is ignored.

    >>> add_bias(np.float32([1, 2, 3]), {0: 0.5, 2: -np.inf, 9: 1}).tolist()
    [1.5, 2.0, -inf]
    """
    addends = {token: addend for token, addend in bias.items() if token < len(logits)}
    biased = logits.copy()
    biased[np.fromiter(addends, np.int64)] += np.fromiter(addends.values(), np.float32)
    return biased


def penalize_repetition(logits: FloatArray, history: Sequence[int], penalty: float) -> FloatArray:
    """Make tokens that were there before less likely (CTRL, arXiv:1909.05858).

    Their logits are divided by the penalty where they are above 0, else multiplied with it, once
    however often a token has occurred.

    >>> penalize_repetition(np.float32([1, 2, -2]), [1, 2, 2], 2.0).tolist()
    [1.0, 1.0, -4.0]
    """
    ids = np.unique(np.asarray(history, np.int64))
    ids = ids[ids < len(logits)]
    before, factor = logits[ids], np.float32(penalty)
    penalized = logits.copy()
    penalized[ids] = np.where(before < 0, before * factor, before / factor)
    return penalized


def penalize_occurrence(
    logits: FloatArray, history: Sequence[int], *, presence: float, frequency: float
) -> FloatArray:
    """Subtract `presence` once from tokens that have occurred, and `frequency` each time.

    As OpenAI's API defines both, and llama.cpp applies them. Negative numbers make such tokens more
    likely.

    >>> logits = np.float32([1, 2, 3])
    >>> penalize_occurrence(logits, [1, 2, 2], presence=0.5, frequency=0.25).tolist()
    [1.0, 1.25, 2.0]
    """
    ids, counts = np.unique(np.asarray(history, np.int64), return_counts=True)
    known = ids < len(logits)
    penalized = logits.copy()
    penalized[ids[known]] -= (presence + frequency * counts[known]).astype(np.float32)
    return penalized


def keep_top_k(logits: FloatArray, k: int) -> FloatArray:
    """Keep the k largest logits (arXiv:1805.04833); of equal ones, those with the lower id.

    >>> keep_top_k(np.float32([1, 3, 2]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    return _only(logits, largest(logits, k))


def keep_top_p(logits: FloatArray, p: float) -> FloatArray:
    """Keep the smallest set of tokens whose probabilities reach p (nucleus, arXiv:1904.09751).

    >>> np.isfinite(keep_top_p(np.log(np.float32([0.5, 0.3, 0.2])), 0.6)).tolist()
    [True, True, False]
    """
    mass = probabilities(logits)
    # Those below this fraction have less than 1 - p together: the set is full without them.
    order = _in_order(logits, np.flatnonzero(mass >= (1 - p) / len(logits)))
    before = np.cumsum(mass[order]) - mass[order]
    return _only(logits, order[: max(1, int(np.count_nonzero(before < p)))])


def keep_min_p(logits: FloatArray, p: float) -> FloatArray:
    """Keep tokens at least p times as probable as the most probable one (arXiv:2407.01082).

    >>> np.isfinite(keep_min_p(np.log(np.float32([0.5, 0.3, 0.2])), 0.5)).tolist()
    [True, True, False]
    """
    if p == 0:
        return logits
    return np.where(logits >= logits.max() + np.float32(np.log(p)), logits, REMOVED)


def probabilities(logits: FloatArray) -> npt.NDArray[np.float64]:
    """Softmax, summed in float64, so that cumulative sums are exact enough to sample from."""
    exponentials = np.exp(logits - logits.max()).astype(np.float64)
    result: npt.NDArray[np.float64] = exponentials / exponentials.sum()
    return result


def largest(logits: FloatArray, count: int) -> npt.NDArray[np.intp]:
    """The ids of the `count` largest logits, largest first; of equal ones the lower id first."""
    if count < len(logits):  # sorting all of a large vocabulary takes as long as the model
        bound = np.partition(logits, -count)[-count]
        candidates = np.flatnonzero(logits >= bound)
    else:
        candidates = np.arange(len(logits))
    return _in_order(logits, candidates)[:count]


def _in_order(logits: FloatArray, ids: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Ids by their logits, largest first; of equal ones the lower id first.

    One number for both is sorted, which takes a tenth of a stable sort's time: the bits of a float
    order like a whole number once those below zero are turned around.
    """
    bits = (np.float32(0) - logits[ids]).view(np.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32 | ids
    return np.sort(keys) & 0xFFFFFFFF


def _only(logits: FloatArray, kept: npt.NDArray[np.intp]) -> FloatArray:
    filtered = np.full_like(logits, REMOVED)
    filtered[kept] = logits[kept]
    return filtered
