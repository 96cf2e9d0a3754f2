"""Which rows of Q, K and V a run computes, and which it reads: counted where it happens.

A counting cache stands around the reference engine's own and keeps queries too: the engine writes
every row into it and takes every row that attention needs out of it again, Q as well as K and V.
With the cache a step computes one row of each, and reads all kept rows of K and V, but of Q the new
one alone. Without it a step computes and reads all rows of all three again.
`kvgen.bench.interventions` asks the harder question, which rows a step needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvgen.bench.cost import cost_of
from kvgen.choices import ArmName
from kvgen.engine.cache import KeyValueCache, RowsRead
from kvgen.engine.contract import Engine
from kvgen.engine.params import Params
from kvgen.engine.rope import RopeTables, length_dependent, positions_run_again
from kvgen.engine.tensors import FloatArray
from kvgen.session import Session

Counts = npt.NDArray[np.int64]
COUNTED_STEPS = 3  # row by row, by the reference engine
_WIDENED_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCount:
    """What one decode step did in one layer, in rows (positions).

    Rows that were computed in the same step are fresh; all others that were read are kept ones.
    """

    length: int  # positions before the step
    computed: int  # rows of Q, and as many of K and of V
    recomputed: int  # of these, rows that an earlier pass had computed already
    keys_read: int
    values_read: int
    queries_read: int
    kept_keys_read: int  # of the rows read, those that the step did not compute itself
    kept_values_read: int
    kept_queries_read: int
    pairs: Counts  # [L] reads of a row of K by a query, of one head
    max_abs_change: float  # greatest difference of a recomputed row of K or V to the old one


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The counts of some decode steps, and of the timed engine's own totals for all of them."""

    n_layers: int  # that the reference ran
    on: tuple[StepCount, ...]
    off: tuple[StepCount, ...]
    layer: int  # the layer that rows are told of: the first that sees everything, if any does
    reads_of_keys: Counts  # [S] how often each row of K was read with the cache
    reads_of_values: Counts  # [S] and each row of V
    reads_of_queries: Counts  # [S] and each row of Q
    recomputed: Counts  # [S] how often each row of Q, K and V was computed without it
    n_compared: int  # totals of K, of V and of kept Q per layer and step that the timed engine made
    n_different: int  # of these, such that differ from what shapes and the reference say

    @property
    def agrees(self) -> bool:
        return self.n_different == 0


class CountingCache:
    """A KeyValueCache with queries that counts the rows which the reference engine passes it."""

    def __init__(self, cache: KeyValueCache, n_layers: int) -> None:
        self._cache = cache
        shape = (n_layers, cache.capacity)
        self.computed: Counts = np.zeros(shape, np.int64)  # [L, S] rows of K, as many of V
        self.queries_computed: Counts = np.zeros(shape, np.int64)
        # [L, S] how often each row was read, by as many positions.
        self.keys_read: Counts = np.zeros(shape, np.int64)
        self.values_read: Counts = np.zeros(shape, np.int64)
        self.queries_read: Counts = np.zeros(shape, np.int64)
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
    def rows_read(self) -> RowsRead:
        return self._cache.rows_read

    @property
    def keeps_queries(self) -> bool:
        return self._cache.keeps_queries

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
        rows = range(self.length, self.length + len(k))
        for row, new_k, new_v in zip(rows, k, v, strict=True):
            if self.computed[layer, row]:
                change = np.abs(new_k - self._cache.row("k", layer, row)).max()
                change = max(change, np.abs(new_v - self._cache.row("v", layer, row)).max())
                self.max_abs_change = max(self.max_abs_change, float(change))
        self.computed[layer, rows.start : rows.stop] += 1
        self._cache.write(layer, k, v)

    def write_queries(self, layer: int, q: FloatArray) -> None:
        """Count the rows."""
        self.queries_computed[layer, self.length : self.length + len(q)] += 1
        self._cache.write_queries(layer, q)

    def read_keys(self, layer: int, mask: npt.NDArray[np.bool_]) -> FloatArray:
        """Count each row once for every query that sees it."""
        self.keys_read[layer, : mask.shape[1]] += mask.sum(axis=0)
        return self._cache.read_keys(layer, mask)

    def read_values(self, layer: int, mask: npt.NDArray[np.bool_]) -> FloatArray:
        """Count each row once for every query that sees it."""
        self.values_read[layer, : mask.shape[1]] += mask.sum(axis=0)
        return self._cache.read_values(layer, mask)

    def read_queries(self, layer: int, positions: range) -> FloatArray:
        """Count each row once."""
        self.queries_read[layer, positions.start : positions.stop] += 1
        return self._cache.read_queries(layer, positions)


def count_rows(
    engine: Engine,
    ids: Sequence[int],
    n_before: int,
    totals: Mapping[ArmName, Sequence[RowsRead]],
) -> Ledger:
    """Run some decode steps behind `n_before` of the ids with counting, with and without a cache.

    The engine is a reference engine. `totals` are what the timed engine read in each arm and decode
    step, of the same layers or of more.
    """
    config, n_steps = engine.config, min(COUNTED_STEPS, len(ids) - n_before)
    layer = next((x for x in range(config.n_layers) if config.window(x) is None), 0)
    counts = {}
    for arm in ("on", "off"):
        counting = _Counting(engine, n_before + n_steps, layer)
        counting.feed(ids[:n_before])
        counts[arm] = counting
        counting.steps = [
            counting.step(ids[: n_before + step + 1], keep=arm == "on") for step in range(n_steps)
        ]
    cost, different, compared = cost_of(engine), 0, 0
    n_heads, ropes = config.n_heads, length_dependent(config)
    for arm, of_steps in totals.items():
        counted = counts["off" if arm == "off" else "on"].steps
        for step, total in enumerate(of_steps):
            end = n_before + step + 1
            start = 0 if arm == "off" or positions_run_again(ropes, end - 1) else end - 1
            expected = np.array(
                [cost.visible_in(number, start, end - start) for number in range(config.n_layers)]
            )
            for of_layers in (total.k, total.v):
                different += int((of_layers[: len(expected)] != n_heads * expected).sum())
            different += int((total.old_q[: len(expected)] != 0).sum())
            compared += 3 * len(expected)
            if step < len(counted):
                different += int((counted[step].pairs != expected).sum())
    on, off = counts["on"].cache, counts["off"].cache
    return Ledger(
        n_layers=config.n_layers,
        on=tuple(counts["on"].steps),
        off=tuple(counts["off"].steps),
        layer=layer,
        reads_of_keys=on.keys_read[layer],
        reads_of_values=on.values_read[layer],
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
        own = engine.new_cache(capacity, queries=True)
        assert isinstance(own, KeyValueCache)
        self.cache = CountingCache(own, engine.config.n_layers)
        self._session = Session(engine, capacity, cache=self.cache)
        self.steps: list[StepCount] = []

    def feed(self, ids: Sequence[int]) -> None:
        """Run ids behind what the cache holds."""
        self._session.feed(ids)

    def step(self, ids: Sequence[int], *, keep: bool) -> StepCount:
        """Run the last of the ids, behind what is kept or with everything again."""
        cache, before, layer = self.cache, len(ids) - 1, self._layer
        every = (cache.keys_read, cache.values_read, cache.queries_read)
        earlier = [reads.copy() for reads in every]
        computed, changed = cache.queries_computed.copy(), cache.max_abs_change
        cache.max_abs_change = 0.0
        if not keep:
            cache.clear()
        self.feed(ids[before:] if keep else ids)
        fresh = (cache.queries_computed - computed)[layer]
        reads = [(now - then)[layer] > 0 for now, then in zip(every, earlier, strict=True)]
        keys, values, queries = (int(read.sum()) for read in reads)
        kept_keys, kept_values, kept_queries = (int((read & (fresh == 0)).sum()) for read in reads)
        change, cache.max_abs_change = cache.max_abs_change, max(cache.max_abs_change, changed)
        return StepCount(
            length=before,
            computed=int(fresh.sum()),
            recomputed=int(fresh[computed[layer] > 0].sum()),
            keys_read=keys,
            values_read=values,
            queries_read=queries,
            kept_keys_read=kept_keys,
            kept_values_read=kept_values,
            kept_queries_read=kept_queries,
            pairs=(cache.keys_read - earlier[0]).sum(axis=1),
            max_abs_change=change,
        )


def first_layers(params: Params) -> Params:
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
