"""DenseCache: the KV cache as two plain arrays."""

from __future__ import annotations

import numpy as np

from kvgen.config import ModelConfig
from kvgen.errors import KvgenError, UsageError
from kvgen.rope import rope_tables
from kvgen.tensors import FloatArray


class DenseCache:
    """Keys and values of every layer, float32 [L, G, capacity, D], reserved at once.

    A head's keys lie one after another, so that attention reads them as one stream. The cache also
    holds the tables of rotary positions, which may depend on the length that it was planned for.
    """

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        if not 0 < capacity <= config.max_context:
            raise UsageError(
                f"{capacity} positions do not fit into the context of {config.max_context}"
            )
        shape = (config.n_layers, config.n_kv_heads, capacity, config.head_dim)
        try:
            self.k: FloatArray = np.zeros(shape, np.float32)
            self.v: FloatArray = np.zeros(shape, np.float32)
        except MemoryError:
            gigabytes = 4 * config.kv_floats_per_token * capacity / 1e9
            raise KvgenError(f"no memory for a KV cache of {gigabytes:.1f} GB") from None
        self.rope = rope_tables(config, capacity)
        self._bytes_per_position = 4 * config.kv_floats_per_token
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return int(self.k.shape[2])

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
        """The keys of a layer [S, G, D], a view."""
        return self.k[layer, :, : self._length].swapaxes(0, 1)

    def values(self, layer: int) -> FloatArray:
        """The values of a layer [S, G, D], a view."""
        return self.v[layer, :, : self._length].swapaxes(0, 1)
