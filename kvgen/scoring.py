"""How well a model predicts a text: the log-probability of each token, window by window.

A window runs up to `window` positions from an empty cache, and the next one begins `stride`
positions later. Every token but the first is predicted once, by the first window that reaches it;
behind the first window at least window - stride + 1 tokens stand before it. With stride = window
this is the measure of `weights/train.py score`; a shorter stride is the sliding window of the
transformers documentation ("Perplexity of fixed-length models"), except that the last position of
each window predicts too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import Engine, as_ids
from kvgen.engine.tensors import FloatArray
from kvgen.errors import UsageError
from kvgen.session import Session, rows_at_once

Doubles = npt.NDArray[np.float64]

_USUAL_WINDOW = 1024


class Window(NamedTuple):
    """Positions `begin` to `end` - 1 run, and the tokens `first` to `end` are predicted."""

    begin: int
    first: int
    end: int


class Sizes(NamedTuple):
    """Positions of a window, and from the start of one to the start of the next."""

    window: int
    stride: int

    def windows(self, n_tokens: int) -> Iterator[Window]:
        """The windows of a text.

        >>> list(Sizes(4, 2).windows(8))
        [Window(begin=0, first=1, end=4), Window(begin=2, first=5, end=6), \
Window(begin=4, first=7, end=7)]
        """
        begin, first = 0, 1
        while first < n_tokens:
            end = min(begin + self.window, n_tokens - 1)
            yield Window(begin, first, end)
            begin, first = begin + self.stride, end + 1


def sizes_for(
    config: ModelConfig, *, window: int | None = None, stride: int | None = None
) -> Sizes:
    """The sizes, where None is the usual one: up to 1,024 positions, and half a window.

    Raises UsageError for a window beyond the context and a stride beyond the window.
    """
    context = config.max_context
    window = min(_USUAL_WINDOW, context) if window is None else window
    if not 1 <= window <= context:
        raise UsageError(f"a window of {window} tokens does not fit: give 1 to {context}")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise UsageError(
            f"a stride of {stride} does not fit a window of {window}: give 1 to {window}"
        )
    return Sizes(window, stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The log-probabilities of a text of T tokens, and how far they are from a reference's."""

    log_probabilities: Doubles  # [T - 1] natural logarithms, of the tokens from position 1 on
    mean_kl: float  # mean over the tokens of KL(reference || this), in nats
    same_choice: float  # share of the tokens where both have the same most probable one

    @property
    def nats(self) -> float:
        """The surprise of the whole text."""
        return -math.fsum(self.log_probabilities)

    @property
    def nats_per_token(self) -> float:
        """The mean over the tokens that were predicted."""
        return self.nats / len(self.log_probabilities)

    @property
    def perplexity(self) -> float:
        """The exponential of `nats_per_token`; infinity where a float cannot hold it."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    def bits_per_byte(self, n_bytes: int) -> float:
        """The surprise in bits over the bytes of the text."""
        return self.nats / math.log(2) / n_bytes


def score(
    engine: Engine, ids: Sequence[int], *, window: int | None = None, stride: int | None = None
) -> Doubles:  # [T] -> [T - 1]
    """The natural log-probability of every token but the first. Raises as `scores`."""
    sizes = sizes_for(engine.config, window=window, stride=stride)
    return scores([engine], ids, sizes)[0].log_probabilities


def scores(
    engines: Sequence[Engine],
    ids: Sequence[int],
    sizes: Sizes,
    *,
    reference: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> list[Score]:
    """The same text on several engines of one model, compared with one of them.

    The engines go side by side, so that the logits of a part of a window are in memory at a time.
    `on_progress` hears numbers of positions: `positions_run` in all for each engine. Raises
    UsageError for ids outside the vocabulary or fewer than two, NonFiniteError where logits are not
    finite.
    """
    ids = as_ids(engines[0].config, ids)
    if len(ids) < 2:
        tokens = "one token" if ids else "no tokens"
        raise UsageError(
            f"the text has {tokens}, and the first token cannot be scored: give at least two"
        )
    n = len(ids) - 1
    chosen = np.zeros((len(engines), n))
    divergences = np.zeros((len(engines), n))
    agree = np.zeros((len(engines), n), np.bool_)
    runs = [_logits(engine, ids, sizes, on_progress) for engine in engines]
    for parts in zip(*runs, strict=True):
        for row, token in enumerate(range(parts[0][0], parts[0][0] + len(parts[0][1]))):
            known = [_log_softmax(logits[row]) for _, logits in parts]
            expected = known[reference]
            for number, own in enumerate(known):
                chosen[number, token - 1] = own[ids[token]]
                agree[number, token - 1] = own.argmax() == expected.argmax()
                if own is not expected:
                    divergences[number, token - 1] = np.exp(expected) @ (expected - own)
    return [
        Score(
            log_probabilities=chosen[number],
            mean_kl=max(0.0, float(divergences[number].mean())),  # rounding may fall below 0
            same_choice=float(agree[number].mean()),
        )
        for number in range(len(engines))
    ]


def positions_run(n_tokens: int, sizes: Sizes) -> int:
    """Positions that run through the model for a text."""
    return sum(window.end - window.begin for window in sizes.windows(n_tokens))


def _logits(
    engine: Engine, ids: Sequence[int], sizes: Sizes, on_progress: Callable[[int], None] | None
) -> Iterator[tuple[int, FloatArray]]:
    """The first token that a part predicts, and the logits [P, V] for it and those behind it."""
    session = Session(engine, min(sizes.window, len(ids) - 1), on_progress=on_progress)
    n_at_once = rows_at_once(engine.config)
    for begin, first, end in sizes.windows(len(ids)):
        session.rewind()
        length = end - begin
        if first - 1 > begin:  # known already: only their keys and values are needed
            session.feed(ids[begin : first - 1], rope_length=length)
        for token in range(first, end + 1, n_at_once):
            part = ids[token - 1 : min(token - 1 + n_at_once, end)]
            logits = session.feed(part, all_logits=True, rope_length=length)
            session.require_finite(logits)
            yield token, logits


def _log_softmax(logits: FloatArray) -> Doubles:  # [V] -> [V]
    """In float64: a long text adds up many of them, and a small divergence is their difference."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    result: Doubles = shifted - np.log(np.exp(shifted).sum())
    return result
