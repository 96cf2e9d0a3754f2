"""Attention of one token to pieces of the context: what threads have computed, joined by each."""

from __future__ import annotations

import numpy as np

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.attention import LOWEST
from kvgen.engine.fast.kernels.simd import fma, load, prefetch, splat, store, zeros
from kvgen.engine.fast.layout import LANES, PIECES


@kernel
def fetch(x, begin, end):
    """Begin to read x[begin:end], which other threads wrote: all lines at once, not one by one."""
    for i in range(begin, end, LANES):
        prefetch(x, i)


@kernel
def fetch_pieces(n_pieces, pieces, shape):
    """Begin to read each head's attention to pieces of the context."""
    for head in range(shape.n_heads):
        start = head * PIECES
        prefetch(pieces.peaks, start)
        prefetch(pieces.totals, start)
        fetch(pieces.out, start * shape.pitch, (start + n_pieces) * shape.pitch)


@kernel
def join_pieces(n_pieces, pieces, shape, spare, z):
    """z [H * D] = each head's attention, its pieces weighed by their sums (as in FlashDecoding)."""
    noinline()
    D, pitch = shape.head_dim, shape.pitch
    for head in range(shape.n_heads):
        start, highest, total = head * PIECES, LOWEST, np.float32(0)
        for piece in range(n_pieces):
            highest = max(highest, pieces.peaks[start + piece])
        for piece in range(n_pieces):
            part = start + piece
            total += pieces.totals[part] * np.float32(np.exp(pieces.peaks[part] - highest))
        for i in range(0, D, LANES):
            mixed = zeros()
            for piece in range(n_pieces):
                part = start + piece
                factor = np.float32(np.exp(pieces.peaks[part] - highest)) / total
                mixed = fma(load(pieces.out, part * pitch + i), splat(factor), mixed)
            if i + LANES <= D:
                store(z, head * D + i, mixed)
            else:  # z has no gaps between heads
                store(spare, 0, mixed)
                for j in range(i, D):
                    z[head * D + j] = spare[j - i]
