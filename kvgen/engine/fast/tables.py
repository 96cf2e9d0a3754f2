"""From configuration and weights to the tables and the memory of the compiled functions."""

from __future__ import annotations

import numpy as np

from kvgen.engine.config import Activation, ModelConfig
from kvgen.engine.fast import layout
from kvgen.engine.fast.kernels import elementwise
from kvgen.engine.fast.kernels.attention import SEGMENT, row_pitch
from kvgen.engine.fast.kernels.int8_dot import BYTES
from kvgen.engine.fast.kernels.packed import Packed
from kvgen.engine.fast.kernels.products import ROWS
from kvgen.engine.fast.kernels.simd import LANES
from kvgen.engine.fast.step import PIECES
from kvgen.engine.params import LayerParams, Linear, Norm, Params
from kvgen.engine.tensors import Array, CacheDTypeName, FloatArray, Int8, Tensor

_ACTIVATIONS: dict[Activation, int] = {
    "relu": elementwise.RELU,
    "silu": elementwise.SILU,
    "gelu": elementwise.GELU,
    "gelu_tanh": elementwise.GELU_TANH,
}
# How the compiled code sees each width; 16-bit floats travel as integers of their own kind.
SEEN_AS: dict[str, type] = {
    "f32": np.float32,
    "bf16": np.uint16,
    "f16": np.int16,
    "int8": np.int8,
}
STREAMED_BYTES = 12 * 2**20  # what lies beyond no longer stays in a cache from token to token


def shape_of(params: Params) -> layout.Shape:
    """The numbers and switches that the kernels read."""
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
        streamed=params.nbytes > STREAMED_BYTES,
    )


def weights_of(params: Params) -> layout.Weights:
    """Addresses of the large tensors, and the small ones widened; `params` must stay alive."""
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
        like=np.empty(0, SEEN_AS[params.dtype]),
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
        captured=np.full((L, config.n_heads), -1, np.int64),
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


def request_of(cache_dtype: CacheDTypeName) -> layout.Request:
    """A request for nothing."""
    tiles = np.zeros((layout.CHUNK, 2), np.int64)
    tiles[:, 0] = ROWS * np.arange(layout.CHUNK)
    return layout.Request(
        numbers=np.zeros(5, np.int64),
        tokens=np.zeros(layout.CHUNK, np.int64),
        positions=np.zeros(layout.CHUNK, np.int64),
        slots=np.zeros(layout.CHUNK, np.int64),
        tiles=tiles,
        caches=np.zeros((1, 11), np.int64),
        like=np.empty(0, SEEN_AS[cache_dtype]),
    )


def workspace_of(config: ModelConfig, threads: int, *, packed: bool) -> layout.Workspace:
    """Memory for the threads of a team; `packed` with room for a fast prefill."""
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
        own_reads=np.zeros((threads, max(config.n_layers, LANES)), np.int64),
        own_product=numbers(threads, ROWS * layout.CHUNK),
        packed=Packed(
            words=np.zeros((max(widest, F) + 1) // 2 * layout.CHUNK, np.uint32),
            steps=numbers(layout.CHUNK),
            offsets=numbers(layout.CHUNK),
        )
        if packed
        else None,
    )
