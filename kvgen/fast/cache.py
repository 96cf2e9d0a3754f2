"""BlockedCache: the KV cache as the compiled attention likes to read it, in float32 or float16."""

from __future__ import annotations

import numpy as np

from kvgen.config import ModelConfig
from kvgen.errors import KvgenError, UsageError
from kvgen.fast.attention import BLOCK
from kvgen.fast.simd import LANES
from kvgen.rope import rope_tables
from kvgen.tensors import CACHE_ITEM_BYTES, Array, CacheDTypeName, FloatArray

_TYPES: dict[CacheDTypeName, type] = {"f32": np.float32, "f16": np.float16}


def row_pitch(head_dim: int) -> int:
    """The distance of rows of V: whole vectors."""
    return -(-head_dim // LANES) * LANES


class BlockedCache:
    """Keys in blocks of 64 positions [L, G, S/64, D, 64], values row by row [L, G, S, pitch].

    A vector of keys is the same feature of sixteen positions, so that scores need no sums across
    lanes. The cache also holds the tables of rotary positions, as `kvgen.cache.DenseCache` does.
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype: CacheDTypeName) -> None:
        if not 0 < capacity <= config.max_context:
            raise UsageError(
                f"{capacity} positions do not fit into the context of {config.max_context}"
            )
        self.dtype: CacheDTypeName = dtype
        self._head_dim = config.head_dim
        self.n_blocks = -(-capacity // BLOCK)
        item_bytes = CACHE_ITEM_BYTES[dtype]
        layers = (config.n_layers, config.n_kv_heads)
        try:
            self.k: Array = np.zeros(
                (*layers, self.n_blocks, config.head_dim, BLOCK), _TYPES[dtype]
            )
            self.v: Array = np.zeros(
                (*layers, self.n_blocks * BLOCK, row_pitch(config.head_dim)), _TYPES[dtype]
            )
        except MemoryError:
            gigabytes = item_bytes * config.kv_floats_per_token * capacity / 1e9
            raise KvgenError(f"no memory for a KV cache of {gigabytes:.1f} GB") from None
        self.rope = rope_tables(config, capacity)
        self._capacity = capacity
        self._bytes_per_position = item_bytes * config.kv_floats_per_token
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return self._length * self._bytes_per_position

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        if not 0 <= length <= self._length:
            raise UsageError(f"cannot cut a cache of {self._length} positions to {length}")
        self._length = length

    def clear(self) -> None:
        """Forget everything; the memory is kept."""
        self._length = 0

    def extend(self, n_positions: int) -> None:
        """Count positions whose keys and values have just been written behind the last one."""
        self._length += n_positions

    def keys(self, layer: int) -> FloatArray:
        """The keys of a layer [S, G, D], a copy."""
        blocks = self.k[layer]  # [G, blocks, D, 64]
        rows = blocks.transpose(1, 3, 0, 2).reshape(-1, blocks.shape[0], self._head_dim)
        return np.ascontiguousarray(rows[: self._length], np.float32)

    def values(self, layer: int) -> FloatArray:
        """The values of a layer [S, G, D], a copy."""
        rows = self.v[layer, :, : self._length, : self._head_dim].swapaxes(0, 1)
        return np.ascontiguousarray(rows, np.float32)
