"""Tables of cosines and sines for rotary positions, computed once per cache."""

from __future__ import annotations

import numpy as np

from kvgen.config import RopeConfig
from kvgen.tensors import FloatArray


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> FloatArray:
    """Radians per position for each rotated pair, float32 [D/2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inv_freq = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.kind == "linear":
        return inv_freq / np.float32(rope.factor)
    if rope.kind == "llama3":
        # Fraction of `high_freq_factor` turns within the original context: 1 keeps, 0 divides.
        turns = rope.original_context * inv_freq.astype(np.float64) / (2 * np.pi)
        span = rope.high_freq_factor - rope.low_freq_factor
        keep = np.clip((turns - rope.low_freq_factor) / span, 0, 1)
        return ((1 - keep) * inv_freq / rope.factor + keep * inv_freq).astype(np.float32)
    return inv_freq


def cos_sin(
    rope: RopeConfig | None, head_dim: int, n_positions: int
) -> tuple[FloatArray, FloatArray]:
    """Cosine and sine of every position's angles, each float32 [n_positions, D/2].

    Angles are products of float32 numbers, as in transformers. Without RoPE both tables are empty.
    """
    if rope is None:
        nothing = np.zeros((0, 0), np.float32)
        return nothing, nothing
    positions = np.arange(n_positions, dtype=np.float32)
    angles = np.outer(positions, inverse_frequencies(rope, head_dim))
    return np.cos(angles), np.sin(angles)
