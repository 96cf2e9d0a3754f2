"""FastEngine: lays out weights and memory for the compiled functions and sends a team into them."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from kvgen.cache import KeyValueCache
from kvgen.config import Activation, ModelConfig
from kvgen.engine import KVCache, check_request
from kvgen.errors import KvgenError, NonFiniteError, UsageError
from kvgen.fast import compiler, curves, layout, special
from kvgen.fast.attention import BLOCK, SEGMENT, row_pitch
from kvgen.fast.packed import Packed
from kvgen.fast.products import ROWS
from kvgen.fast.run import run
from kvgen.fast.simd import LANES
from kvgen.fast.step import PIECES
from kvgen.fast.team import Team
from kvgen.fast.whole_numbers import BYTES
from kvgen.params import LayerParams, Linear, Norm, Params
from kvgen.tensors import (
    Array,
    CacheDTypeName,
    DTypeName,
    FloatArray,
    Int8,
    PrefillName,
    Tensor,
)
from kvgen.trace import Capture

_ACTIVATIONS: dict[Activation, int] = {
    "relu": curves.RELU,
    "silu": curves.SILU,
    "gelu": curves.GELU,
    "gelu_tanh": curves.GELU_TANH,
}
# How the compiled code sees each width; 16-bit floats travel as integers of their own kind.
_SEEN_AS: dict[str, type] = {
    "f32": np.float32,
    "bf16": np.uint16,
    "f16": np.int16,
    "int8": np.int8,
}
_STREAMED_BYTES = 12 * 2**20  # what lies beyond no longer stays in a cache from token to token


class FastEngine:
    """Compiled by Numba. Weights are used as they are stored, mapped from the file where possible.

    Opening the engine compiles the kernels, or loads them from an earlier run.
    """

    backend: Literal["numba"] = "numba"

    def __init__(
        self,
        params: Params,
        *,
        threads: int,
        cache_dtype: CacheDTypeName,
        prefill: PrefillName = "exact",
    ) -> None:
        """Raises UsageError where these weights or this CPU have no fast prefill."""
        if prefill == "fast":
            _check_fast_prefill(params.dtype)
        self.config: ModelConfig = params.config
        self.dtype: DTypeName = params.dtype
        self.cache_dtype: CacheDTypeName = cache_dtype
        self.prefill: PrefillName = prefill
        self.threads = threads
        self._keep_alive = params  # the addresses point into its arrays
        self._weights = _weights(params)
        self._request = _request(cache_dtype)
        arguments = (
            _shape(params),
            self._weights,
            self._request,
            _workspace(params.config, threads, packed=prefill == "fast"),
        )
        self._team = Team(threads, run, arguments)
        self._lock = threading.Lock()  # calls from several threads queue
        self.compile_seconds = self._compile()

    def new_cache(self, capacity: int) -> KeyValueCache:
        """An empty cache for `capacity` positions."""
        return KeyValueCache(
            self.config,
            capacity,
            dtype=self.cache_dtype,
            block=BLOCK,
            pitch=row_pitch(self.config.head_dim),
        )

    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        capture: Capture | None = None,
        all_logits: bool = False,
    ) -> FloatArray:  # T ids -> logits [V] or [T, V]
        """Run T new positions through the model; see `kvgen.engine.Engine.forward`.

        Raises NonFiniteError where a key or value does not fit into a float16 cache.
        """
        assert isinstance(cache, KeyValueCache)
        check_request(self.config, ids, cache)
        T = len(ids)
        tokens = np.asarray(ids, np.int64)
        logits = np.empty((T if all_logits else 1, self.config.vocab_size), np.float32)
        with self._lock:
            self._point_to(cache, capture)
            for begin in range(0, T, layout.CHUNK):
                part = tokens[begin : begin + layout.CHUNK]
                last = begin + len(part) == T
                which = layout.ALL if all_logits else layout.LAST if last else layout.NONE
                rows = logits[begin if all_logits else 0 :]
                self._run(part, cache.length + begin, which, rows)
        cache.extend(T)
        return logits if all_logits else logits[0]

    def _point_to(self, cache: KeyValueCache, capture: Capture | None) -> None:
        """Tell the kernels where this cache and this capture lie."""
        row = self._request.caches[0]
        row[layout.KEYS] = cache.k.ctypes.data
        row[layout.VALUES] = cache.v.ctypes.data
        row[layout.CAPACITY] = cache.v.shape[2]
        places = [layout.N_TABLES, layout.N_POSITIONS, layout.N_ANGLES]
        row[places] = cache.rope.cos.shape
        row[layout.COS] = cache.rope.cos.ctypes.data
        row[layout.SIN] = cache.rope.sin.ctypes.data
        self._weights.tables[:] = cache.rope.of_layer
        self._weights.captured[:] = -1
        if capture is not None:
            self._weights.captured[list(capture.layers)] = range(len(capture.layers))
            row[layout.CAPTURED_Q] = capture.q.ctypes.data
            row[layout.CAPTURED_Z] = capture.z.ctypes.data
            row[layout.CAPTURE_CAPACITY] = capture.q.shape[1]

    def _run(
        self, tokens: npt.NDArray[np.int64], start: int, which: int, logits: FloatArray
    ) -> None:
        """One request: up to CHUNK tokens of one sequence from position `start` on."""
        request, T = self._request, len(tokens)
        numbers = request.numbers
        numbers[:] = 0
        numbers[layout.N_TOKENS] = T
        numbers[layout.N_TILES] = -(-T // ROWS)
        numbers[layout.WHICH_LOGITS] = which
        numbers[layout.LOGITS] = logits.ctypes.data
        request.tokens[:T] = tokens
        request.positions[:T] = np.arange(start, start + T)
        request.tiles[:, 1] = np.clip(T - request.tiles[:, 0], 0, ROWS)
        self._team.run()
        if numbers[layout.OVERFLOW]:
            raise NonFiniteError(
                f"layer {numbers[layout.OVERFLOW] - 1}: a key or value is beyond the range of a "
                "float16 cache: use --cache-dtype f32"
            )

    def _compile(self) -> float:
        """Run no tokens at all, which compiles or loads everything; the seconds that it took."""
        if numba.config.DISABLE_JIT:
            raise KvgenError("NUMBA_DISABLE_JIT turns the compiler off: use --backend numpy")
        began = time.perf_counter()
        for tries_left in (2, 1, 0):
            try:
                self._team.prepare()
                break
            except Exception as error:
                # A kernel file cut short by a full disk or a killed process: start that folder
                # afresh, and once more where another process has just done the same.
                if compiler.FOLDER is None or not (tries_left == 2 or isinstance(error, OSError)):
                    raise
                if isinstance(error, OSError) and not tries_left:
                    raise KvgenError(
                        f"{compiler.FOLDER}: compiled kernels cannot be kept there: "
                        f"{error.strerror}; set KVGEN_CACHE_DIR to another folder, or use "
                        "--backend numpy"
                    ) from None
                shutil.rmtree(compiler.FOLDER, ignore_errors=True)
        return time.perf_counter() - began


def _shape(params: Params) -> layout.Shape:
    config, layer = params.config, params.layers[0]
    qk_norms = {None: layout.NO_QK_NORM, "head": layout.EACH_HEAD, "whole": layout.WHOLE}
    return layout.Shape(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        pitch=row_pitch(config.head_dim),
        d_model=config.d_model,
        d_ff=config.d_ff,
        vocab_size=config.vocab_size,
        rms=config.norm == "rms",
        norm_eps=np.float32(config.norm_eps),
        gated=config.mlp == "gated",
        activation=_ACTIVATIONS[config.activation],
        parallel=config.parallel_residual,
        pre_norm=layer.attn_norm is not None,
        post_attn_norm=layer.post_attn_norm is not None,
        mlp_norm=layer.mlp_norm is not None,
        post_mlp_norm=layer.post_mlp_norm is not None,
        qk_norm=qk_norms[config.qk_norm],
        attn_softcap=np.float32(config.attn_softcap or 0),
        logit_softcap=np.float32(config.logit_softcap or 0),
        embed_scale=np.float32(config.embed_scale),
        residual_scale=np.float32(config.residual_scale),
        logit_scale=np.float32(config.logit_scale),
        streamed=params.nbytes > _STREAMED_BYTES,
    )


def _weights(params: Params) -> layout.Weights:
    config = params.config
    L, queries = config.n_layers, config.n_heads * config.head_dim
    norms = np.zeros((4 * L + 1, 2, config.d_model), np.float32)
    head_norms = np.zeros((L, 2, 2, queries), np.float32)
    biases = np.zeros((L, 7, max(queries, config.d_model, config.d_ff)), np.float32)
    addresses = np.zeros((L, 7, 2), np.int64)
    for number, layer in enumerate(params.layers):
        _write_norm(norms[4 * number + layout.ATTN_NORM], layer.attn_norm)
        _write_norm(norms[4 * number + layout.POST_ATTN_NORM], layer.post_attn_norm)
        _write_norm(norms[4 * number + layout.MLP_NORM], layer.mlp_norm)
        _write_norm(norms[4 * number + layout.POST_MLP_NORM], layer.post_mlp_norm)
        _write_norm(head_norms[number, 0], layer.q_norm)
        _write_norm(head_norms[number, 1], layer.k_norm)
        for slot, linear in _slots(layer).items():
            addresses[number, slot] = _addresses(linear.weight)
            if linear.bias is not None:
                biases[number, slot, : len(linear.bias)] = linear.bias
    _write_norm(norms[-1], params.final_norm)
    positions = params.positions
    windows = [config.window(layer) or config.max_context for layer in range(L)]
    return layout.Weights(
        like=np.empty(0, _SEEN_AS[params.dtype]),
        embed=np.array(_addresses(params.embed), np.int64),
        positions=_own(None if positions is None else positions.dequantize(), 0, 0),
        head=np.array(_addresses(params.head.weight), np.int64),
        layers=addresses,
        norms=norms,
        head_norms=head_norms,
        biases=biases,
        head_bias=_own(params.head.bias, config.vocab_size),
        scales=np.array(config.attn_scales, np.float32),
        windows=np.array(windows, np.int64),
        tables=np.full(L, -1, np.int64),
        captured=np.full(L, -1, np.int64),
    )


def _slots(layer: LayerParams) -> dict[int, Linear]:
    slots = {
        layout.Q: layer.q,
        layout.K: layer.k,
        layout.V: layer.v,
        layout.O: layer.o,
        layout.UP: layer.up,
        layout.DOWN: layer.down,
    }
    return slots if layer.gate is None else {**slots, layout.GATE: layer.gate}


def _addresses(tensor: Tensor) -> tuple[int, int]:
    """Where a matrix lies, and the scales of its rows if it has any."""
    stored: Array = tensor.stored
    assert stored.flags.c_contiguous and stored.flags.aligned
    scales = tensor.scales.ctypes.data if isinstance(tensor, Int8) else 0
    return int(stored.ctypes.data), int(scales)


def _own(numbers: FloatArray | None, *shape: int) -> FloatArray:
    """A copy, or zeros: what may not be written to is another type, and so another compilation."""
    return np.zeros(shape, np.float32) if numbers is None else numbers.copy()


def _write_norm(row: FloatArray, norm: Norm | None) -> None:
    if norm is not None:
        row[0, : len(norm.weight)] = norm.weight
    if norm is not None and norm.bias is not None:
        row[1, : len(norm.bias)] = norm.bias


def _request(cache_dtype: CacheDTypeName) -> layout.Request:
    tiles = np.zeros((layout.CHUNK, 2), np.int64)
    tiles[:, 0] = ROWS * np.arange(layout.CHUNK)
    return layout.Request(
        numbers=np.zeros(5, np.int64),
        tokens=np.zeros(layout.CHUNK, np.int64),
        positions=np.zeros(layout.CHUNK, np.int64),
        slots=np.zeros(layout.CHUNK, np.int64),
        tiles=tiles,
        caches=np.zeros((1, 11), np.int64),
        like=np.empty(0, _SEEN_AS[cache_dtype]),
    )


def _check_fast_prefill(dtype: DTypeName) -> None:
    if dtype not in ("bf16", "int8"):
        raise UsageError(f"fast prefill is for bf16 and int8 weights, and these are {dtype}")
    if not (special.MULTIPLIES_PAIRS if dtype == "bf16" else special.MULTIPLIES_BYTES):
        raise UsageError(f"this CPU has no instruction for a fast prefill of {dtype} weights")


def _workspace(config: ModelConfig, threads: int, *, packed: bool) -> layout.Workspace:
    H, G, D = config.n_heads, config.n_kv_heads, config.head_dim
    C, F = config.d_model, config.d_ff
    widest = max(C, H * D)

    def numbers(*shape: int) -> FloatArray:
        """Zeros that end in whole vectors, and a cache line apart from other rows."""
        return np.zeros((*shape[:-1], -(-shape[-1] // LANES) * LANES + LANES), np.float32)

    return layout.Workspace(
        x=numbers(C * layout.CHUNK),
        hidden=numbers(widest * layout.CHUNK),
        qkv=numbers((H + 2 * G) * D * layout.CHUNK),
        turns=numbers(len(set(config.rope)) * D * layout.CHUNK),
        branch=numbers(C * layout.CHUNK),
        inner=numbers(max(F * layout.CHUNK, 2 * F + 2 * LANES)),
        parts=numbers(H * PIECES * row_pitch(D)),
        peaks=numbers(H * PIECES),
        totals=numbers(H * PIECES),
        own_x=numbers(threads, C),
        own_added=numbers(threads, C),
        own_hidden=numbers(threads, widest),
        own_q=numbers(threads, ROWS * D),
        own_scores=numbers(threads, ROWS * SEGMENT),
        own_out=numbers(threads, ROWS * row_pitch(D)),
        own_peaks=numbers(threads, ROWS),
        own_totals=numbers(threads, ROWS),
        own_firsts=np.zeros((threads, LANES), np.int64),
        own_ends=np.zeros((threads, LANES), np.int64),
        own_bytes=np.zeros((threads, 3 * -(-max(widest, F) // BYTES) * BYTES), np.int8),
        own_panel=numbers(threads, ROWS * max(widest, F)),
        own_product=numbers(threads, ROWS * layout.CHUNK),
        packed=Packed(
            words=np.zeros((max(widest, F) + 1) // 2 * layout.CHUNK, np.uint32),
            steps=numbers(layout.CHUNK),
            offsets=numbers(layout.CHUNK),
        )
        if packed
        else None,
    )
