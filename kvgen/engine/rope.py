"""Tables of cosines and sines for rotary positions.

One pass turns all its positions with one set of frequencies. Two kinds choose that set by the
length of the sequence after the pass, as transformers does (modeling_rope_utils.py,
`dynamic_rope_update`): `longrope` has one set up to its original context and one beyond, `dynamic`
has another set for every length beyond it. Keys that were turned with other frequencies are of no
use then: the cache has the kept ids run again (`KeyValueCache.prepare`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.engine.config import ModelConfig, RopeConfig
from kvgen.engine.tensors import FloatArray


class RopeTables(NamedTuple):
    """Cosines and sines of every position's angles, one table for each kind of layer."""

    cos: FloatArray  # [tables, n_positions, dim/2]
    sin: FloatArray
    of_layer: npt.NDArray[np.int64]  # [L] a layer's table, -1 where it turns nothing


def length_dependent(config: ModelConfig) -> tuple[RopeConfig, ...]:
    """The model's kinds of RoPE whose frequencies depend on the length of the sequence."""
    kinds = dict.fromkeys(rope for rope in config.rope if rope is not None)
    return tuple(rope for rope in kinds if rope.depends_on_length)


def same_frequencies_from(ropes: Iterable[RopeConfig], length: int) -> int:
    """The shortest length whose frequencies are those of `length`, in all these kinds of RoPE.

    Two lengths have the same frequencies exactly where this number is the same: with an original
    context of 100 it is 1 for 1 to 100; then 101 for all others (`longrope`), or each length itself
    (`dynamic`).
    """
    shortest = 1
    for rope in ropes:
        if length > rope.original_context and rope.kind == "longrope":
            shortest = max(shortest, rope.original_context + 1)
        elif length > rope.original_context and rope.kind == "dynamic":
            shortest = length
    return shortest


def positions_run_again(ropes: Iterable[RopeConfig], length: int) -> int:
    """Kept positions that a step from `length` positions to one more must run again: all, or 0."""
    ropes = tuple(ropes)
    changed = same_frequencies_from(ropes, length + 1) != same_frequencies_from(ropes, length)
    return length if changed else 0


@lru_cache(maxsize=4)
def rope_tables(config: ModelConfig, n_positions: int, length: int) -> RopeTables:
    """The tables of positions 0 to `n_positions` - 1 in a sequence of `length` positions.

    The length decides on the frequencies only. Angles are products of float32 numbers, as in
    transformers.
    """
    kinds = list(dict.fromkeys(rope for rope in config.rope if rope is not None))
    half = kinds[0].dim // 2 if kinds else 0
    shape = (len(kinds), n_positions if kinds else 0, half)
    cos, sin = np.empty(shape, np.float32), np.empty(shape, np.float32)
    positions = np.arange(n_positions, dtype=np.float32)
    for table, rope in enumerate(kinds):
        angles = np.outer(positions, inverse_frequencies(rope, length))
        cos[table] = np.cos(angles) * np.float32(rope.magnitude)
        sin[table] = np.sin(angles) * np.float32(rope.magnitude)
    of_layer = [kinds.index(rope) if rope is not None else -1 for rope in config.rope]
    return RopeTables(cos, sin, np.array(of_layer or [-1] * config.n_layers, np.int64))


def inverse_frequencies(rope: RopeConfig, length: int) -> FloatArray:
    """Radians per position for each rotated pair in a sequence of that length, float32 [dim/2]."""
    theta: float = rope.theta
    if rope.kind == "dynamic" and length > rope.original_context:
        stretch = rope.factor * length / rope.original_context - (rope.factor - 1)
        theta *= math.pow(stretch, rope.exponent_dim / (rope.exponent_dim - 2))
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.exponent_dim)
    inv_freq: FloatArray = (1 / np.float32(theta) ** exponents).astype(np.float32)
    if rope.kind == "linear":
        inv_freq = inv_freq / np.float32(rope.factor)
    elif rope.kind == "llama3":
        inv_freq = _blend(inv_freq, rope.factor, keep=_turns_kept(rope, inv_freq))
    elif rope.kind == "yarn":
        inv_freq = _blend(inv_freq, rope.factor, keep=_dimensions_kept(rope))
    elif rope.kind == "longrope":
        beyond = length > rope.original_context
        factors = rope.long_factors if beyond else rope.short_factors
        inv_freq = (inv_freq / np.asarray(factors, np.float32)).astype(np.float32)
    assert inv_freq.dtype == np.float32
    return inv_freq


def _blend(inv_freq: FloatArray, factor: float, *, keep: npt.NDArray[np.float64]) -> FloatArray:
    """Each frequency between itself (keep = 1) and itself divided by `factor` (keep = 0)."""
    blended: FloatArray = ((1 - keep) * inv_freq / factor + keep * inv_freq).astype(np.float32)
    return blended


def _turns_kept(rope: RopeConfig, inv_freq: FloatArray) -> npt.NDArray[np.float64]:
    """llama3: a ramp over how often a pair turns within the original context."""
    turns = rope.original_context * inv_freq.astype(np.float64) / (2 * np.pi)
    if rope.high <= rope.low:  # no ramp: the wave of `low` turns is the only bound
        return (turns >= rope.low).astype(np.float64)
    return np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)


def _dimensions_kept(rope: RopeConfig) -> npt.NDArray[np.float64]:
    """yarn: a ramp over dimensions, between those that turn `high` and `low` times."""

    def dimension(turns: float) -> float:
        length = rope.original_context / (turns * 2 * math.pi)
        return rope.dim * math.log(length) / (2 * math.log(rope.theta))

    first, last = dimension(rope.high), dimension(rope.low)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    width = last - first or 0.001
    ramp: npt.NDArray[np.float64] = np.clip((np.arange(rope.dim // 2) - first) / width, 0, 1)
    return 1 - ramp
