"""Two recordings of the same number of tokens side by side: how far their weights differ.

The distance of two rows w and w' is their total-variation distance, half the sum of |w_j - w'_j|
(Levin, Peres and Wilmer, Markov Chains and Mixing Times, proposition 4.2): 0 where they are equal,
1 where they have no key in common. It is the weight that has to move from one key to another.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvgen.attention.steps import attention_weights
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace
from kvgen.errors import UsageError

N_MOVED = 10  # weights that a comparison lists
_OF_A_HEAD = 2  # at most so many of them from one head
ROUNDING = 1e-6  # differences up to here are rounding of float32, of other kernels for example


class MovedWeight(NamedTuple):
    """A weight of query on key before and after."""

    layer: int
    head: int
    query: int
    key: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """The weight after, less that before."""
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far the weights of N layers and H heads differ between two recordings of T tokens."""

    before: AttentionTrace
    after: AttentionTrace
    layers: tuple[int, ...]  # N numbers, ascending
    heads: tuple[int, ...]  # H numbers, ascending
    rows: FloatArray  # [N, H, T] distance of each row, 0..1
    moved: tuple[MovedWeight, ...]  # the weights that moved most, the greatest change first

    @property
    def means(self) -> FloatArray:
        """The mean distance of each head's rows [N, H]."""
        return np.asarray(self.rows.mean(axis=2))

    @property
    def length(self) -> int:
        """Tokens T of each recording."""
        return self.before.length

    def rows_of(self, layer: int, head: int) -> FloatArray:
        """The distance of each row of one head [T]."""
        return np.asarray(self.rows[self.layers.index(layer), self.heads.index(head)])

    def change(self, layer: int, head: int) -> FloatArray:
        """The weights after less those before of one head [T, T], computed again."""
        before, after = self._maps(layer, head)
        return after - before

    def moved_in(self, layer: int, head: int, count: int) -> list[MovedWeight]:
        """The `count` weights of one head that moved most."""
        before, after = self._maps(layer, head)
        return _moved(before, after, layer, head, count)

    def _maps(self, layer: int, head: int) -> tuple[FloatArray, FloatArray]:
        before, after = (
            attention_weights(trace.layer(layer).only(head))[0]
            for trace in (self.before, self.after)
        )
        return before, after


def common_places(a: AttentionTrace, b: AttentionTrace) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers of the layers, and of the heads, that both recordings have, ascending.

    Raises UsageError where the recordings cannot be compared: other numbers of tokens, models with
    other numbers of heads, or no layer or head in common.
    """
    if a.length != b.length:
        raise UsageError(
            f"the recordings have {a.length} and {b.length} tokens: compare texts with the same "
            "number of tokens"
        )
    n_heads, others = (one.layers[0].group_size * one.layers[0].k.shape[1] for one in (a, b))
    if n_heads != others:
        raise UsageError(
            f"the recordings are of models with {n_heads} and {others} heads: compare models with "
            "the same number of heads"
        )
    layers = _common([one.layer for one in a.layers], [one.layer for one in b.layers], "layer")
    return layers, _common(a.heads, b.heads, "head")


def _common(ours: Sequence[int], theirs: Sequence[int], what: str) -> tuple[int, ...]:
    both = tuple(sorted(set(ours) & set(theirs)))
    if not both:
        first, second = (", ".join(map(str, sorted(one))) for one in (ours, theirs))
        raise UsageError(
            f"the recordings have no {what} in common, the first has {first} and the second "
            f"{second}: record the same {what}s in both"
        )
    return both


def compare(
    a: AttentionTrace,
    b: AttentionTrace,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Difference:
    """The difference of `b` (after) from `a` (before), in the layers and heads that both have.

    `layers` and `heads` name some of these; None: all. The maps of one key/value head are in memory
    at a time. Raises the errors of `common_places`.

    A row that goes from [.5, .5, 0] to [.5, .2, .3] has the distance (0 + .3 + .3) / 2 = .3.
    """
    common_layers, common_heads = common_places(a, b)
    layers = common_layers if layers is None else tuple(sorted(layers))
    heads = common_heads if heads is None else tuple(sorted(heads))
    rows = np.zeros((len(layers), len(heads), a.length), np.float32)
    moved: list[MovedWeight] = []
    for row, layer in enumerate(layers):
        other = b.layer(layer)
        for group in a.layer(layer).only(*heads).groups():
            before = attention_weights(group)
            after = attention_weights(other.only(*group.heads))
            columns = [heads.index(head) for head in group.heads]
            rows[row, columns] = np.abs(after - before).sum(axis=2) / 2
            for head, old, new in zip(group.heads, before, after, strict=True):
                moved += _moved(old, new, layer, head, _OF_A_HEAD)
    return Difference(
        before=a,
        after=b,
        layers=layers,
        heads=heads,
        rows=rows,
        moved=tuple(sorted(moved, key=_greatest_first)[:N_MOVED]),
    )


def _moved(
    before: FloatArray, after: FloatArray, layer: int, head: int, count: int
) -> list[MovedWeight]:
    """The `count` weights of maps [T, T] that moved most; equal ones in the order of the map."""
    sizes = np.abs(after - before)
    moved = []
    for _ in range(min(count, sizes.size)):
        query, key = divmod(int(sizes.argmax()), sizes.shape[1])
        if not sizes[query, key] > ROUNDING:
            break
        sizes[query, key] = 0
        old, new = float(before[query, key]), float(after[query, key])
        moved.append(MovedWeight(layer, head, query, key, old, new))
    return moved


def _greatest_first(weight: MovedWeight) -> tuple[float, int, int, int, int]:
    return (-abs(weight.change), *weight[:4])


def differing_positions(before: Sequence[Hashable], after: Sequence[Hashable]) -> list[int]:
    """The positions at which two texts of the same length have other tokens (ids or bytes)."""
    return [place for place, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1]
