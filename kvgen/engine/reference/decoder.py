"""The reference engine: every model that kvgen runs, as one screen of NumPy per block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from kvgen.choices import CacheDTypeName, DTypeName, PrefillName
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.calibration import Calibration, median_seconds
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import KVCache, check_request
from kvgen.engine.edits import Edit, edited_output, edited_weights
from kvgen.engine.formula import causal_mask, soft_cap
from kvgen.engine.machine import usable_cores
from kvgen.engine.memory import require_memory
from kvgen.engine.params import Norm, Params
from kvgen.engine.reference.block import normalise, widened, widened_block
from kvgen.engine.reference.ops import attend, linear, rotate
from kvgen.engine.rope import RopeTables
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Recorder, Start
from kvgen.forks import wait_before_fork

# The number of BLAS threads is the process's, so forwards take turns; and BLAS never comes back
# from a product during which another thread forks.
_BLAS = threading.RLock()
wait_before_fork(_BLAS)


CHUNK = 192  # positions at a time where many are to be run: bounds the memory of the scores


@runtime_checkable
class RowCache(KVCache, Protocol):
    """What the reference engine asks of a cache: see `KeyValueCache`, the usual one."""

    @property
    def rope(self) -> RopeTables: ...
    def prepare(self, n_new: int, *, rope_length: int | None = None) -> list[int]: ...
    def extend(self, ids: Sequence[int]) -> None: ...
    def write(self, layer: int, k: FloatArray, v: FloatArray) -> None: ...
    def read_keys(self, layer: int, mask: npt.NDArray[np.bool_]) -> FloatArray: ...
    def read_values(self, layer: int, mask: npt.NDArray[np.bool_]) -> FloatArray: ...
    @property
    def keeps_queries(self) -> bool: ...
    def write_queries(self, layer: int, q: FloatArray) -> None: ...
    def read_queries(self, layer: int, positions: range) -> FloatArray: ...


class ReferenceEngine:
    """Plain NumPy. Weights stored narrower are widened once, when the engine is opened."""

    backend: Literal["numpy"] = "numpy"
    compile_seconds = 0.0

    def __init__(
        self,
        params: Params,
        *,
        threads: int | None = None,
        cache_dtype: CacheDTypeName = "f32",
        prefill: PrefillName = "exact",
    ) -> None:
        assert prefill != "fast"
        self.cache_dtype: CacheDTypeName = cache_dtype
        self.prefill: PrefillName = prefill
        self.config: ModelConfig = params.config
        self.dtype: DTypeName = params.dtype
        self._blas = ThreadpoolController().select(user_api="blas")
        in_pool = max((pool["num_threads"] for pool in self._blas.info()), default=1)
        self.threads = threads or min(in_pool, usable_cores())
        self._params = params
        if params.dtype != "f32":
            advice = "the numpy backend widens weights: take --backend numba or a smaller model"
            require_memory(advice, **{"weights as f32": self.weight_bytes})
        self._blocks = [widened_block(params.config, layer) for layer in params.layers]
        self._head = widened(params.head)

    @property
    def passes_by_threads(self) -> Mapping[int, int]:
        """Not counted: BLAS decides for each product."""
        return {}

    @property
    def weight_bytes(self) -> int:
        """As float32, whatever the checkpoint has."""
        return 4 * (self.config.n_layers * self.config.layer_weights + self.config.head_weights)

    def calibrate(self) -> Calibration:
        """Measure NumPy's products; see `Engine.calibrate`."""
        config, T = self.config, 192
        C, H, G, D = config.d_model, config.n_heads, config.n_kv_heads, config.head_dim
        weight = np.ones((max(576, min(self.weight_bytes, 2**27) // (4 * C)), C), np.float32)
        x, tokens = np.ones((1, C), np.float32), np.ones((T, C), np.float32)
        q, kv = np.ones((T, H, D), np.float32), np.ones((G, 2 * T, D), np.float32)
        mask = causal_mask(T, 2 * T)
        with _BLAS, self._blas.limit(limits=self.threads):
            read_seconds = median_seconds(lambda: x @ weight.T)
            multiply_seconds = median_seconds(lambda: tokens @ weight[:576].T)
            attend_seconds = median_seconds(lambda: attend(q, kv, kv, 1.0, mask))
        return Calibration(
            read_bytes_per_second=weight.nbytes / read_seconds,
            flops_per_second=2 * T * 576 * C / multiply_seconds,
            attention_flops_per_second=4 * H * D * int(mask.sum()) / attend_seconds,
        )

    def new_cache(self, capacity: int, *, queries: bool = False) -> KeyValueCache:
        """An empty cache for `capacity` positions; see `Engine.new_cache`."""
        return KeyValueCache(self.config, capacity, dtype=self.cache_dtype, queries=queries)

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
        edit: Edit | None = None,
    ) -> FloatArray:  # T ids -> logits [V] or [T, V]
        """Run T new positions through the model; see `kvgen.engine.contract.Engine.forward`.

        `edit` changes attention, for a whole sequence at once: an edited row may need what comes
        later, which a cache does not know yet.
        """
        assert edit is None or cache.length == 0
        assert isinstance(cache, RowCache)
        check_request(self.config, ids, cache, start)
        longest = min(chunk or (1 if self.prefill == "stepwise" else CHUNK), CHUNK)
        # A model that has lost its way may overflow: the caller checks the logits.
        with _BLAS, self._blas.limit(limits=self.threads), np.errstate(all="ignore"):
            for part in _chunks(cache.prepare(len(ids), rope_length=rope_length), longest):
                self._run(part, cache, capture)
            logits = []
            for part in _chunks(ids, longest) if edit is None else [ids]:
                x = self._run(part, cache, capture, start=start, edit=edit)
                start = start and start.rows_from(len(part))
                if all_logits:
                    logits.append(self._logits(x))
                if on_progress is not None:
                    on_progress(len(part))
            return np.concatenate(logits) if all_logits else self._logits(x[-1:])[0]

    def _logits(self, x: FloatArray) -> FloatArray:  # [T, C] -> [T, V]
        """The final norm and the head."""
        x = normalise(self.config, x, self._params.final_norm)
        logits = linear(x, self._head) * np.float32(self.config.logit_scale)
        return soft_cap(logits, self.config.logit_softcap)

    def _run(
        self,
        ids: Sequence[int],
        cache: RowCache,
        capture: Recorder | None,
        *,
        start: Start | None = None,
        edit: Edit | None = None,
    ) -> FloatArray:  # [T] -> [T, C]
        """Append positions to the cache: the states after the last layer."""
        first = 0 if start is None else start.layer
        x = self._embed(ids, cache.length) if start is None else start.states[: len(ids)]
        for layer in range(first, self.config.n_layers):
            if capture is not None:
                capture.write_states(layer, cache.length, x)
            block = self._blocks[layer]
            z = self._attention(block.attention_input(x), layer, cache, capture, edit)
            x = block.output(x, block.attention_output(z))
        if capture is not None:
            capture.write_states(self.config.n_layers, cache.length, x)
        cache.extend(ids)
        return x

    def _embed(self, ids: Sequence[int], start: int) -> FloatArray:  # [T] -> [T, C]
        x = self._params.embedded(ids)
        if self._params.positions is not None:
            x = x + self._params.positions.rows(np.arange(start, start + len(ids)))
        return x

    def _attention(
        self,
        x: FloatArray,
        layer: int,
        cache: RowCache,
        capture: Recorder | None,
        edit: Edit | None,
    ) -> FloatArray:  # [T, C] -> [T, H, D]
        """What the heads of a layer gather for new positions, whose K and V join the cache."""
        T, H, G, D = len(x), self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        weights = self._blocks[layer]
        start, end = cache.length, cache.length + T
        q = self._norm_heads(linear(x, weights.q), weights.q_norm).reshape(T, H, D)
        k = self._norm_heads(linear(x, weights.k), weights.k_norm).reshape(T, G, D)
        v = linear(x, weights.v).reshape(T, G, D)
        table = cache.rope.of_layer[layer]
        if table >= 0:
            cos, sin = cache.rope.cos[table, start:end], cache.rope.sin[table, start:end]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # K and V of these positions are kept for every later step; q is used here and dropped.
        cache.write(layer, k, v)
        if cache.keeps_queries:  # to show that it changes nothing
            cache.write_queries(layer, q)
            q = cache.read_queries(layer, range(start, end))
        z = self._attend(layer, q, k, v, cache, edit)
        if capture is not None:
            capture.write(layer, start, q, z)
        return z

    def _attend(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        cache: RowCache,
        edit: Edit | None,
    ) -> FloatArray:  # q [T, H, D], k and v [T, G, D] -> [T, H, D]
        """What each query gathers from the cache; from these very rows where there is an edit."""
        config, T = self.config, len(q)
        scale, window, softcap = (
            config.attn_scales[layer],
            config.window(layer),
            config.attn_softcap,
        )
        if edit is not None:
            weights = edited_weights(edit, layer, q, k, scale=scale, window=window, softcap=softcap)
            return edited_output(edit, layer, weights, v)
        mask = causal_mask(T, cache.length + T, window)
        keys, values = cache.read_keys(layer, mask), cache.read_values(layer, mask)
        return attend(q, keys, values, scale, mask, softcap=softcap)

    def _norm_heads(self, x: FloatArray, norm: Norm | None) -> FloatArray:  # [T, H * D] -> same
        """Queries or keys normalised: each head by itself, or the whole projection."""
        if norm is None or self.config.qk_norm == "whole":
            return normalise(self.config, x, norm)
        heads = x.reshape(len(x), -1, self.config.head_dim)
        bias = None if norm.bias is None else norm.bias.reshape(heads.shape[1:])
        per_head = Norm(norm.weight.reshape(heads.shape[1:]), bias)
        return normalise(self.config, heads, per_head).reshape(x.shape)


def _chunks(ids: Sequence[int], longest: int) -> Iterator[Sequence[int]]:
    return (ids[begin : begin + longest] for begin in range(0, len(ids), longest))
