"""Builds the records of layout.py from a configuration and its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvgen.choices import CacheDTypeName
from kvgen.engine.config import Activation, ModelConfig
from kvgen.engine.fast import layout
from kvgen.engine.fast.layout import CHUNK, LANES, LINE_BYTES, PIECES, ROWS, SEGMENT, row_pitch
from kvgen.engine.machine import last_level_cache_bytes
from kvgen.engine.params import LayerParams, Linear, Norm, Params
from kvgen.engine.tensors import Array, FloatArray, Int8, Tensor, aligned_zeros

Words = npt.NDArray[np.uint32]
_ACTIVATIONS: dict[Activation, layout.Activation] = {
    "relu": layout.Activation.RELU,
    "silu": layout.Activation.SILU,
    "gelu": layout.Activation.GELU,
    "gelu_tanh": layout.Activation.GELU_TANH,
}
# The type of a stored number in compiled code: 16-bit floats are integers of different kinds.
KERNEL_TYPES: dict[str, type] = {
    "f32": np.float32,
    "bf16": np.uint16,
    "f16": np.int16,
    "int8": np.int8,
}
# More weights than this do not stay in the CPU between tokens.
STREAMED_BYTES = last_level_cache_bytes() or 12 * 2**20


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
        activation=_ACTIVATIONS[config.activation].value,
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
    norms = np.zeros((layout.N_NORMS * L + 1, 2, config.d_model), np.float32)
    head_norms = np.zeros((L, 2, 2, queries), np.float32)
    biases = np.zeros((L, layout.N_MATRICES, max(queries, config.d_model, config.d_ff)), np.float32)
    addresses = np.zeros((L, layout.N_MATRICES, 2), np.int64)
    for number, layer in enumerate(params.layers):
        own_norms = norms[layout.N_NORMS * number :]
        _write_norm(own_norms[layout.ATTN_NORM], layer.attn_norm)
        _write_norm(own_norms[layout.POST_ATTN_NORM], layer.post_attn_norm)
        _write_norm(own_norms[layout.MLP_NORM], layer.mlp_norm)
        _write_norm(own_norms[layout.POST_MLP_NORM], layer.post_mlp_norm)
        _write_norm(head_norms[number, 0], layer.q_norm)
        _write_norm(head_norms[number, 1], layer.k_norm)
        for which, linear in _matrices(layer).items():
            addresses[number, which] = _addresses(linear.weight)
            if linear.bias is not None:
                biases[number, which, : len(linear.bias)] = linear.bias
    _write_norm(norms[-1], params.final_norm)
    positions = params.positions
    windows = [config.window(layer) or config.max_context for layer in range(L)]
    return layout.Weights(
        like=np.empty(0, KERNEL_TYPES[params.dtype]),
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


def _matrices(layer: LayerParams) -> dict[int, Linear]:
    matrices = {
        layout.Q: layer.q,
        layout.K: layer.k,
        layout.V: layer.v,
        layout.O: layer.o,
        layout.UP: layer.up,
        layout.DOWN: layer.down,
    }
    return matrices if layer.gate is None else {**matrices, layout.GATE: layer.gate}


def _addresses(tensor: Tensor) -> tuple[int, int]:
    """Where a matrix lies, and the scales of its rows if it has any."""
    stored: Array = tensor.stored
    assert stored.flags.c_contiguous and stored.flags.aligned
    scales = tensor.scales.ctypes.data if isinstance(tensor, Int8) else 0
    return int(stored.ctypes.data), int(scales)


def _own(numbers: FloatArray | None, *shape: int) -> FloatArray:
    """A copy, or zeros: an array that cannot be written to has another type for the compiler."""
    return np.zeros(shape, np.float32) if numbers is None else numbers.copy()


def _write_norm(row: FloatArray, norm: Norm | None) -> None:
    if norm is not None:
        row[0, : len(norm.weight)] = norm.weight
    if norm is not None and norm.bias is not None:
        row[1, : len(norm.bias)] = norm.bias


def request_of(cache_dtype: CacheDTypeName) -> layout.Request:
    """A request for nothing."""
    return layout.Request(
        numbers=np.zeros(layout.N_NUMBERS, np.int64),
        tokens=np.zeros(CHUNK, np.int64),
        sequence=np.zeros(layout.N_SEQUENCE, np.int64),
        like=np.empty(0, KERNEL_TYPES[cache_dtype]),
    )


def workspace_of(config: ModelConfig, threads: int, *, packed: bool) -> layout.Workspace:
    """Memory for the threads of a team; `packed` with room for `--prefill fast`."""
    H, G, D = config.n_heads, config.n_kv_heads, config.head_dim
    C, F = config.d_model, config.d_ff
    widest = max(C, H * D)
    pieces = layout.Pieces(
        out=_zeros(H * PIECES * row_pitch(D)),
        peaks=_zeros(H * PIECES),
        totals=_zeros(H * PIECES),
    )
    rounded = layout.Packed(
        words=aligned_zeros((max(widest, F) + 1) // 2 * CHUNK, np.uint32),
        scales=_zeros(CHUNK),
        offsets=_zeros(CHUNK),
    )
    return layout.Workspace(
        x=_zeros(C * CHUNK),
        hidden=_zeros(widest * CHUNK),
        qkv=_zeros((H + 2 * G) * D * CHUNK),
        cos_sin=_zeros(len(set(config.rope)) * D * CHUNK),
        branch=_zeros(C * CHUNK),
        inner=_zeros(max(F * CHUNK, 2 * F + 2 * LANES)),
        pieces=pieces,
        packed=rounded if packed else None,
        own=own_of(config, threads),
    )


def nbytes_of(record: Any) -> int:
    """Bytes of all arrays of a record and of the records in it.

    >>> nbytes_of(layout.Rows(np.zeros(5, np.float32), 0, 1))
    20
    """
    if isinstance(record, np.ndarray):
        return record.nbytes
    return sum(map(nbytes_of, record)) if isinstance(record, tuple) else 0


def rounded_context_of(config: ModelConfig, capacity: int) -> tuple[Words, Words]:
    """Memory for one layer's keys and values in bfloat16: see kernels/rounded.py."""
    G, D = config.n_kv_heads, config.head_dim
    return (
        aligned_zeros(G * capacity * ((D + 1) // 2) + LANES, np.uint32),
        aligned_zeros(G * capacity // 2 * row_pitch(D) + LANES, np.uint32),
    )


def own_of(config: ModelConfig, threads: int) -> layout.Own:
    """Memory of each thread: arrays [threads, ...]."""
    D, queries = config.head_dim, config.n_heads * config.head_dim
    widest = max(config.d_model, queries, config.d_ff)
    return layout.Own(
        x=_zeros(threads, config.d_model),
        added=_zeros(threads, config.d_model),
        hidden=_zeros(threads, max(config.d_model, queries)),
        queries=layout.Queries(
            q=_zeros(threads, ROWS * D),
            firsts=np.zeros((threads, LANES), np.int64),
            ends=np.zeros((threads, LANES), np.int64),
            scores=_zeros(threads, ROWS * SEGMENT),
            out=_zeros(threads, ROWS * row_pitch(D)),
            peaks=_zeros(threads, ROWS),
            totals=_zeros(threads, ROWS),
            reads=np.zeros((threads, LANES), np.int64),
        ),
        digits=aligned_zeros((threads, 3 * -(-widest // LINE_BYTES) * LINE_BYTES), np.int8),
        panel=_zeros(threads, ROWS * widest),
        product=_zeros(threads, ROWS * CHUNK),
        reads=np.zeros((threads, max(config.n_layers, LANES), layout.N_READS), np.int64),
    )


def _zeros(*shape: int) -> FloatArray:
    """Rows of zeros that end in whole vectors, each a line of the CPU's cache apart."""
    numbers = (*shape[:-1], -(-shape[-1] // LANES) * LANES + LANES)
    return aligned_zeros(numbers, np.float32)
