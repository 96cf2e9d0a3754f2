"""FastEngine: lays out weights and memory for the compiled step and calls it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import Literal

import numba
import numpy as np

from kvgen.cache import DenseCache
from kvgen.config import Activation, ModelConfig
from kvgen.engine import KVCache, check_request
from kvgen.errors import KvgenError
from kvgen.fast import compiler, step
from kvgen.params import LayerParams, Linear, Norm, Params
from kvgen.tensors import Array, DTypeName, FloatArray, Tensor
from kvgen.trace import Capture

_ACTIVATIONS: dict[Activation, int] = {
    "relu": step.RELU,
    "silu": step.SILU,
    "gelu": step.GELU,
    "gelu_tanh": step.GELU_TANH,
}
# How the compiled code sees each width; 16-bit floats travel as integers of their own kind.
_SEEN_AS: dict[DTypeName, type] = {"f32": np.float32, "bf16": np.uint16, "f16": np.int16}
_UNINTERRUPTED = 32  # positions per compiled call: between calls Ctrl-C is heard


class FastEngine:
    """Compiled by Numba. Weights are used as they are stored, mapped from the file where possible.

    Opening the engine compiles the kernels, or loads them from an earlier run.
    """

    backend: Literal["numba"] = "numba"
    threads = 1

    def __init__(self, params: Params) -> None:
        self.config: ModelConfig = params.config
        self.dtype: DTypeName = params.dtype
        self._keep_alive = params  # the addresses point into its arrays
        self._shape = _shape(params)
        self._weights = _weights(params)
        self.compile_seconds = self._compile()

    def new_cache(self, capacity: int) -> DenseCache:
        """An empty cache for `capacity` positions."""
        return DenseCache(self.config, capacity)

    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        capture: Capture | None = None,
        all_logits: bool = False,
    ) -> FloatArray:  # T ids -> logits [V] or [T, V]
        """Run T new positions through the model; see `kvgen.engine.Engine.forward`."""
        assert isinstance(cache, DenseCache)
        check_request(self.config, ids, cache)
        T = len(ids)
        tokens = np.asarray(ids, np.int64)
        logits = np.empty((T if all_logits else 1, self.config.vocab_size), np.float32)
        memory = _memory(self.config, cache, capture)
        for begin in range(0, T, _UNINTERRUPTED):
            part = tokens[begin : begin + _UNINTERRUPTED]
            last = begin + len(part) == T
            rows = logits[begin : begin + len(part)] if all_logits else logits[: int(last)]
            step.run(
                part, cache.length + begin, self._shape, self._weights, memory, rows, len(rows)
            )
        cache.extend(T)
        return logits if all_logits else logits[0]

    def _compile(self) -> float:
        """Run no tokens at all, which compiles or loads everything; the seconds that it took."""
        if numba.config.DISABLE_JIT:
            raise KvgenError("NUMBA_DISABLE_JIT turns the compiler off: use --backend numpy")
        began = time.perf_counter()
        nothing = np.empty(0, np.int64)
        memory = _memory(self.config, self.new_cache(1), None)
        arguments = (self._shape, self._weights, memory, np.empty((0, 1), np.float32), 0)
        try:
            step.run(nothing, 0, *arguments)
        except Exception:
            # A kernel file cut short by a full disk or a killed process: start that folder afresh.
            if compiler.FOLDER is None:
                raise
            shutil.rmtree(compiler.FOLDER, ignore_errors=True)
            try:
                step.run(nothing, 0, *arguments)
            except OSError as error:
                raise KvgenError(
                    f"{compiler.FOLDER}: compiled kernels cannot be kept there: {error.strerror}; "
                    "set KVGEN_CACHE_DIR to another folder, or use --backend numpy"
                ) from None
        return time.perf_counter() - began


def _shape(params: Params) -> step.Shape:
    config, layer = params.config, params.layers[0]
    qk_norms = {None: step.NO_QK_NORM, "head": step.EACH_HEAD, "whole": step.WHOLE}
    return step.Shape(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        d_model=config.d_model,
        d_ff=config.d_ff,
        vocab_size=config.vocab_size,
        rms=config.norm == "rms",
        norm_eps=config.norm_eps,
        gated=config.mlp == "gated",
        activation=_ACTIVATIONS[config.activation],
        parallel=config.parallel_residual,
        pre_norm=layer.attn_norm is not None,
        post_attn_norm=layer.post_attn_norm is not None,
        mlp_norm=layer.mlp_norm is not None,
        post_mlp_norm=layer.post_mlp_norm is not None,
        qk_norm=qk_norms[config.qk_norm],
        attn_softcap=config.attn_softcap or 0.0,
        logit_softcap=config.logit_softcap or 0.0,
        embed_scale=config.embed_scale,
        residual_scale=config.residual_scale,
        logit_scale=config.logit_scale,
    )


def _weights(params: Params) -> step.Weights:
    config = params.config
    L, queries = config.n_layers, config.n_heads * config.head_dim
    norms = np.zeros((4 * L + 1, 2, config.d_model), np.float32)
    head_norms = np.zeros((L, 2, 2, queries), np.float32)
    biases = np.zeros((L, 7, max(queries, config.d_model, config.d_ff)), np.float32)
    addresses = np.zeros((L, 7), np.int64)
    for number, layer in enumerate(params.layers):
        _write_norm(norms[4 * number + step.ATTN_NORM], layer.attn_norm)
        _write_norm(norms[4 * number + step.POST_ATTN_NORM], layer.post_attn_norm)
        _write_norm(norms[4 * number + step.MLP_NORM], layer.mlp_norm)
        _write_norm(norms[4 * number + step.POST_MLP_NORM], layer.post_mlp_norm)
        _write_norm(head_norms[number, 0], layer.q_norm)
        _write_norm(head_norms[number, 1], layer.k_norm)
        for slot, linear in _slots(layer).items():
            addresses[number, slot] = _address(linear.weight)
            if linear.bias is not None:
                biases[number, slot, : len(linear.bias)] = linear.bias
    _write_norm(norms[-1], params.final_norm)
    head_bias = params.head.bias
    windows = [config.window(layer) or config.max_context for layer in range(L)]
    return step.Weights(
        like=np.empty(0, _SEEN_AS[params.dtype]),
        embed=_address(params.embed),
        positions=_address(params.positions) if params.positions is not None else 0,
        head=_address(params.head.weight),
        layers=addresses,
        norms=norms,
        head_norms=head_norms,
        biases=biases,
        head_bias=np.zeros(config.vocab_size, np.float32) if head_bias is None else head_bias,
        scales=np.array(config.attn_scales, np.float32),
        windows=np.array(windows, np.int64),
    )


def _slots(layer: LayerParams) -> dict[int, Linear]:
    slots = {
        step.Q: layer.q,
        step.K: layer.k,
        step.V: layer.v,
        step.O: layer.o,
        step.UP: layer.up,
        step.DOWN: layer.down,
    }
    return slots if layer.gate is None else {**slots, step.GATE: layer.gate}


def _address(tensor: Tensor) -> int:
    stored: Array = tensor.stored
    assert stored.flags.c_contiguous and stored.flags.aligned
    return int(stored.ctypes.data)


def _write_norm(row: FloatArray, norm: Norm | None) -> None:
    if norm is not None:
        row[0, : len(norm.weight)] = norm.weight
    if norm is not None and norm.bias is not None:
        row[1, : len(norm.bias)] = norm.bias


def _memory(config: ModelConfig, cache: DenseCache, capture: Capture | None) -> step.Memory:
    captured = np.full(config.n_layers, -1, np.int64)
    q = z = np.empty((0, 0, 0, 0), np.float32)
    if capture is not None:
        captured[list(capture.layers)] = range(len(capture.layers))
        q, z = capture.q, capture.z
    return step.Memory(cache.k, cache.v, *cache.rope, captured, q, z)
