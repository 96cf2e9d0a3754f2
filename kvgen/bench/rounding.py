"""How far rounding alone may move logits: measured on the model and the ids at hand.

Two runs that take the same sums in another order differ by rounding. How much of it reaches the
logits depends on the model (its depth, its head size, how sharp its attention is) and on the text.
So it is measured: every kept number of K and V is moved by one part in 1,024, up or down at random
(in an int8 cache every whole number by one), and the logits of the following steps are compared
with those of an untouched run. That change, scaled to the size of the rounding that occurs, is what
rounding explains.

    float32: sums of n products in another order differ by about sqrt(n) 2^-24 of their size (a
             random walk), some sums of each layer one after another
    float16: where such a difference decides which way a key or value is rounded, the kept number
             differs by one place
    int8:    the same, and one place is a 127th of the row's greatest number: a few numbers that are
             rounded the other way change all layers behind them enough for many more
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvgen.choices import CacheDTypeName
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import Engine, KVCache
from kvgen.session import Session

# By how much of themselves kept numbers are moved: one or two places of a float16; in int8 at
# least this much, one of 127 places.
_PROBES: dict[CacheDTypeName, float] = {"f32": 2.0**-10, "f16": 2.0**-10, "int8": 1 / 127}
_ENOUGH = 64  # steps and draws whose greatest change no longer depends on luck
_FLOAT32 = 2.0**-24  # a float32 is rounded by at most so much of itself
# In units of what is said above. Over every tiny configuration of the tests, the default model and
# SmolLM2, in each dtype, on both engines, honest runs reach at most 0.6 of what these allow.
_SUMS = 4.0
_LAST_SUMS = 1.0  # of the largest logit: what no kept number takes part in
# Of the change by the probe, where some numbers are rounded the other way.
_DIFFERENT_PLACES: dict[CacheDTypeName, float] = {"f32": 0, "f16": 0.35, "int8": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """What rounding may do to the logits of one model on one text."""

    change_by_probe: float  # greatest change of a logit
    probe: float  # by what part of themselves kept numbers were moved
    longest_sum: int  # products of one number of a matrix product

    def allowed(self, largest_logit: float, cache_dtype: CacheDTypeName) -> float:
        """The greatest difference of a logit, over caches of that type, that rounding explains."""
        walk = math.sqrt(self.longest_sum) * _FLOAT32
        allowed = _SUMS * walk / self.probe * self.change_by_probe
        allowed += _LAST_SUMS * walk * largest_logit
        return allowed + _DIFFERENT_PLACES[cache_dtype] * self.change_by_probe


def n_sessions(n_steps: int) -> int:
    """How many runs `measure_rounding` makes: one untouched, the fewer steps the more others."""
    return 1 + min(4, -(-_ENOUGH // max(n_steps, 1)))


def measure_rounding(engine: Engine, ids: Sequence[int], *, n_before: int = 1) -> Rounding:
    """Decode the ids behind the first `n_before`, with kept numbers as they are and moved.

    All positions are turned with the rotary frequencies of the whole length.
    """
    sessions = [Session(engine, len(ids)) for _ in range(n_sessions(len(ids) - n_before))]
    random, change, fed = np.random.default_rng(0), 0.0, 0
    for end in range(n_before, len(ids) + 1):
        first, *others = (session.feed(ids[fed:end], rope_length=len(ids)) for session in sessions)
        change = max(change, *(float(np.abs(one - first).max()) for one in others))
        for session in sessions[1:]:
            _move(session.cache, fed, end, random)
        fed = end
    return Rounding(
        change_by_probe=change,
        probe=_PROBES[engine.cache_dtype],
        longest_sum=_longest_sum(engine.config),
    )


def _move(cache: KVCache, begin: int, end: int, random: np.random.Generator) -> None:
    """Change the kept numbers of positions `begin` to `end` - 1 as `_PROBES` says."""
    assert isinstance(cache, KeyValueCache)
    positions, block = np.arange(begin, end), cache.k.shape[-1]
    of_keys = (slice(None), slice(None), positions // block, slice(None), positions % block)
    of_values = (slice(None), slice(None), slice(begin, end))
    for numbers, place in ((cache.k, of_keys), (cache.v, of_values)):
        rows = numbers[place]
        signs = random.integers(0, 2, rows.shape, dtype=np.int8) * 2 - 1
        if rows.dtype == np.int8:
            numbers[place] = np.clip(rows + signs.astype(np.int16), -127, 127)
        else:
            numbers[place] = rows.astype(np.float32) * (1 + np.float32(_PROBES["f32"]) * signs)


def _longest_sum(config: ModelConfig) -> int:
    return max(config.d_model, config.d_ff, config.n_heads * config.head_dim)
