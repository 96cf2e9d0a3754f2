"""How fast this machine reads weights and multiplies, by the kernels that the engine uses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kvgen.choices import CacheDTypeName, DTypeName
from kvgen.engine.calibration import Calibration, median_seconds
from kvgen.engine.config import ModelConfig
from kvgen.engine.fast.layout import (
    BLOCK,
    CHUNK,
    LANES,
    LINE_BYTES,
    ROWS,
    FloatArray,
    HeadCache,
    Int8Head,
    IntArray,
    Matrix,
    Own,
    Rows,
    row_pitch,
)
from kvgen.engine.fast.tables import KERNEL_TYPES, STREAMED_BYTES, own_of
from kvgen.engine.fast.team import Team
from kvgen.engine.fast.team_loop import TeamLoop
from kvgen.engine.tensors import Array, aligned_zeros

NOTHING, READ, MULTIPLY, ATTEND = range(4)
_LARGEST_BYTES = 128 * 2**20  # far beyond the CPU's own memory
MULTIPLIED_ROWS = 96 * ROWS
KEYS = 8 * BLOCK  # that queries attend to
TILES = 24  # of six queries, for all threads together


class Probe(NamedTuple):
    """A matrix [rows, width], a head's cache, and what they are multiplied with."""

    what: IntArray  # [1] NOTHING ... ATTEND
    n_rows: int
    matrix: Matrix
    x: FloatArray  # [width]
    y: FloatArray  # [rows]
    tokens: Rows  # [width, CHUNK]
    head: HeadCache | Int8Head
    own: Own


def measure(
    config: ModelConfig,
    *,
    dtype: DTypeName,
    cache_dtype: CacheDTypeName,
    n_bytes: int,
    threads: int,
) -> Calibration:
    """Measure with `n_bytes` of weights in rows as wide as the model; see `Engine.calibrate`."""
    width = config.d_model
    stored = np.dtype(KERNEL_TYPES[dtype])
    row_bytes = width * stored.itemsize
    n_rows = max(MULTIPLIED_ROWS, min(n_bytes, _LARGEST_BYTES) // row_bytes)
    numbers = stored_ones(n_rows * width + LINE_BYTES, dtype)
    scales = np.ones(n_rows, np.float32)
    matrix = Matrix(
        address=numbers.ctypes.data,
        scales=scales.ctypes.data,
        like=np.empty(0, stored),
        n=width,
        bias=np.zeros(n_rows, np.float32),
        streamed=n_bytes > STREAMED_BYTES,
    )
    pitch = row_pitch(config.head_dim)
    sizes = KEYS * config.head_dim, KEYS * pitch
    keys, values = (aligned_zeros(size, KERNEL_TYPES[cache_dtype]) for size in sizes)
    head: HeadCache | Int8Head = HeadCache(keys, values, config.head_dim, pitch)
    if cache_dtype == "int8":
        scales = np.zeros(KEYS, np.float32)
        head = Int8Head(keys, values, scales, scales, config.head_dim, pitch)
    probe = Probe(
        what=np.array([NOTHING], np.int64),
        n_rows=n_rows,
        matrix=matrix,
        x=np.ones(-(-width // LINE_BYTES) * LINE_BYTES, np.float32),
        y=np.zeros(n_rows, np.float32),
        tokens=Rows(np.ones(width * CHUNK + LANES, np.float32), 0, CHUNK),
        head=head,
        own=own_of(config, threads),
    )
    probe.own.queries.ends[:] = KEYS
    team = Team(threads, TeamLoop("probe_loop", (probe,)), ())
    team.prepare()
    probe.what[0] = READ
    read_seconds = median_seconds(team.run)
    probe.what[0] = MULTIPLY
    multiply_seconds = median_seconds(team.run)
    probe.what[0] = ATTEND
    attend_seconds = median_seconds(team.run)
    return Calibration(
        read_bytes_per_second=n_rows * row_bytes / read_seconds,
        flops_per_second=2 * MULTIPLIED_ROWS * width * CHUNK / multiply_seconds,
        attention_flops_per_second=4 * config.head_dim * ROWS * KEYS * TILES / attend_seconds,
    )


def stored_ones(n: int, dtype: DTypeName) -> Array:
    """n weights of 1.0 as they are stored: the bits 1 are a subnormal bfloat16, which is slow."""
    one = {"f32": 1, "bf16": 0x3F80, "f16": 0x3C00, "int8": 1}[dtype]
    return np.full(n, one, KERNEL_TYPES[dtype])
