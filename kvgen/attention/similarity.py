"""Dot product, cosine and distance of queries and keys: do they choose the same key?

T positions, N layers and H heads of a trace, D the size of a query and a key.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.engine import formula
from kvgen.engine.machine import usable_cores
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace, LayerTrace

_NUMBERS_AT_ONCE = 2**20  # dot products of a block of rows: 4 MiB, and a few arrays as large
_ROUNDING = 1e-6  # of |q| |k|: how far float32 may be from a dot product of a head's size
_SAMPLED_ROWS = 8  # of each head, for the identity

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """In how many rows another measure chooses the key with the greatest dot product, [N, H]."""

    cosine: Counts  # rows where the key with the greatest cosine is that key
    distance: Counts  # rows where the key with the least |q - k| is that key
    rows: Counts  # rows that were counted: those with two keys to choose from, or more

    @property
    def cosine_shares(self) -> FloatArray:
        """The part of the counted rows, float32 [N, H]; NaN where none was counted."""
        return _part(self.cosine, self.rows)

    @property
    def distance_shares(self) -> FloatArray:
        """The part of the counted rows, float32 [N, H]; NaN where none was counted."""
        return _part(self.distance, self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """How often three measures of a query and a key choose the same key, and how they belong."""

    all_keys: Agreement
    later_keys: Agreement  # without key 0, on which a head rests that finds nothing
    identity: float  # greatest ||q-k|^2 - (|q|^2 + |k|^2 - 2 q.k)| / (|q|^2 + |k|^2)
    n_pairs: int  # pairs of a query and a key that the identity was checked on


def compare_measures(trace: AttentionTrace) -> Similarity:
    """Choose a key for every query by dot product, by cosine and by distance, and compare.

    Keys that a query does not see, by its window or because they come later, are left out. Keys
    whose dot products differ by no more than rounding count as the same key. One block of rows
    of one key/value head is in memory at a time for each core.

    The scores of attention are dot products; the identity |q - k|^2 = |q|^2 + |k|^2 - 2 q.k says
    what distance adds to them. It is checked on differences q - k of some rows of each head, in
    float64.
    """
    groups = [group for layer in trace.layers for group in layer.groups()]
    with ThreadPoolExecutor(usable_cores()) as pool:
        counts = list(pool.map(_count, groups))
        checked = list(pool.map(_check_identity, groups))
    shape = len(trace.layers), len(trace.heads)

    def agreement(part: int) -> Agreement:
        cosine, distance, rows = (
            np.concatenate([each[part][kind] for each in counts]).reshape(shape)
            for kind in range(3)
        )
        return Agreement(cosine=cosine, distance=distance, rows=rows)

    return Similarity(
        all_keys=agreement(0),
        later_keys=agreement(1),
        identity=max(error for error, _ in checked),
        n_pairs=sum(n_pairs for _, n_pairs in checked),
    )


def distances(q: FloatArray, k: FloatArray) -> FloatArray:  # [T, D], [S, D] -> [T, S]
    """|q_i - k_j| of every query with every key of one head.

    >>> distances(np.float32([[1, 2]]), np.float32([[1, 2], [4, 6]])).tolist()
    [[0.0, 5.0]]
    """
    q, k = q.astype(np.float64), k.astype(np.float64)
    # In float64 a small difference of large lengths is still exact enough for float32.
    squares = (q * q).sum(axis=1)[:, None] + (k * k).sum(axis=1) - 2 * (q @ k.T)
    return np.asarray(np.sqrt(np.maximum(squares, 0)), np.float32)


class _Block(NamedTuple):
    """Some rows of the heads of one key/value head, and the keys up to the last of them."""

    products: FloatArray  # q . k, [H', R, S]
    lengths: FloatArray  # |k|, [S]
    slack: FloatArray  # how far a product may be below the greatest and count as equal, [H', R]


_Counted = tuple[list[Counts], list[Counts]]  # all keys, later keys: cosine, distance, rows [H']


def _count(group: LayerTrace) -> _Counted:
    T, n_heads, _ = group.q.shape
    keys = group.k[:, group.kv_heads[0]]
    lengths = np.linalg.norm(keys, axis=1)
    counts = np.zeros((2, 3, n_heads), np.int64)
    n_rows = max(1, _NUMBERS_AT_ONCE // (n_heads * T))
    for start in range(0, T, n_rows):
        stop = min(start + n_rows, T)
        queries = group.q[start:stop].swapaxes(0, 1)  # [H', R, D]
        slack = np.float32(_ROUNDING) * np.linalg.norm(queries, axis=2) * lengths[:stop].max()
        block = _Block(queries @ keys[:stop].T, lengths[:stop], slack)
        seen = formula.causal_mask(stop - start, stop, group.window)
        counts[0] += _same_keys(block, seen)
        seen[:, 0] = False
        counts[1] += _same_keys(block, seen)
    return list(counts[0]), list(counts[1])


def _same_keys(block: _Block, seen: formula.Mask) -> Counts:
    """Rows where cosine and distance choose the key of the dot product, and all rows, [3, H']."""
    products, lengths, slack = block
    counted = seen.sum(axis=1) >= 2
    enough = np.where(seen, products, -np.inf).max(axis=2) - slack
    # For one query q: cos = q.k / |k| by |q|, and |q - k|^2 = |q|^2 - 2 (q.k - |k|^2 / 2).
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    nearness = products - lengths * lengths / np.float32(2)
    same = []
    for numbers in (cosines, nearness):
        chosen = np.where(seen, numbers, -np.inf).argmax(axis=2)
        reached = np.take_along_axis(products, chosen[:, :, None], axis=2)[:, :, 0]
        same.append(((reached >= enough) & counted).sum(axis=1))
    return np.array([*same, np.full(len(products), counted.sum())])


def _check_identity(group: LayerTrace) -> tuple[float, int]:
    """The greatest relative difference of both sides, and how many pairs were looked at."""
    T = len(group.q)
    keys = group.k[:, group.kv_heads[0]].astype(np.float64)
    worst, n_pairs = 0.0, 0
    for row in sorted({int(row) for row in np.linspace(0, T - 1, min(T, _SAMPLED_ROWS))}):
        seen = keys[max(0, row + 1 - (group.window or T)) : row + 1]
        for q in group.q[row].astype(np.float64):
            differences = q - seen
            measured = (differences * differences).sum(axis=1)
            lengths = q @ q + (seen * seen).sum(axis=1)
            error = np.abs(measured - (lengths - 2 * (seen @ q)))
            relative = np.divide(error, lengths, out=np.zeros_like(error), where=lengths > 0)
            worst = max(worst, float(relative.max()))
            n_pairs += len(seen)
    return worst, n_pairs


def _part(counts: Counts, rows: Counts) -> FloatArray:
    nothing = np.full(counts.shape, np.nan)
    return np.asarray(np.divide(counts, rows, out=nothing, where=rows > 0), np.float32)
