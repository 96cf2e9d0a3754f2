"""How fast this machine reads weights and multiplies, by the kernels that the engine uses."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.engine.calibration import Calibration, median_seconds
from kvgen.engine.config import ModelConfig
from kvgen.engine.fast.compiler import jit_entry, kernel, noinline
from kvgen.engine.fast.kernels.attention import BLOCK, SEGMENT, attend, row_pitch
from kvgen.engine.fast.kernels.int8_dot import BYTES
from kvgen.engine.fast.kernels.products import ROWS, dot_rows, share, tile_across, widen_rows
from kvgen.engine.fast.kernels.simd import LANES
from kvgen.engine.fast.layout import CHUNK
from kvgen.engine.fast.tables import SEEN_AS, STREAMED_BYTES
from kvgen.engine.fast.team import Team, await_ticket, barrier, open_request
from kvgen.engine.tensors import CacheDTypeName, DTypeName, FloatArray

NOTHING, READ, MULTIPLY, ATTEND = range(4)
WHAT, N_ROWS, WIDTH, STREAMED = range(4)
_LARGEST_BYTES = 128 * 2**20  # far beyond the caches
_MULTIPLIED_ROWS = 96 * ROWS
_KEYS = 8 * BLOCK  # that queries attend to
_TILES = 24  # of six queries, for all threads together


class _Attention(NamedTuple):
    """A head's cache, and six queries for each thread."""

    head_dim: int
    pitch: int
    keys: npt.NDArray[Any]  # as the cache keeps them
    values: npt.NDArray[Any]
    q: FloatArray  # [6 * D]
    ends: npt.NDArray[np.int64]  # [6]
    firsts: npt.NDArray[np.int64]  # [6]
    own_scores: FloatArray  # [threads, 6 * SEGMENT], as the others from here on
    own_out: FloatArray
    own_peaks: FloatArray
    own_totals: FloatArray


class _Probe(NamedTuple):
    """A matrix [rows, width] and what it is multiplied with."""

    numbers: npt.NDArray[np.int64]  # WHAT ... STREAMED
    matrix: npt.NDArray[np.int64]  # [2] addresses of the numbers and of the rows' scales
    like: npt.NDArray[Any]  # an empty array of the stored type
    x: FloatArray  # [width]
    bias: FloatArray  # [rows]
    y: FloatArray  # [rows]
    tokens: FloatArray  # [width, CHUNK]
    # What follows has a row for each thread.
    own_bytes: npt.NDArray[np.int8]
    own_panel: FloatArray
    own_product: FloatArray
    attention: _Attention


@kernel
def multiply_rows(matrix, like, n, begin, end, panel, x, product):
    """Rows begin:end of a matrix [.., n] times a whole chunk of tokens."""
    noinline()
    row = begin
    while row < end:
        widen_rows(matrix, like, row, min(ROWS, end - row), n, panel)
        tile_across(panel, 0, n, x, CHUNK, product, CHUNK)
        row += ROWS


@jit_entry
def run_probe(thread, n_threads, shared, seen, probe):
    """Run one measurement after another, as `worker_loop` runs requests."""
    while True:
        if thread == 0:
            open_request(shared)
        else:
            ticket = await_ticket(shared, seen)
            if ticket == seen:
                return seen
            seen = ticket
        numbers, n = probe.numbers, probe.numbers[WIDTH]
        if numbers[WHAT] == READ:
            begin, end = share(numbers[N_ROWS], thread, n_threads, 4)
            dot_rows(
                probe.matrix, probe.like, probe.x, n, probe.bias, numbers[STREAMED] != 0, probe.y,
                begin, end, probe.own_bytes[thread],
            )  # fmt: skip
        elif numbers[WHAT] == MULTIPLY:
            begin, end = share(numbers[N_ROWS], thread, n_threads, ROWS)
            multiply_rows(
                probe.matrix, probe.like, n, begin, end, probe.own_panel[thread], probe.tokens,
                probe.own_product[thread],
            )  # fmt: skip
        elif numbers[WHAT] == ATTEND:
            a = probe.attention
            for _ in range(thread, _TILES, n_threads):
                attend(
                    ROWS, a.q, a.keys, 0, a.values, 0, a.head_dim, a.pitch, 0, _KEYS, a.firsts,
                    a.ends, np.float32(0), a.own_scores[thread], a.own_out[thread],
                    a.own_peaks[thread], a.own_totals[thread],
                )  # fmt: skip
        barrier(shared, n_threads)
        if thread == 0:
            return seen


def calibrate(
    config: ModelConfig,
    *,
    dtype: DTypeName,
    cache_dtype: CacheDTypeName,
    n_bytes: int,
    threads: int,
) -> Calibration:
    """Measure with `n_bytes` of weights in rows as wide as the model; see `Engine.calibrate`."""
    width = config.d_model
    stored = np.dtype(SEEN_AS[dtype])
    row_bytes = width * stored.itemsize
    n_rows = max(_MULTIPLIED_ROWS, min(n_bytes, _LARGEST_BYTES) // row_bytes)
    matrix = np.ones(n_rows * width + BYTES, stored)
    scales = np.ones(n_rows, np.float32)
    padded = -(-width // BYTES) * BYTES
    probe = _Probe(
        numbers=np.array([NOTHING, n_rows, width, n_bytes > STREAMED_BYTES], np.int64),
        matrix=np.array([matrix.ctypes.data, scales.ctypes.data], np.int64),
        like=np.empty(0, stored),
        x=np.ones(padded, np.float32),
        bias=np.zeros(n_rows, np.float32),
        y=np.zeros(n_rows, np.float32),
        tokens=np.ones(width * CHUNK + LANES, np.float32),
        own_bytes=np.zeros((threads, 3 * padded), np.int8),
        own_panel=np.zeros((threads, ROWS * padded), np.float32),
        own_product=np.zeros((threads, ROWS * CHUNK + LANES), np.float32),
        attention=_attention(config.head_dim, cache_dtype, threads),
    )
    team = Team(threads, run_probe, (probe,))
    team.prepare()
    probe.numbers[WHAT] = READ
    read_seconds = median_seconds(team.run)
    probe.numbers[:2] = MULTIPLY, _MULTIPLIED_ROWS
    multiply_seconds = median_seconds(team.run)
    probe.numbers[WHAT] = ATTEND
    attend_seconds = median_seconds(team.run)
    return Calibration(
        read_bytes_per_second=n_rows * row_bytes / read_seconds,
        flops_per_second=2 * _MULTIPLIED_ROWS * width * CHUNK / multiply_seconds,
        attention_flops_per_second=4 * config.head_dim * ROWS * _KEYS * _TILES / attend_seconds,
    )


def _attention(head_dim: int, cache_dtype: CacheDTypeName, threads: int) -> _Attention:
    pitch, kind = row_pitch(head_dim), SEEN_AS[cache_dtype]
    return _Attention(
        head_dim=head_dim,
        pitch=pitch,
        keys=np.zeros(_KEYS * head_dim, kind),
        values=np.zeros(_KEYS * pitch, kind),
        q=np.zeros(ROWS * head_dim, np.float32),
        ends=np.full(ROWS, _KEYS, np.int64),
        firsts=np.zeros(ROWS, np.int64),
        own_scores=np.zeros((threads, ROWS * SEGMENT + LANES), np.float32),
        own_out=np.zeros((threads, ROWS * pitch + LANES), np.float32),
        own_peaks=np.zeros((threads, LANES), np.float32),
        own_totals=np.zeros((threads, LANES), np.float32),
    )
