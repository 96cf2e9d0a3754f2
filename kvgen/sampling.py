"""From logits to a token: filters, each logits -> logits, and the Sampler that chains them.

A filter sets what it takes out to -inf. The chain is llama.cpp's: the repetition penalty, top-k,
top-p, min-p, and the temperature last, so that it does not change what the filters keep.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvgen.engine.tensors import FloatArray
from kvgen.errors import UsageError

_REMOVED = np.float32(-np.inf)


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


def keep_top_k(logits: FloatArray, k: int) -> FloatArray:
    """Keep the k largest logits (arXiv:1805.04833); of equal ones, those with the lower id.

    >>> keep_top_k(np.float32([1, 3, 2]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    return _only(logits, _largest(logits, k))


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
    return np.where(logits >= logits.max() + np.float32(np.log(p)), logits, _REMOVED)


def probabilities(logits: FloatArray) -> npt.NDArray[np.float64]:
    """Softmax, summed in float64, so that cumulative sums are exact enough to sample from."""
    exponentials = np.exp(logits - logits.max()).astype(np.float64)
    result: npt.NDArray[np.float64] = exponentials / exponentials.sum()
    return result


def log_probability(logits: FloatArray, token: int) -> float:
    """Natural logarithm of the token's probability before any filter."""
    shifted = logits - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum(dtype=np.float64)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How to choose a token; the defaults are greedy and filter nothing.

    Raises UsageError for values outside their range.
    """

    temperature: float = 0.0  # 0: the most probable token
    top_k: int = 0  # 0 or -1: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # of tokens that were there before, the prompt's included

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value > 1e300:
                raise UsageError(f"{name.replace('_', '-')} is {value!r}; it must be a number")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int):
            raise UsageError(f"top-k is {self.top_k!r}; it must be a whole number")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.top_k < -1:
            raise UsageError(f"top-k is {self.top_k}; it must be 0 or more, or -1 for all")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p is {self.min_p}; it must lie between 0 and 1")
        if not 1e-30 < self.repetition_penalty < 1e30:  # logits are float32
            raise UsageError(
                f"repetition-penalty is {self.repetition_penalty}; it must be above 0 and finite"
            )

    def describe(self) -> str:
        """The chain in the order in which it is applied."""
        penalty = self.repetition_penalty
        penalized = f"repetition penalty {penalty:g}" if penalty != 1 else ""
        if self.temperature == 0:
            return f"{penalized} > greedy" if penalized else "greedy"
        chain = [
            penalized,
            f"top-k {self.top_k}" if self.top_k > 0 else "",
            f"top-p {self.top_p:g}" if self.top_p < 1 else "",
            f"min-p {self.min_p:g}" if self.min_p else "",
            f"temperature {self.temperature:g}",
        ]
        return " > ".join(link for link in chain if link)


class Sampler:
    """Chooses tokens; the same seed gives the same choices.

    Ids from `n_tokens` on are never chosen: embeddings may have more rows than the tokenizer ids.
    """

    def __init__(
        self, options: SamplingOptions, *, n_tokens: int | None = None, seed: int | None = None
    ) -> None:
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise UsageError(f"seed is {seed!r}; it must be a whole number, 0 or more")
        self.options = options
        self.seed = secrets.randbits(32) if seed is None else seed
        self._n_tokens = n_tokens
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def __call__(self, logits: FloatArray, history: Sequence[int]) -> int:
        """The next token's id, from logits [V] and all ids so far, the prompt's included."""
        options = self.options
        logits = logits[: self._n_tokens]
        if options.repetition_penalty != 1:
            logits = penalize_repetition(logits, history, options.repetition_penalty)
        if options.temperature == 0:
            return int(np.argmax(logits))
        if 0 < options.top_k < len(logits):
            logits = keep_top_k(logits, options.top_k)
        if options.top_p < 1:
            logits = keep_top_p(logits, options.top_p)
        logits = keep_min_p(logits, options.min_p)
        kept = np.flatnonzero(logits > _REMOVED)
        # Shifted first: a tiny temperature must not turn the largest logit into infinity.
        with np.errstate(over="ignore"):  # and a tiny one sends all others to -inf
            scaled = (logits[kept] - logits.max()).astype(np.float64) / options.temperature
        cumulative = np.cumsum(np.exp(scaled))
        point = self._random.random() * cumulative[-1]
        return int(kept[np.searchsorted(cumulative, point, side="right")])


def _largest(logits: FloatArray, count: int) -> npt.NDArray[np.intp]:
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
    filtered = np.full_like(logits, _REMOVED)
    filtered[kept] = logits[kept]
    return filtered
