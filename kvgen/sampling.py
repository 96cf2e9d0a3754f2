"""From logits to a token: the options of sampling, and the Sampler that chains the filters.

The filters are in `kvgen.filters`. The chain, in the order of llama.cpp:

0. with a constraint, only the tokens that may follow (`kvgen.text.constraint`)
1. logit bias; `ignore_eos` is a bias of -inf for the ids that end a text
2. penalties: repetition, then frequency and presence, of the last `repeat_last_n` tokens
3. top-k
4. top-p
5. min-p
6. temperature, last, so that it does not change what the filters keep

At temperature 0 the token with the largest logit after 1 and 2 is taken.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index

import numpy as np

from kvgen.engine.tensors import FloatArray
from kvgen.errors import UsageError
from kvgen.filters import (
    REMOVED,
    add_bias,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    largest,
    penalize_occurrence,
    penalize_repetition,
)

_LARGEST_ADDEND = 1e6  # of a bias or penalty: sums stay finite in float32
_NUMBERS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip


def log_probability(logits: FloatArray, token: int) -> float:
    """Natural logarithm of the token's probability before any filter."""
    shifted = logits - logits.max()
    return float(shifted[token] - _log_total(shifted))


def likeliest_tokens(logits: FloatArray, count: int) -> tuple[tuple[int, float], ...]:
    """The ids of the `count` likeliest tokens, each with its log-probability before any filter.

    The likeliest comes first, of equal ones the lower id; all of them where there are fewer.

    >>> [token for token, _ in likeliest_tokens(np.log(np.float32([0.2, 0.5, 0.3])), 2)]
    [1, 2]
    """
    if count == 0:
        return ()
    shifted = logits - logits.max()
    log_total = _log_total(shifted)
    return tuple(
        (token, float(shifted[token] - log_total)) for token in largest(logits, count).tolist()
    )


def check_logprobs(count: int) -> int:
    """The number of likeliest tokens to name. Raises UsageError unless it is 0 or more."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise UsageError(f"logprobs is {count!r}; it must be a whole number, 0 or more")
    return count


def _log_total(shifted: FloatArray) -> np.float64:
    """The logarithm of the sum of exponentials, of logits whose greatest is 0."""
    total: np.float64 = np.log(np.exp(shifted).sum(dtype=np.float64))
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How to choose a token; the defaults are greedy and filter nothing.

    The penalties look at the tokens so far, the prompt's included. A bias of -inf or False bans a
    token. Raises UsageError for values outside their range.
    """

    temperature: float = 0.0  # 0: the most probable token
    top_k: int = 0  # 0 or -1: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # a divisor
    frequency_penalty: float = 0.0  # subtracted for each time
    presence_penalty: float = 0.0  # subtracted once
    repeat_last_n: int = -1  # how many last tokens the penalties look at; -1: all
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    ignore_eos: bool = False  # never choose an id that ends a text

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value > 1e300:
                raise UsageError(f"{_option(name)} is {value!r}; it must be a number")
        for name in ("top_k", "repeat_last_n"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageError(f"{_option(name)} is {value!r}; it must be a whole number")
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
        for name in ("frequency_penalty", "presence_penalty"):
            if not abs(getattr(self, name)) <= _LARGEST_ADDEND:
                raise UsageError(
                    f"{_option(name)} is {getattr(self, name)}; it must lie between -1e6 and 1e6"
                )
        if self.repeat_last_n < -1:
            raise UsageError(
                f"repeat-last-n is {self.repeat_last_n}; it must be 0 or more, or -1 for all"
            )
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore-eos is {self.ignore_eos!r}; it must be True or False")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    def describe(self) -> str:
        """The chain in the order in which it is applied."""
        changes = [
            " ".join(["logit bias", *(f"{id_}={add:g}" for id_, add in self.logit_bias.items())])
            if self.logit_bias
            else "",
            "ids that end a text banned" if self.ignore_eos else "",
            self._describe_penalties(),
        ]
        filters = [
            f"top-k {self.top_k}" if self.top_k > 0 else "",
            f"top-p {self.top_p:g}" if self.top_p < 1 else "",
            f"min-p {self.min_p:g}" if self.min_p else "",
            f"temperature {self.temperature:g}",
        ]
        chain = [*changes, *(["greedy"] if self.temperature == 0 else filters)]
        return " > ".join(link for link in chain if link)

    @property
    def penalizes(self) -> bool:
        """Whether a penalty changes any logit."""
        penalties = (self.repetition_penalty - 1, self.frequency_penalty, self.presence_penalty)
        return self.repeat_last_n != 0 and any(penalties)

    def _describe_penalties(self) -> str:
        if not self.penalizes:
            return ""
        factor = self.repetition_penalty
        penalties = [
            f"repetition penalty {factor:g}" if factor != 1 else "",
            f"frequency penalty {self.frequency_penalty:g}" if self.frequency_penalty else "",
            f"presence penalty {self.presence_penalty:g}" if self.presence_penalty else "",
        ]
        text = " > ".join(penalty for penalty in penalties if penalty)
        return text if self.repeat_last_n == -1 else f"{text} (last {self.repeat_last_n} tokens)"


class Sampler:
    """Chooses tokens; the same seed gives the same choices.

    Ids from `n_tokens` on are never chosen: embeddings may have more rows than the tokenizer ids.
    Nor are `stop_ids`, which end a text, where the options say `ignore_eos`.
    """

    def __init__(
        self,
        options: SamplingOptions,
        *,
        n_tokens: int | None = None,
        seed: int | None = None,
        stop_ids: Collection[int] = (),
    ) -> None:
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise UsageError(f"seed is {seed!r}; it must be a whole number, 0 or more")
        self.options = options
        self.seed = secrets.randbits(32) if seed is None else seed
        self._n_tokens = n_tokens
        banned = stop_ids if options.ignore_eos else ()
        self._bias = {**options.logit_bias, **dict.fromkeys(banned, -np.inf)}
        self.banned = frozenset(id_ for id_, add in self._bias.items() if add == -np.inf)
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def __call__(self, logits: FloatArray, history: Sequence[int]) -> int:
        """The next token's id, from logits [V] and all ids so far, the prompt's included.

        Raises UsageError where the options ban every token.
        """
        options = self.options
        logits = logits[: self._n_tokens]
        if self._bias:
            logits = add_bias(logits, self._bias)
            if logits.max() == REMOVED:
                raise UsageError(
                    "logit-bias and ignore-eos ban every token that may follow: leave one to choose"
                )
        if options.penalizes:
            logits = self._penalized(logits, history)
        if options.temperature == 0:
            return int(np.argmax(logits))
        if 0 < options.top_k < len(logits):
            logits = keep_top_k(logits, options.top_k)
        if options.top_p < 1:
            logits = keep_top_p(logits, options.top_p)
        logits = keep_min_p(logits, options.min_p)
        kept = np.flatnonzero(logits > REMOVED)
        # Shifted first: a tiny temperature must not turn the largest logit into infinity.
        with np.errstate(over="ignore"):  # and a tiny one sends all others to -inf
            scaled = (logits[kept] - logits.max()).astype(np.float64) / options.temperature
        cumulative = np.cumsum(np.exp(scaled))
        point = self._random.random() * cumulative[-1]
        return int(kept[np.searchsorted(cumulative, point, side="right")])

    def _penalized(self, logits: FloatArray, history: Sequence[int]) -> FloatArray:
        options = self.options
        if options.repeat_last_n > 0:
            history = history[-options.repeat_last_n :]
        if options.repetition_penalty != 1:
            logits = penalize_repetition(logits, history, options.repetition_penalty)
        if options.frequency_penalty or options.presence_penalty:
            logits = penalize_occurrence(
                logits,
                history,
                presence=options.presence_penalty,
                frequency=options.frequency_penalty,
            )
        return logits


def _option(name: str) -> str:
    return name.replace("_", "-")


def _checked_bias(bias: object) -> dict[int, float]:
    """The bias as a dict of numbers, False as -inf. Raises UsageError for anything else."""
    if not isinstance(bias, Mapping):
        raise UsageError(f"logit-bias is {bias!r}; it must map token ids to numbers")
    checked: dict[int, float] = {}
    for token, addend in bias.items():
        addend = -np.inf if addend is False else addend
        try:
            id_ = index(token)
        except TypeError:
            id_ = -1
        if id_ < 0 or isinstance(token, bool):
            raise UsageError(f"logit-bias is of {token!r}; a token id is a whole number, 0 or more")
        number = isinstance(addend, (int, float)) and not isinstance(addend, bool)
        if not number or not (addend == -np.inf or abs(addend) <= _LARGEST_ADDEND):
            raise UsageError(
                f"logit-bias of {id_} is {addend!r}; it must lie between -1e6 and 1e6, or be -inf "
                "or false, which bans the token"
            )
        checked[id_] = float(addend)
    return checked
