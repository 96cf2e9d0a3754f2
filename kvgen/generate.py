"""Token ids in, one `Step` per new token out; knows no text.

Without the cache nothing else changes: it is cleared before every step, and everything so far is
fed again. `Step.positions` counts what that costs: P, 1, 1, ... against P, P+1, P+2, ... Where
rotary frequencies change with the length (`kvgen.engine.rope`), a cached step runs P+i positions
too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import PREFILL_CHUNK, Engine, KVCache
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Recorder
from kvgen.errors import NonFiniteError, UsageError
from kvgen.sampling import log_probability


@dataclass(frozen=True, slots=True)
class Step:
    """One new token and what it took."""

    token: int
    logprob: float  # natural logarithm, before any sampling filter
    seconds: float  # the forward passes and the choice of the token
    positions: int  # positions run through the model for it, those run again included


class ChooseToken(Protocol):
    """What `generate` asks of a sampler: logits [V] and the ids so far to a token id."""

    def __call__(self, logits: FloatArray, history: Sequence[int]) -> int: ...


def check_lengths(config: ModelConfig, n_prompt: int, max_new_tokens: int) -> None:
    """Raise UsageError where the prompt is empty or the whole run exceeds the context."""
    if n_prompt < 1:
        raise UsageError("the prompt is empty, and this model's tokenizer adds no start token")
    if max_new_tokens < 0:
        raise UsageError(f"cannot generate {max_new_tokens} tokens")
    if n_prompt + max_new_tokens > config.max_context:
        room = config.max_context - n_prompt
        advice = f"at most {room} new tokens fit" if room >= 0 else "shorten the prompt"
        raise UsageError(
            f"{n_prompt} prompt tokens and {max_new_tokens} new ones exceed the context of "
            f"{config.max_context}: {advice}"
        )


def prefill(
    engine: Engine,
    ids: Sequence[int],
    cache: KVCache,
    *,
    capture: Recorder | None = None,
    on_progress: Callable[[int], None] | None = None,
    chunk: int = PREFILL_CHUNK,
) -> FloatArray:
    """Feed `ids` in chunks; the last one's logits [V]. `on_progress` gets each chunk's length.

    Raises NonFiniteError where the logits hold NaN or infinity.
    """
    logits = np.empty(0, np.float32)
    length = cache.length + len(ids)
    for begin in range(0, len(ids), chunk):
        part = ids[begin : begin + chunk]
        logits = engine.forward(part, cache, capture=capture, rope_length=length)
        if on_progress is not None:
            on_progress(len(part))
    require_finite(logits)
    return logits


def generate(
    engine: Engine,
    prompt_ids: Sequence[int],
    *,
    sampler: ChooseToken,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    reuse_cache: bool = True,
    cache: KVCache | None = None,
    capture: Recorder | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Step]:
    """Continue the prompt token by token; a stop id is yielded and ends the run.

    The first step is the prefill, each later one a decode step; with `max_new_tokens` = 0 the
    prefill runs and nothing is yielded. `cache` is cleared first and left holding every position
    that was fed. `on_progress` hears of the prefill. Raises UsageError where the run would exceed
    the context and NonFiniteError where the model yields NaN or infinity.
    """
    check_lengths(engine.config, len(prompt_ids), max_new_tokens)
    if cache is None:
        cache = engine.new_cache(len(prompt_ids) + max_new_tokens)
    cache.clear()
    ids = list(prompt_ids)
    began, run_before = time.perf_counter(), cache.positions_run
    logits = prefill(engine, ids, cache, capture=capture, on_progress=on_progress)
    for step in range(max_new_tokens):
        if step:
            fed = ids[-1:] if reuse_cache else ids
            if not reuse_cache:
                cache.clear()
            logits = prefill(engine, fed, cache, capture=capture)
        token = sampler(logits, ids)
        ids.append(token)
        now = time.perf_counter()
        positions = cache.positions_run - run_before
        yield Step(token, log_probability(logits, token), now - began, positions)
        if token in stop_ids:
            return
        began, run_before = time.perf_counter(), cache.positions_run


def require_finite(logits: FloatArray) -> None:
    """Raise NonFiniteError where logits hold NaN or infinity."""
    if not np.isfinite(logits).all():
        raise NonFiniteError(
            "the model's logits are not finite (NaN or infinity): "
            "its weights are damaged, or their stored type is too narrow (try --dtype f32)"
        )
