"""What the compiled functions work on: tables of numbers and addresses, and memory to work in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.engine.fast.kernels.packed import Packed
from kvgen.engine.tensors import FloatArray

CHUNK = 192  # tokens that go through the layers together: constant memory, and the best speed
# Columns of the table of matrices.
Q, K, V, O, GATE, UP, DOWN = range(7)  # noqa: E741
NO_QK_NORM, EACH_HEAD, WHOLE = range(3)
# A layer's rows in the table of norms.
ATTN_NORM, POST_ATTN_NORM, MLP_NORM, POST_MLP_NORM = range(4)
# Numbers of a request.
N_TOKENS, N_TILES, WHICH_LOGITS, LOGITS, OVERFLOW = range(5)
NONE, LAST, ALL = range(3)  # which logits
# A row of the table of caches: addresses, sizes, and where q and z are to be captured.
(
    KEYS, VALUES, CAPACITY, COS, SIN, N_TABLES, N_POSITIONS, N_ANGLES, CAPTURED_Q, CAPTURED_Z,
    CAPTURE_CAPACITY,
) = range(11)  # fmt: skip


class Shape(NamedTuple):
    """The numbers and switches of ModelConfig that the kernels read."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    pitch: int  # distance of rows of V in the cache: head_dim in whole vectors
    d_model: int
    d_ff: int
    vocab_size: int
    rms: bool
    norm_eps: np.float32
    gated: bool
    activation: int
    parallel: bool
    pre_norm: bool  # which norms a layer has
    post_attn_norm: bool
    mlp_norm: bool
    post_mlp_norm: bool
    qk_norm: int
    attn_softcap: np.float32  # 0: none
    logit_softcap: np.float32
    embed_scale: np.float32
    residual_scale: np.float32
    logit_scale: np.float32
    streamed: bool  # weights come from main memory and not from a cache


class Weights(NamedTuple):
    """What is learned. Large tensors by address, the small ones widened and stacked."""

    like: npt.NDArray[Any]  # an empty array of the stored type: tells the compiler the width
    embed: npt.NDArray[np.int64]  # [2]: addresses of [V, C], and of its rows' scales
    positions: FloatArray  # [max_context, C], empty where there are none
    head: npt.NDArray[np.int64]  # [2]
    layers: npt.NDArray[np.int64]  # [L, 7, 2]
    norms: FloatArray  # [4L + 1, 2, C]: scale and shift, four a layer and one at the end
    head_norms: FloatArray  # [L, 2, 2, H * D]: of queries and of keys
    biases: FloatArray  # [L, 7, widest]: zeros where a projection has none
    head_bias: FloatArray  # [V]
    scales: FloatArray  # [L] factor of the scores
    windows: npt.NDArray[np.int64]  # [L] keys that a query sees
    tables: npt.NDArray[np.int64]  # [L] a layer's table of angles, -1 where nothing is turned
    captured: npt.NDArray[np.int64]  # [L, H] which head's q and z to write, -1 for none


class Request(NamedTuple):
    """What to run: the rows of a chunk, each a token at a position of a sequence."""

    numbers: npt.NDArray[np.int64]  # N_TOKENS ... OVERFLOW, see above
    tokens: npt.NDArray[np.int64]  # [CHUNK]
    positions: npt.NDArray[np.int64]  # [CHUNK]
    slots: npt.NDArray[np.int64]  # [CHUNK] row of `caches`
    tiles: npt.NDArray[np.int64]  # [CHUNK, 2]: first row and number of rows that attend together
    caches: npt.NDArray[np.int64]  # [slots, 11]
    like: npt.NDArray[Any]  # an empty array of the cache's type


class Workspace(NamedTuple):
    """Memory that the threads share, features by tokens for a chunk, and each one's own."""

    x: FloatArray  # [C, CHUNK] the residual stream
    hidden: FloatArray  # [max(C, H D), CHUNK] a block's input
    qkv: FloatArray  # [(H + 2G) D, CHUNK]
    turns: FloatArray  # [tables, 2, half, CHUNK] cos and sin
    branch: FloatArray  # [C, CHUNK] what a block adds
    inner: FloatArray  # [F, CHUNK]
    parts: FloatArray  # [H * PIECES * pitch] attention's output for pieces of the context
    peaks: FloatArray  # [H * PIECES]
    totals: FloatArray  # [H * PIECES]
    # What follows has a row for each thread.
    own_x: FloatArray  # [C]
    own_added: FloatArray  # [C]
    own_hidden: FloatArray  # [max(C, H D)]
    own_q: FloatArray  # [6 * D]
    own_scores: FloatArray  # [6 * SEGMENT]
    own_out: FloatArray  # [6 * pitch]
    own_peaks: FloatArray  # [6]
    own_totals: FloatArray  # [6]
    own_firsts: npt.NDArray[np.int64]  # [6]
    own_ends: npt.NDArray[np.int64]  # [6]
    own_bytes: npt.NDArray[np.int8]  # [3 * widest input] in whole products
    own_reads: npt.NDArray[np.int64]  # [L] rows of K that the queries of a head have read
    own_panel: FloatArray  # [6 * widest input]
    own_product: FloatArray  # [6 * CHUNK]
    packed: Packed | None  # a block's input once more, rounded, for fast prefill
