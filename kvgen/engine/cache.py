"""KeyValueCache: keys and values of every position so far, in memory reserved at once.

On demand it keeps the queries as well, which no inference engine needs: to show just that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.choices import CacheDTypeName, RowKind
from kvgen.engine.config import ModelConfig
from kvgen.engine.kept_rows import KEPT_TYPES, as_floats, as_kept, beyond_float16
from kvgen.engine.memory import require_memory
from kvgen.engine.rope import length_dependent, rope_tables, same_frequencies_from
from kvgen.engine.tensors import Array, FloatArray, aligned_zeros
from kvgen.errors import KvgenError, UsageError


class RowsRead(NamedTuple):
    """Rows that attention has read in each layer, counted where they are read.

    A row counts once for every query head and position that reads it.
    """

    counts: npt.NDArray[np.int64]  # [L, 4] the columns that the properties name

    @property
    def k(self) -> npt.NDArray[np.int64]:
        return self.counts[:, 0]

    @property
    def v(self) -> npt.NDArray[np.int64]:
        return self.counts[:, 1]

    @property
    def q(self) -> npt.NDArray[np.int64]:
        """Queries out of a cache that keeps them; without one 0."""
        return self.counts[:, 2]

    @property
    def old_q(self) -> npt.NDArray[np.int64]:
        """Of these, queries of positions before the pass."""
        return self.counts[:, 3]


class Held(NamedTuple):
    """Kept queries that stay as they are while their positions run: attention reads those."""

    layer: int
    begin: int  # the first position
    end: int  # the position behind the last


class KeyValueCache:
    """Keys in blocks of positions [L, G, blocks, D, block], values row by row [L, G, S, pitch].

    A head's keys lie one block after another, so that attention reads them as one stream. Blocks of
    one position are plain rows, as the reference reads them; in blocks of many, neighbouring
    numbers are the same feature of neighbouring positions. With `queries` the cache keeps these as
    well, in float32 [L, H, S, D]: engines write a pass's queries into it and take them out of it
    again for attention, as they do with keys and values. In int8 (`kvgen.engine.kept_rows`) each
    row has a scale, in arrays [L, G, S] of their own, and keys are Hadamard-transformed.

    The cache also holds the ids of its positions and the tables of rotary positions: where these
    depend on the length of the sequence (`kvgen.engine.rope`), `prepare` gives the ids back, to be
    run again with the right ones.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        *,
        dtype: CacheDTypeName = "f32",
        block: int = 1,
        pitch: int | None = None,
        queries: bool = False,
    ) -> None:
        if not 0 < capacity <= config.max_context:
            raise UsageError(
                f"{capacity} positions do not fit into the context of {config.max_context}"
            )
        heads, D = (config.n_layers, config.n_kv_heads), config.head_dim
        n_blocks = -(-capacity // block)
        self._bytes_per_position = config.kv_bytes_per_position(dtype)
        if queries:
            self._bytes_per_position += 4 * config.n_layers * config.n_heads * D
        require_memory(
            "ask for fewer tokens or take a smaller model",
            KV_cache=self._bytes_per_position * capacity,
        )
        try:
            self.k: Array = aligned_zeros((*heads, n_blocks, D, block), KEPT_TYPES[dtype])
            self.v: Array = aligned_zeros((*heads, n_blocks * block, pitch or D), KEPT_TYPES[dtype])
            of_rows = (*heads, n_blocks * block)
            scales = (aligned_zeros(of_rows, np.float32) if dtype == "int8" else None for _ in "kv")
            self.k_scales, self.v_scales = scales
            of_queries = (config.n_layers, config.n_heads, n_blocks * block, D)
            self.q: FloatArray | None = aligned_zeros(of_queries, np.float32) if queries else None
        except MemoryError:
            gibibytes = self._bytes_per_position * capacity / 2**30
            raise KvgenError(
                f"no memory for a KV cache of {gibibytes:.1f} GiB: ask for fewer tokens"
            ) from None
        self._config = config
        self._capacity = capacity
        self._length_dependent = length_dependent(config)
        self._frequencies_from = 1  # see `same_frequencies_from`: of the kept keys
        self.rope = rope_tables(config, capacity, self._frequencies_from)
        self._ids: list[int] = []
        self._positions_run = 0
        self.rows_read = RowsRead(np.zeros((config.n_layers, 4), np.int64))
        self.held: Held | None = None

    @property
    def ids(self) -> Sequence[int]:
        return self._ids

    @property
    def length(self) -> int:
        return len(self._ids)

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return self.length * self._bytes_per_position

    @property
    def positions_run(self) -> int:
        return self._positions_run

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot cut a cache of {self.length} positions to {length}")
        del self._ids[length:]

    def clear(self) -> None:
        """Forget everything; the memory is kept."""
        self._ids = []

    def prepare(self, n_new: int, *, rope_length: int | None = None) -> list[int]:
        """Choose the rotary frequencies of a pass over `n_new` more positions, before it begins.

        They are those of the length after the pass, or of `rope_length` where that is longer.
        Where the kept keys were turned with others, the cache is cleared, and the ids that it held
        are returned: the engine must run them again in front of the new ones. Else there are none.
        """
        if not self._length_dependent:
            return []
        length = max(self.length + n_new, rope_length or 0)
        frequencies_from = same_frequencies_from(self._length_dependent, length)
        if frequencies_from == self._frequencies_from:
            return []
        self.rope = rope_tables(self._config, self._capacity, frequencies_from)
        self._frequencies_from = frequencies_from
        again = self._ids
        self.clear()
        return again

    def extend(self, ids: Sequence[int]) -> None:
        """Take in positions whose keys and values have just been written behind the last one."""
        self._ids.extend(ids)
        self._positions_run += len(ids)

    def keys(self, layer: int) -> FloatArray:
        """The keys of a layer [S, G, D]: a view of float32 rows, else a copy."""
        return as_floats("k", *self._stored("k", layer))

    def values(self, layer: int) -> FloatArray:
        """The values of a layer [S, G, D]: a view where they are kept as float32, else a copy."""
        return as_floats("v", *self._stored("v", layer))

    def stored_rows(self, layer: int) -> dict[str, Array]:
        """All rows of a layer as they are kept: `keys` and `values` [S, G, D], views if possible.

        In int8 also `key_scales` and `value_scales` [S, G].
        """
        of_keys = zip(("keys", "key_scales"), self._stored("k", layer), strict=False)
        of_values = zip(("values", "value_scales"), self._stored("v", layer), strict=False)
        return dict([*of_keys, *of_values])

    def _stored(self, kind: RowKind, layer: int) -> list[Array]:
        """The rows of K or V as they are kept [S, G, D], and in int8 their scales [S, G]."""
        S, blocks = self.length, self.k[layer]  # [G, blocks, D, block]
        G, _, D, _ = blocks.shape
        if kind == "k":
            rows = blocks.transpose(1, 3, 0, 2).reshape(-1, G, D)[:S]
        else:
            rows = self.v[layer, :, :S, :D].swapaxes(0, 1)
        scales = self.k_scales if kind == "k" else self.v_scales
        return [rows] if scales is None else [rows, scales[layer, :, :S].swapaxes(0, 1)]

    @property
    def frequencies_from(self) -> int:
        """The shortest length whose rotary frequencies the kept keys have.

        See `kvgen.engine.rope.same_frequencies_from`.
        """
        return self._frequencies_from

    def restore(
        self, ids: Sequence[int], layers: Iterable[Mapping[str, Array]], *, frequencies_from: int
    ) -> None:
        """Hold these positions instead: for each layer what `stored_rows` gave.

        Raises UsageError where the cache keeps queries, which nobody has.
        """
        if self.keeps_queries:
            raise UsageError("a cache that keeps queries cannot take in keys and values alone")
        assert len(ids) <= self.capacity
        self.clear()
        S, position, block = len(ids), np.arange(len(ids)), self.k.shape[4]
        for layer, stored in enumerate(layers):
            self.k[layer][:, position // block, :, position % block] = stored["keys"]
            self.v[layer, :, :S, : self.k.shape[3]] = stored["values"].swapaxes(0, 1)
            if self.k_scales is not None and self.v_scales is not None:
                self.k_scales[layer, :, :S] = stored["key_scales"].T
                self.v_scales[layer, :, :S] = stored["value_scales"].T
        if frequencies_from != self._frequencies_from:
            self.rope = rope_tables(self._config, self._capacity, frequencies_from)
            self._frequencies_from = frequencies_from
        self._ids = list(ids)

    def row(self, kind: RowKind, layer: int, position: int) -> FloatArray:
        """One kept row [G, D], of Q [H, D], in float32: a copy."""
        return as_floats(kind, *self._places(kind, layer, position)).copy()

    def replace_row(self, kind: RowKind, layer: int, position: int, row: FloatArray) -> None:
        """Keep another row [G, D], of Q [H, D], in place of this one.

        Raises NonFiniteError where it does not fit a cache of float16.
        """
        self._keep(kind, layer, position, row)

    def _keep(self, kind: RowKind, layer: int, position: int | slice, rows: FloatArray) -> None:
        places = self._places(kind, layer, position)
        with np.errstate(over="ignore"):
            for place, kept in zip(places, as_kept(kind, rows, int8=len(places) > 1), strict=True):
                place[:] = kept
        if places[0].dtype == np.float16 and np.isinf(places[0]).any():
            raise beyond_float16(layer)

    @contextmanager
    def with_row(self, kind: RowKind, layer: int, position: int, row: FloatArray) -> Iterator[None]:
        """Keep another row for a while; afterwards the one before is back, to the bit."""
        places = self._places(kind, layer, position)
        before = [place.copy() for place in places]
        try:
            self.replace_row(kind, layer, position, row)
            yield
        finally:
            for place, numbers in zip(places, before, strict=True):
                place[:] = numbers

    def _places(self, kind: RowKind, layer: int, position: int | slice) -> list[Array]:
        """Where the numbers of a row [G, D] are kept, and in int8 its scales [G]: views.

        Of several positions [G, T, D] and [G, T], where keys are plain rows.
        """
        if kind == "q":
            assert self.q is not None
            return [self.q[layer, :, position]]
        if kind == "k":
            block = self.k.shape[4]
            at = (position, 0) if isinstance(position, slice) else divmod(position, block)
            numbers = self.k[layer, :, at[0], :, at[1]]
        else:
            numbers = self.v[layer, :, position, : self.k.shape[3]]
        scales = self.k_scales if kind == "k" else self.v_scales
        return [numbers] if scales is None else [numbers, scales[layer, :, position]]

    def write(self, layer: int, k: FloatArray, v: FloatArray) -> None:
        """Put rows [T, G, D] of one layer behind the last position, which stays where it is.

        Raises NonFiniteError where they do not fit a cache of float16.
        """
        behind = slice(self.length, self.length + len(k))
        self._keep("k", layer, behind, k.swapaxes(0, 1))
        self._keep("v", layer, behind, v.swapaxes(0, 1))

    def read_keys(self, layer: int, mask: npt.NDArray[np.bool_]) -> FloatArray:
        """A layer's float32 keys [G, S, D] for queries that see them by a mask [T, S]; counted."""
        self.rows_read.k[layer] += self._config.n_heads * int(mask.sum())
        return as_floats("k", *self._places("k", layer, slice(mask.shape[1])))

    def read_values(self, layer: int, mask: npt.NDArray[np.bool_]) -> FloatArray:
        """The same of a layer's values."""
        self.rows_read.v[layer] += self._config.n_heads * int(mask.sum())
        return as_floats("v", *self._places("v", layer, slice(mask.shape[1])))

    @property
    def keeps_queries(self) -> bool:
        return self.q is not None

    def write_queries(self, layer: int, q: FloatArray) -> None:
        """Put queries [T, H, D] of one layer behind the last position, but for those held."""
        assert self.q is not None
        rows = np.arange(self.length, self.length + len(q))
        held = self.held
        if held is not None and held.layer == layer:
            rows = rows[(rows < held.begin) | (rows >= held.end)]
        self.q[layer][:, rows] = q[rows - self.length].swapaxes(0, 1)

    def read_queries(self, layer: int, positions: range) -> FloatArray:
        """The kept queries of some positions [T, H, D], a view; counted."""
        assert self.q is not None
        n_heads = self._config.n_heads
        self.rows_read.q[layer] += n_heads * len(positions)
        n_old = max(0, min(self.length, positions.stop) - positions.start)
        self.rows_read.old_q[layer] += n_heads * n_old
        return self.q[layer, :, positions.start : positions.stop].swapaxes(0, 1)
