"""Token ids in, one `Step` per new token out; knows no text.

Without the cache nothing else changes: it is cleared before every step, and everything so far is
fed again. `Step.positions` counts what that costs: P, 1, 1, ... against P, P+1, P+2, ... Where
rotary frequencies change with the length (`kvgen.engine.rope`), a cached step runs P+i positions
too.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvgen.engine.config import ModelConfig
from kvgen.engine.tensors import FloatArray
from kvgen.errors import UsageError
from kvgen.sampling import likeliest_tokens, log_probability
from kvgen.session import Session

MOST_NEW_TOKENS = 128  # of a run whose length nobody says
MOST_CONSTRAINED_TOKENS = 1024  # and whose text has to match a constraint


@dataclass(frozen=True, slots=True)
class Step:
    """One new token and what it took."""

    token: int
    logprob: float  # natural logarithm, before any sampling filter
    seconds: float  # the forward passes and the choice of the token
    positions: int  # positions run through the model for it, those run again included
    top: tuple[tuple[int, float], ...] = ()  # the likeliest ids, each with its log-probability
    ends: bool = False  # it is a stop id, or nothing can follow it
    whole: bool | None = None  # the text so far matches its constraint; None: there is none
    closed_early: bool = False  # a token was taken for the text to be whole in time
    constraint_seconds: float = 0.0  # of `seconds`, the part for the constraint
    is_stop: bool = False  # it is a stop id


class ChooseToken(Protocol):
    """What `generate` asks of a sampler: logits [V] and the ids so far to a token id."""

    def __call__(self, logits: FloatArray, history: Sequence[int]) -> int: ...


class Restriction(Protocol):
    """What `generate` asks of a constraint: see `kvgen.text.constraint.ConstraintRun`."""

    seconds: float  # taken so far
    complete: bool  # nothing can follow
    whole: bool  # the text so far matches
    closed_early: bool  # a token was taken for it to match in time

    def mask(self, logits: FloatArray) -> FloatArray: ...

    def take(self, token: int, n_left: int) -> int: ...


def positions_fed(n_prompt: int, max_new_tokens: int) -> int:
    """Positions of a whole run: the first new token comes out of the prefill, the last is not fed.

    >>> positions_fed(8191, 2)
    8192
    """
    return n_prompt + max(max_new_tokens - 1, 0)


def usual_new_tokens(config: ModelConfig, n_prompt: int, *, constrained: bool = False) -> int:
    """How many new tokens a run makes at most where nobody says: as many as fit, up to 128.

    Up to 1024 with a constraint, whose text is of no use before it is whole.
    """
    most = MOST_CONSTRAINED_TOKENS if constrained else MOST_NEW_TOKENS
    return max(0, min(most, config.max_context - n_prompt + 1))


def check_lengths(config: ModelConfig, n_prompt: int, max_new_tokens: int) -> None:
    """Raise UsageError where the prompt is empty or the whole run exceeds the context."""
    if n_prompt < 1:
        raise UsageError("the prompt is empty, and this model's tokenizer adds no start token")
    # Callers of the library may pass anything.
    whole = isinstance(max_new_tokens, int) and not isinstance(max_new_tokens, bool)
    if not whole or max_new_tokens < 0:
        raise UsageError(f"cannot generate {max_new_tokens!r} tokens")
    if positions_fed(n_prompt, max_new_tokens) > config.max_context:
        room = config.max_context - n_prompt + 1
        tokens = "token fits" if room == 1 else "tokens fit"
        advice = f"at most {room} new {tokens}" if room > 0 else "shorten the prompt"
        raise UsageError(
            f"{n_prompt} prompt tokens and {max_new_tokens} new ones exceed the context of "
            f"{config.max_context}: {advice}"
        )


def generate(
    session: Session,
    prompt_ids: Sequence[int],
    *,
    sampler: ChooseToken,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    reuse_cache: bool = True,
    n_likeliest: int = 0,
    constraint: Restriction | None = None,
) -> Iterator[Step]:
    """Continue the prompt token by token; a stop id is yielded and ends the run.

    The first step is the prefill, each later one a decode step; with `max_new_tokens` = 0 the
    prefill runs and nothing is yielded. `Step.top` holds the `n_likeliest` tokens. With a
    constraint the sampler chooses from what it allows, the run ends where nothing can follow, and
    before `max_new_tokens` the constraint may take another token than the sampler's;
    log-probabilities stay those of all tokens. The session is rewound first
    (`Session.rewind_to_prompt`), and left holding every position that was fed. Raises UsageError
    where the run would exceed the context and NonFiniteError where the model yields NaN or
    infinity.
    """
    check_lengths(session.engine.config, len(prompt_ids), max_new_tokens)
    ids = list(prompt_ids)
    if reuse_cache:
        session.rewind_to_prompt(ids)
    else:
        session.rewind()
    fed = ids[session.cache.length :]
    spent = 0.0  # seconds of the constraint, at earlier steps
    for step in range(max(max_new_tokens, 1)):
        began = time.perf_counter()
        if step and not reuse_cache:
            session.rewind()
        logits = session.feed(fed)
        session.require_finite(logits)
        if step == max_new_tokens:  # none was asked for
            return
        token = sampler(logits if constraint is None else constraint.mask(logits), ids)
        if constraint is not None:
            token = constraint.take(token, max_new_tokens - step - 1)
        ids.append(token)
        seconds = time.perf_counter() - began
        top = likeliest_tokens(logits, n_likeliest) if n_likeliest else ()
        is_stop = token in stop_ids
        ends = is_stop or (constraint is not None and constraint.complete)
        yield Step(
            token, log_probability(logits, token), seconds, session.positions_run, top, ends,
            None if constraint is None else constraint.whole,
            constraint is not None and constraint.closed_early,
            0.0 if constraint is None else constraint.seconds - spent,
            is_stop,
        )  # fmt: skip
        spent = 0.0 if constraint is None else constraint.seconds
        if ends:
            return
        fed = ids[-1:] if reuse_cache else ids
