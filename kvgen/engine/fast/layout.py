"""The sizes, the numbered choices and the records of the compiled engine.

This file imports no other file of ours. A record is a NamedTuple of arrays and numbers, which
compiled functions take as one argument. Kernels read and write whole vectors, so arrays of float32
end with one vector more than they need.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# --- Sizes ------------------------------------------------------------------------------------

LANES = 16  # numbers of a vector register
LINE_BYTES = 64  # int8 numbers that one instruction multiplies: a line of the CPU's cache
BYTES_AHEAD = 4096  # weights are fetched so far before they are needed
ROWS = 6  # rows of a tile: 6 x 4 sums, 4 loads and a repeated number fill 32 registers
CHUNK = 320  # tokens that go through the layers together: constant memory, and the best speed
BLOCK = 64  # positions of a block of keys
SEGMENT = 256  # positions whose scores are held at once
PIECES = 16  # one token attends to the context in at most so many pieces, shared by the threads
WIDEST_DOT = 2**16  # products of bytes whose sum stays within 31 bits
F16_LARGEST = np.float32(65504)


def row_pitch(head_dim: int) -> int:
    """The distance of rows of V in the cache: head_dim in whole vectors."""
    return -(-head_dim // LANES) * LANES


# --- Numbered choices, each list with its length ----------------------------------------------

# The matrices of a layer.
Q, K, V, O, GATE, UP, DOWN, N_MATRICES = range(8)  # noqa: E741
# The norms of a layer.
ATTN_NORM, POST_ATTN_NORM, MLP_NORM, POST_MLP_NORM, N_NORMS = range(5)
NO_QK_NORM, EACH_HEAD, WHOLE = range(3)  # the numbers that a norm of q and k covers
# Numbers of a request.
# Tokens begin as their embeddings, or in a layer with states [T, C] at an address, if not 0.
(
    N_TOKENS, FIRST_POSITION, WHICH_LOGITS, LOGITS, OVERFLOW, FIRST_LAYER, STATES, N_NUMBERS,
) = range(8)  # fmt: skip
NONE, LAST, ALL = range(3)  # which logits a request wants
# What kernels know of a sequence: addresses and sizes of its keys and values, of its tables of
# angles, of the captured q, z and states, of the kept queries with the layer and positions of those
# that are held (`KeyValueCache`), of one layer's rounded rows, and of the scales of int8 rows.
(
    KEYS, VALUES, CAPACITY, COS, SIN, N_TABLES, N_POSITIONS, N_ANGLES, CAPTURED_Q, CAPTURED_Z,
    CAPTURED_STATES, CAPTURE_CAPACITY, QUERIES, HELD_LAYER, HELD_BEGIN, HELD_END,
    ROUNDED_KEYS, ROUNDED_VALUES, KEY_SCALES, VALUE_SCALES, N_SEQUENCE,
) = range(21)  # fmt: skip
# Which rows are counted when they are read: see `kvgen.engine.cache.RowsRead`.
READ_K, READ_V, READ_Q, READ_OLD_Q, N_READS = range(5)
# Offsets in the array that the threads of a team share, a line of the CPU's cache apart.
(
    ARRIVED,  # threads that have reached a barrier, of all requests together
    FIRST_ARRIVAL,  # how many had when this request began
    LEAVE_AT,  # after so many, all threads but thread 0 leave their request
    TICKET,  # the newest request of more than one thread: its number, and its number of threads
    BUSY,  # for how many threads a request is on its way or running, 0 for none
    SPINS,  # how long to spin before yielding the CPU
    WAITED,  # ticks that threads 0 and 1 have waited for one that did not run
    PATIENCE,  # how many of them are borne
    BEGAN,  # ticks when the request began
    ENDED,  # and when it ended
    TIMELINE,  # address of the times at which barriers are reached and passed, 0 for none
    N_SHARED,
) = range(0, 192, 16)
TIMES = 2**12  # numbers in the timeline of a thread: how many times there are, and then ticks
TICKS_OF_NO_ACCOUNT = 60_000  # some 20 microseconds on x86: no time slice is so short


# Choices that are passed next to offsets and counts. Each enum is a type of its own, so that a call
# with a number instead of a choice does not compile.
class Activation(Enum):
    """The function between the two products of an MLP."""

    RELU = 0
    SILU = 1
    GELU = 2
    GELU_TANH = 3


class Use(Enum):
    """How a product of a matrix and the tokens of a chunk is stored in its target."""

    SET = 0
    ADD = 1  # times the residual scale, added to the target
    ACTIVATE = 2
    TIMES = 3  # multiplied with the target


# --- Records of the model and of a request ----------------------------------------------------


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
    activation: int  # the value of an Activation
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
    streamed: bool  # weights are too large for the CPU's own memory and come from main memory


class Weights(NamedTuple):
    """What is learned: large tensors by address, small ones widened to float32 and stacked."""

    like: npt.NDArray[Any]  # an empty array of the stored type: tells the compiler the width
    embed: IntArray  # [2]: addresses of [V, C], and of its rows' scales
    positions: FloatArray  # [max_context, C], empty where there are none
    head: IntArray  # [2]
    layers: IntArray  # [L, N_MATRICES, 2]
    norms: FloatArray  # [L * N_NORMS + 1, 2, C]: scale and shift; the last one is the final norm
    head_norms: FloatArray  # [L, 2, 2, H * D]: of queries and of keys
    biases: FloatArray  # [L, N_MATRICES, widest]: zeros where a projection has none
    head_bias: FloatArray  # [V]
    scales: FloatArray  # [L] factor of the scores
    windows: IntArray  # [L] keys that a query sees
    tables: IntArray  # [L] a layer's table of RoPE angles, -1 for none
    captured: IntArray  # [L, H] which head's q and z to write, -1 for none


class Request(NamedTuple):
    """Neighbouring tokens of one sequence to run, the first at position numbers[FIRST_POSITION].

    All tokens of a request belong to one sequence, on purpose. Several sequences in a chunk would
    need a row of `sequence` for each token, logits for the last token of each sequence, and query
    tiles that end where a sequence ends.
    """

    numbers: IntArray  # [N_NUMBERS]
    tokens: IntArray  # [CHUNK]
    sequence: IntArray  # [N_SEQUENCE]
    like: npt.NDArray[Any]  # an empty array of the cache's type


# --- Records that kernels pass to each other --------------------------------------------------


class Worker(NamedTuple):
    """A thread of the team."""

    thread: int
    n_threads: int  # that take part now
    shared: IntArray  # [N_SHARED]
    arrivals: int  # at barriers, of all threads together, when this thread passed its last one


class Range(NamedTuple):
    """Numbers begin, begin + 1, ... end - 1: rows of a matrix, tokens of a chunk, positions."""

    begin: int
    end: int


class Rows(NamedTuple):
    """A matrix inside a flat array: row i begins at numbers[start + i * pitch]."""

    numbers: npt.NDArray[Any]
    start: int
    pitch: int


class Matrix(NamedTuple):
    """A stored matrix [.., n], with a bias for each row."""

    address: int
    scales: int  # address of a scale for each row; read for int8 alone
    like: npt.NDArray[Any]  # an empty array of the stored type
    n: int
    bias: FloatArray
    streamed: bool  # see Shape


class Norm(NamedTuple):
    """LayerNorm, or RMSNorm where `rms`."""

    scale: FloatArray  # [n]
    shift: FloatArray  # [n]
    rms: bool
    eps: np.float32


class HeadCache(NamedTuple):
    """Keys and values of one key/value head of a layer."""

    keys: npt.NDArray[Any]  # [capacity / BLOCK, D, BLOCK]
    values: npt.NDArray[Any]  # [capacity, pitch]
    head_dim: int
    pitch: int


class Int8Head(NamedTuple):
    """Keys and values of one key/value head of a layer in int8: see `kvgen.engine.kept_rows`."""

    keys: npt.NDArray[np.int8]  # [capacity / BLOCK, D, BLOCK], transformed
    values: npt.NDArray[np.int8]  # [capacity, pitch]
    key_scales: FloatArray  # [capacity]
    value_scales: FloatArray  # [capacity]
    head_dim: int
    pitch: int


class RoundedHead(NamedTuple):
    """Keys and values of one key/value head of a layer in bfloat16, two numbers in a word."""

    keys: npt.NDArray[np.uint32]  # [capacity / BLOCK, D / 2, BLOCK]
    values: npt.NDArray[np.uint32]  # [capacity / 2, pitch]
    head_dim: int
    pitch: int
    q: npt.NDArray[np.uint32]  # [ROWS, D / 2] the rows that attend
    weights: npt.NDArray[np.uint32]  # [ROWS, SEGMENT / 2] what they give to positions


class Queries(NamedTuple):
    """Up to ROWS query rows that attend to one head's cache, with working memory and results."""

    q: FloatArray  # [ROWS, D], with the factor of the scores
    firsts: IntArray  # [ROWS] first position that a row sees
    ends: IntArray  # [ROWS] position behind the last one
    scores: FloatArray  # [ROWS, SEGMENT]
    out: FloatArray  # [ROWS, pitch] sums of values, times exp(score - peak)
    peaks: FloatArray  # [ROWS] the greatest score
    totals: FloatArray  # [ROWS] sums of exp(score - peak)
    reads: IntArray  # [2] rows of K and of V that were read for them


class Piece(NamedTuple):
    """A piece of the context for one token and the query heads of one key/value head."""

    layer: int
    group: int  # the key/value head
    number: int
    positions: Range


class QueryTile(NamedTuple):
    """Neighbouring tokens of a chunk whose queries of one head attend together."""

    layer: int
    head: int  # the query head
    first: int  # the first token
    n_rows: int


class Epilogue(NamedTuple):
    """The numbers of `Use`: what may be done to a product before it is stored."""

    residual_scale: np.float32
    activation: Activation


class Packed(NamedTuple):
    """The activations that a product reads once more, rounded: for `--prefill fast`."""

    words: npt.NDArray[np.uint32]  # [features / 2 or 4, tokens]
    scales: FloatArray  # [tokens] what one of a token's bytes stands for
    offsets: FloatArray  # [tokens] 128 times the sum of a token's bytes


class Own(NamedTuple):
    """Memory of one thread; in the workspace each array has a row for each thread."""

    x: FloatArray  # [C]
    added: FloatArray  # [C]
    hidden: FloatArray  # [max(C, H D)]
    queries: Queries
    digits: npt.NDArray[np.int8]  # [3 * widest input] in whole lines
    panel: FloatArray  # [ROWS * widest input]
    product: FloatArray  # [ROWS * CHUNK]
    reads: IntArray  # [L, N_READS] rows that have been read


class Pieces(NamedTuple):
    """Attention of one token to pieces of the context, for each query head, before they join."""

    out: FloatArray  # [H * PIECES * pitch]
    peaks: FloatArray  # [H * PIECES]
    totals: FloatArray  # [H * PIECES]


class Workspace(NamedTuple):
    """Memory that the threads share, features by tokens for a chunk, and each thread's own."""

    x: FloatArray  # [C, CHUNK] the residual stream
    hidden: FloatArray  # [max(C, H D), CHUNK] a block's input
    qkv: FloatArray  # [(H + 2G) D, CHUNK]
    cos_sin: FloatArray  # [tables, 2, half, CHUNK] cos and sin
    branch: FloatArray  # [C, CHUNK] what a block adds
    inner: FloatArray  # [F, CHUNK]
    pieces: Pieces
    packed: Packed | None  # None without `--prefill fast`: the kernels for it are not compiled
    own: Own
