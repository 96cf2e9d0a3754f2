"""The residual stream of a recorded run, and the head that makes logits of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kvgen.attention.record import RecordedRun
from kvgen.engine.contract import Engine
from kvgen.engine.finite import require_finite
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Start
from kvgen.errors import UsageError
from kvgen.session import Session, rows_at_once


def states_of(run: RecordedRun, what: str) -> FloatArray:
    """The states [L + 1, T, C] that a run has kept. Raises UsageError where it has none."""
    if run.states is None:
        raise UsageError(f"{what} needs the residual stream, which was not recorded: record it too")
    return run.states


class OutputHead:
    """An engine's final norm and head alone, without its layers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.n_at_once = min(rows_at_once(engine.config), engine.config.max_context)
        self._cache = engine.new_cache(self.n_at_once)

    def logits(self, states: FloatArray) -> FloatArray:
        """The logits [P, V] of up to `n_at_once` states [P, C], as if they left the last layer."""
        self._cache.clear()
        start = Start(self._engine.config.n_layers, np.ascontiguousarray(states, np.float32))
        logits = self._engine.forward([0] * len(states), self._cache, all_logits=True, start=start)
        require_finite(logits)
        return logits

    def parts(self, positions: Sequence[int]) -> Iterator[list[int]]:
        """The positions in parts whose logits are in memory together."""
        for begin in range(0, len(positions), self.n_at_once):
            yield list(positions[begin : begin + self.n_at_once])


def logits_of(
    engine: Engine, ids: Sequence[int], positions: Sequence[int]
) -> Iterator[tuple[list[int], FloatArray]]:
    """The logits of some positions of one full pass: some positions, and theirs [P, V], by turns.

    `positions` are ascending.
    """
    session = Session(engine, len(ids))
    first, last = positions[0], positions[-1]
    if first:
        session.feed(ids[:first], rope_length=len(ids))
    n_at_once = rows_at_once(engine.config)
    for begin in range(first, last + 1, n_at_once):
        part = range(begin, min(begin + n_at_once, last + 1))
        logits = session.feed(ids[part.start : part.stop], all_logits=True, rope_length=len(ids))
        wanted = [position for position in positions if position in part]
        if wanted:
            yield wanted, logits[[position - begin for position in wanted]]
