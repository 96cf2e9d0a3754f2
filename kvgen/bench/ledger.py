"""Which rows of Q, K and V a run computes, keeps and reads again: counted, not assumed.

A counting cache stands around the reference engine's own and is asked for every row; a recorder in
the place of the capture sees every query. With the cache a step computes one row of Q, K and V,
keeps K and V and reads all rows of both; no later step asks for an old q. Without it a step also
needs the old queries: not for its own output, but to build again the hidden states of the old
positions, out of which the next layer's K and V are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvgen.bench.cost import cost_of
from kvgen.choices import ArmName
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.contract import Engine
from kvgen.engine.open import open_engine
from kvgen.engine.params import Params
from kvgen.engine.rope import RopeTables, length_dependent, positions_run_again
from kvgen.engine.tensors import FloatArray
from kvgen.session import Session

Counts = npt.NDArray[np.int64]
COUNTED_STEPS = 3  # row by row, by the reference engine
_WIDENED_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCount:
    """What one decode step did in one layer, in rows (positions)."""

    length: int  # positions before the step
    computed: int  # rows of Q, and as many of K and of V
    old_computed: int  # of these, rows that an earlier step had computed already
    keys_read: int  # rows of K that the step's queries attend to, and as many of V
    old_keys_read: int  # of these, rows that an earlier step had computed and the cache has kept
    old_queries_read: int  # rows of Q that an earlier step had computed and that were asked for
    pairs: Counts  # [L] queries times the keys that each of them sees
    max_abs_change: float  # greatest difference of a recomputed row of K or V to the old one


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The counts of some decode steps, and of the fast engine's own totals for all of them."""

    n_layers: int  # that the reference ran
    on: tuple[StepCount, ...]
    off: tuple[StepCount, ...]
    layer: int  # the layer that rows are told of: the first that sees everything, if any does
    reads_of_keys: Counts  # [S] how often each row of K was read with the cache, and of V
    reads_of_queries: Counts  # [S] and each row of Q
    recomputed: Counts  # [S] how often each row of Q, K and V was computed without it
    n_compared: int  # totals per layer and step that the timed engine wrote
    n_different: int  # of these, such that differ from what the reference counts

    @property
    def agrees(self) -> bool:
        return self.n_different == 0


class CountingCache:
    """A KeyValueCache that counts the rows which the reference engine writes and reads."""

    def __init__(self, cache: KeyValueCache, n_layers: int) -> None:
        self._cache = cache
        shape = (n_layers, cache.capacity)
        self.computed: Counts = np.zeros(shape, np.int64)  # [L, S] rows of K, as many of V
        self.computed_q: Counts = np.zeros(shape, np.int64)
        self.keys_read: Counts = np.zeros(shape, np.int64)  # by queries that see them
        self.queries_read: Counts = np.zeros(shape, np.int64)
        self.touched = np.zeros(shape, np.bool_)  # rows of K seen by any query since the last look
        self.max_abs_change = 0.0

    @property
    def length(self) -> int:
        return self._cache.length

    @property
    def capacity(self) -> int:
        return self._cache.capacity

    @property
    def rope(self) -> RopeTables:
        return self._cache.rope

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes

    @property
    def ids(self) -> Sequence[int]:
        return self._cache.ids

    @property
    def positions_run(self) -> int:
        return self._cache.positions_run

    @property
    def rows_read(self) -> Counts:
        return self._cache.rows_read

    def prepare(self, n_new: int, *, rope_length: int | None = None) -> list[int]:
        return self._cache.prepare(n_new, rope_length=rope_length)

    def extend(self, ids: Sequence[int]) -> None:
        self._cache.extend(ids)

    def truncate(self, length: int) -> None:
        self._cache.truncate(length)

    def keys(self, layer: int) -> FloatArray:
        return self._cache.keys(layer)

    def values(self, layer: int) -> FloatArray:
        return self._cache.values(layer)

    def clear(self) -> None:
        self._cache.clear()

    def write(self, layer: int, k: FloatArray, v: FloatArray) -> None:
        """Count the rows; those computed before are compared with what they were."""
        rows = slice(self.length, self.length + len(k))
        again = self.computed[layer, rows] > 0
        if again.any():
            mask = np.zeros((1, rows.stop), np.bool_)
            for new, old in zip((k, v), self._cache.read(layer, mask), strict=True):
                change = np.abs(new - old[:, rows].swapaxes(0, 1))[again].max()
                self.max_abs_change = max(self.max_abs_change, float(change))
        self.computed[layer, rows] += 1
        self._cache.write(layer, k, v)

    def read(self, layer: int, mask: npt.NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
        """Count each row once for every query that sees it."""
        self.keys_read[layer, : mask.shape[1]] += mask.sum(axis=0)
        self.touched[layer, : mask.shape[1]] |= mask.any(axis=0)
        return self._cache.read(layer, mask)


class QueryRecorder:
    """Stands where a capture of q and z stands: sees each query when it is made, and used."""

    def __init__(self, cache: CountingCache) -> None:
        self._cache = cache

    def write(self, layer: int, start: int, q: FloatArray, z: FloatArray) -> None:
        """A query is read by the step that computes it, whose output z is; it is not kept."""
        rows = slice(start, start + len(q))
        assert len(z) == len(q)
        self._cache.computed_q[layer, rows] += 1
        self._cache.queries_read[layer, rows] += 1


def count_rows(
    params: Params, ids: Sequence[int], n_before: int, totals: Mapping[ArmName, Sequence[Counts]]
) -> Ledger:
    """Run some decode steps behind `n_before` of the ids with counting, with and without a cache.

    `totals` are what the timed engine wrote: for each arm and decode step the pairs of queries and
    keys in each layer [L].
    """
    cut = _first_layers(params)
    engine = open_engine(cut, backend="numpy", threads=None)
    n_steps = min(COUNTED_STEPS, len(ids) - n_before)
    layer = next((x for x in range(cut.config.n_layers) if cut.config.window(x) is None), 0)
    counts = {}
    for arm in ("on", "off"):
        counting = _Counting(engine, n_before + n_steps, layer)
        counting.feed(ids[:n_before])
        counts[arm] = counting
        counting.steps = [
            counting.step(ids[: n_before + step + 1], keep=arm == "on") for step in range(n_steps)
        ]
    cost, different, compared = cost_of(engine), 0, 0
    ropes = length_dependent(params.config)
    for arm, of_steps in totals.items():
        counted = counts["off" if arm == "off" else "on"].steps
        for step, total in enumerate(of_steps):
            end = n_before + step + 1
            start = 0 if arm == "off" or positions_run_again(ropes, end - 1) else end - 1
            expected = np.array(
                [cost.visible_in(number, start, end - start) for number in range(len(cut.layers))]
            )
            different += int((total[: len(expected)] != expected).sum())
            compared += len(expected)
            if step < len(counted):
                different += int((counted[step].pairs != expected).sum())
    on, off = counts["on"].cache, counts["off"].cache
    return Ledger(
        n_layers=cut.config.n_layers,
        on=tuple(counts["on"].steps),
        off=tuple(counts["off"].steps),
        layer=layer,
        reads_of_keys=on.keys_read[layer],
        reads_of_queries=on.queries_read[layer],
        recomputed=off.computed[layer],
        n_compared=compared,
        n_different=different,
    )


class _Counting:
    """The reference engine with a counting cache, fed step by step."""

    def __init__(self, engine: Engine, capacity: int, layer: int) -> None:
        """`layer` is the one that steps are told of."""
        self._layer = layer
        own = engine.new_cache(capacity)
        assert isinstance(own, KeyValueCache)
        self.cache = CountingCache(own, engine.config.n_layers)
        recorder = QueryRecorder(self.cache)
        self._session = Session(engine, capacity, cache=self.cache, capture=recorder)
        self.steps: list[StepCount] = []

    def feed(self, ids: Sequence[int]) -> None:
        """Run ids behind what the cache holds."""
        self._session.feed(ids)

    def step(self, ids: Sequence[int], *, keep: bool) -> StepCount:
        """Run the last of the ids, behind what is kept or with everything again."""
        cache, before, layer = self.cache, len(ids) - 1, self._layer
        computed, pairs = cache.computed_q.copy(), cache.keys_read.sum(axis=1)
        queries, changed = cache.queries_read.copy(), cache.max_abs_change
        cache.max_abs_change, cache.touched[:] = 0.0, False
        if not keep:
            cache.clear()
        self.feed(ids[before:] if keep else ids)
        fresh = cache.computed_q - computed
        asked = cache.queries_read - queries - fresh  # beyond those that were just computed
        change, cache.max_abs_change = cache.max_abs_change, max(cache.max_abs_change, changed)
        old_computed = int(fresh[layer, :before].sum())
        return StepCount(
            length=before,
            computed=int(fresh[layer].sum()),
            old_computed=old_computed,
            keys_read=int(cache.touched[layer].sum()),
            old_keys_read=0 if old_computed else int(cache.touched[layer, :before].sum()),
            old_queries_read=int(asked[layer].sum()),
            pairs=cache.keys_read.sum(axis=1) - pairs,
            max_abs_change=change,
        )


def _first_layers(params: Params) -> Params:
    """The model, or as many of its first layers as the reference can widen in little memory."""
    config = params.config
    n_layers = max(1, min(config.n_layers, _WIDENED_BYTES // (4 * config.layer_weights)))
    if n_layers == config.n_layers:
        return params
    cut = replace(
        config,
        n_layers=n_layers,
        attn_scales=config.attn_scales[:n_layers],
        rope=config.rope[:n_layers],
        windows=config.windows[:n_layers],
    )
    return replace(params, config=cut, layers=params.layers[:n_layers])
