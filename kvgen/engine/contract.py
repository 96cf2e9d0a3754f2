"""The contract that both engines keep.

    forward(ids, cache) -> logits

appends the positions of `ids` to the cache and gives the logits of the last one. Prefill is
`forward` in chunks, a decode step is `forward` of one id, and "no cache" is a caller who clears
the cache and feeds everything again. Where RoPE's frequencies depend on the length of the sequence
(`kvgen.engine.rope`) and change, `forward` runs the kept ids again before the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Protocol

import numpy as np

from kvgen.choices import Backend, CacheDTypeName, DTypeName, PrefillName
from kvgen.engine.cache import RowsRead
from kvgen.engine.calibration import Calibration
from kvgen.engine.config import ModelConfig
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Recorder, Start
from kvgen.errors import UsageError


class KVCache(Protocol):
    """Keys (after RoPE) and values of every position so far, in memory reserved beforehand."""

    @property
    def length(self) -> int:
        """Positions held."""
        ...

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the positions held."""
        ...

    @property
    def ids(self) -> Sequence[int]:
        """The ids of the positions held."""
        ...

    @property
    def positions_run(self) -> int:
        """Positions run through the model for this cache so far: each counts every time."""
        ...

    @property
    def rows_read(self) -> RowsRead:
        """Rows of K, V and kept Q that attention has read so far."""
        ...

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        ...

    def clear(self) -> None:
        """Forget everything; the memory is kept."""
        ...

    def keys(self, layer: int) -> FloatArray:
        """The keys of a layer [S, G, D]."""
        ...

    def values(self, layer: int) -> FloatArray:
        """The values of a layer [S, G, D]."""
        ...


class Engine(Protocol):
    """A loaded model that turns token ids into logits."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def backend(self) -> Backend: ...
    @property
    def dtype(self) -> DTypeName:
        """The width in which weights are stored; arithmetic is float32 throughout."""
        ...

    @property
    def cache_dtype(self) -> CacheDTypeName:
        """The width in which keys and values are kept."""
        ...

    @property
    def prefill(self) -> PrefillName:
        """`fast` rounds activations in chunks of several tokens; a single token is always exact.

        `stepwise` runs one position at a time, unless `forward` is given another `chunk`.
        """
        ...

    @property
    def threads(self) -> int: ...
    @property
    def passes_by_threads(self) -> Mapping[int, int]:
        """How many passes so many threads have run; fewer than `threads` beside other programs."""
        ...

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling or loading kernels when the engine was opened."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices that every decode step reads once, as this engine holds them."""
        ...

    def calibrate(self) -> Calibration:
        """Measure this machine with this engine's kernels, type and number of weights.

        Medians; takes about half a second. What is compiled for it at the first call is not
        counted.
        """
        ...

    def new_cache(self, capacity: int, *, queries: bool = False) -> KVCache:
        """An empty cache for `capacity` positions, of K and V, with `queries` of Q as well.

        Out of such a cache attention takes its queries too: the same logits to the bit.
        """
        ...

    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        capture: Recorder | None = None,
        all_logits: bool = False,
        rope_length: int | None = None,
        chunk: int | None = None,
        on_progress: Callable[[int], None] | None = None,
        start: Start | None = None,
    ) -> FloatArray:
        """Run T new positions through the model, in chunks, and append them to the cache.

        Returns the last position's logits [V], or every new position's [T, V] with `all_logits`.
        Where RoPE's frequencies depend on the length of the sequence, they are those of the length
        after this pass, or of `rope_length` where that is longer: who feeds a text in parts gives
        the length of the whole. Kept ids whose keys have other frequencies are run again first; a
        pass that fails meanwhile leaves fewer of them in the cache, or none.
        At most `chunk` positions run at a time (None: what suits the engine). In chunks of one,
        every sum of a position is taken in the order of a decode step: its logits, keys and values
        have the same bits, whatever was fed together, on one engine with one number of threads.
        With `capture`, each captured layer's q and z of these positions are written into it; the
        compiled engine knows no other recorder than `kvgen.engine.trace.Capture`. `on_progress`
        hears of each chunk of the new positions, by their number.
        With `start` the positions begin in its layer with its states in place of their embeddings:
        keys and values of the layers before stay what they are in the cache's memory, which is
        right where the same ids ran there before. At layer L only the final norm and the head run.
        Raises UsageError for ids outside the vocabulary and for more positions than there is room.
        """
        ...


def check_request(
    config: ModelConfig, ids: Sequence[int], cache: KVCache, start: Start | None = None
) -> None:
    """Raise UsageError where `ids` cannot be appended to `cache`; every engine asks this first."""
    if start is not None:
        assert 0 <= start.layer <= config.n_layers
        assert start.states.shape == (len(ids), config.d_model)
        assert start.states.dtype == np.float32 and start.states.flags.c_contiguous
    if not len(ids):
        raise UsageError("there are no tokens to run through the model")
    check_ids(config, ids)
    if cache.length + len(ids) > cache.capacity:
        raise UsageError(
            f"{cache.length + len(ids)} positions do not fit into a cache of {cache.capacity}"
        )


def as_ids(config: ModelConfig, ids: Sequence[int]) -> list[int]:
    """Whole numbers of any kind as ids. Raises UsageError for anything else."""
    try:
        if isinstance(ids, (str, bytes)):
            raise TypeError
        numbers = [index(token) for token in ids]
    except TypeError:
        raise UsageError("token ids must be a sequence of whole numbers") from None
    check_ids(config, numbers)
    return numbers


def check_ids(config: ModelConfig, ids: Sequence[int]) -> None:
    """Raise UsageError where an id is outside the vocabulary."""
    wrong = next((token for token in ids if not 0 <= token < config.vocab_size), None)
    if wrong is not None:
        raise UsageError(f"token id {wrong} is outside the vocabulary 0-{config.vocab_size - 1}")
