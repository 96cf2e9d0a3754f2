"""Which kept rows does a decode step need? One row is changed at a time, and the step runs again.

A row is needed if the logits change with it. K, V and Q are all kept here, and attention takes all
three out of the cache, so that an old query has the same chance to matter as an old key: engines
read what they compute, not what this file believes. The same question is asked of a pass without a
cache, where old queries are made again, and of attention without its causal mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from kvgen.attention.what_if import EditingEngine
from kvgen.bench.plan import MOST_POSITIONS
from kvgen.choices import Backend, RowKind
from kvgen.engine.cache import Held, KeyValueCache
from kvgen.engine.contract import Engine
from kvgen.engine.edits import Edit
from kvgen.engine.tensors import FloatArray
from kvgen.session import Session

# A random row is as large as the layer's rows are. One that changes nothing is tried in these sizes
# and signs too: a key must draw some attention to be seen, a value must outweigh a small weight.
_FACTORS: dict[RowKind, tuple[int, ...]] = {
    "k": (1, 32, -32),
    "v": (1, 64, 4096),
    "q": (1, 32, -32),
}
_LARGEST = 6e4  # fits a float16 cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """Old rows of one kind in one layer, each replaced by a random one before a decode step.

    A change of 0 means the same logits to the bit.
    """

    backend: Backend
    step: int  # the decode step, from 0 on
    layer: int
    row: RowKind
    positions: tuple[int, ...]  # ascending, all before the step's own
    max_abs_logit_change: tuple[float, ...]  # for each of the positions
    first_visible: int  # the first position inside the layer's window
    # Row v: positions whose weight is so small that rounding hides every other value. There K is
    # replaced too, by a key that draws attention, and the change is that by V beside this key.
    with_other_key: tuple[int, ...] = ()
    q_live: float | None = None  # row q: the change where the step's own query is replaced

    @property
    def n_changing(self) -> int:
        """Positions whose row changes the logits."""
        return sum(change > 0 for change in self.max_abs_logit_change)

    @property
    def n_visible(self) -> int:
        """Positions inside the layer's window."""
        return sum(position >= self.first_visible for position in self.positions)

    @property
    def as_expected(self) -> bool:
        """Visible rows of K and V matter, and no others do; of Q the live one alone does."""
        if self.row == "q":
            return self.n_changing == 0 and bool(self.q_live)
        return all(
            (change > 0) == (position >= self.first_visible)
            for position, change in zip(self.positions, self.max_abs_logit_change, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """All old queries of a layer replaced by random ones, in a pass over the whole text."""

    backend: Backend
    layer: int
    n_positions: int
    max_abs_logit_change: float  # of the last position; 0: the same to the bit
    next_rows_change: float | None  # greatest change of a K or V of the next layer; None: no next


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterToken:
    """What another last token changes in the rows of K and V before it, in any layer."""

    causal: tuple[float, ...]  # [S - 1] greatest change of a row, by position; 0: none to the bit
    unmasked: tuple[float, ...]  # the same without the causal mask


def change_kept_rows(
    engine: Engine,
    ids: Sequence[int],
    *,
    seed: int,
    step: int = 0,
    most_positions: int = MOST_POSITIONS,
    on_row: Callable[[], None] = lambda: None,
) -> Iterator[Intervention]:
    """Run the last of the ids as a decode step, with one kept row after another changed.

    Each row becomes random numbers, and is put back afterwards. Yields K, V and Q of each layer in
    turn; `on_row` hears of every row.
    """
    before, random = len(ids) - 1, np.random.default_rng(seed)
    session, cache = _keeping_queries(engine, len(ids))
    session.feed(ids[:before], rope_length=len(ids))
    expected = session.feed(ids[before:])
    session.require_finite(expected)

    def with_rows(layer: int, position: int, rows: dict[RowKind, FloatArray]) -> FloatArray:
        """The step's logits with these rows of one position replaced."""
        session.rewind(before)
        with ExitStack() as stack:
            for kind, row in rows.items():
                stack.enter_context(cache.with_row(kind, layer, position, row))
            return session.feed(ids[before:])

    def random_row(kind: RowKind) -> FloatArray:
        shape = cache.row(kind, 0, 0).shape
        return (random.standard_normal(shape) * sizes[kind]).astype(np.float32)

    def larger(kind: RowKind, row: FloatArray) -> Iterator[FloatArray]:
        return (np.clip(factor * row, -_LARGEST, _LARGEST) for factor in _FACTORS[kind])

    def changed_by(kind: RowKind, layer: int, position: int) -> float:
        """The change of the logits by the first row that changes them, or 0."""
        row = random_row(kind)
        on_row()
        for other in larger(kind, row):
            change = _change(with_rows(layer, position, {kind: other}), expected)
            if change or position < first_visible:
                return change
        if kind != "v":
            return 0.0
        for key in larger("k", random_row("k")):
            alone = with_rows(layer, position, {"k": key})
            change = _change(with_rows(layer, position, {"k": key, "v": row}), alone)
            if change:
                with_other_key.append(position)
                return change
        return 0.0

    positions = list(range(before))
    if before > most_positions:
        positions = np.sort(random.choice(before, most_positions, replace=False)).tolist()
    for layer in range(engine.config.n_layers):
        first_visible = max(0, len(ids) - (engine.config.window(layer) or len(ids)))
        sizes = _sizes(cache, layer, before)
        for kind in get_args(RowKind):
            with_other_key: list[int] = []
            live = None
            if kind == "q":
                cache.held = Held(layer, before, before + 1)
                live = changed_by(kind, layer, before)
                cache.held = None
            changes = [changed_by(kind, layer, position) for position in positions]
            yield Intervention(
                backend=engine.backend,
                step=step,
                layer=layer,
                row=kind,
                positions=tuple(positions),
                max_abs_logit_change=tuple(changes),
                first_visible=first_visible,
                with_other_key=tuple(with_other_key),
                q_live=live,
            )


def spoil_old_queries(engine: Engine, ids: Sequence[int]) -> float:
    """Write NaN over every old query of every layer: the change of the last step's logits."""
    before = len(ids) - 1
    session, cache = _keeping_queries(engine, len(ids))
    session.feed(ids[:before], rope_length=len(ids))
    expected = session.feed(ids[before:])
    session.rewind(before)
    assert cache.q is not None
    cache.q[:, :, :before] = np.nan
    return _change(session.feed(ids[before:]), expected)


def change_recomputed_queries(
    engine: Engine, ids: Sequence[int], *, seed: int, on_pass: Callable[[], None] = lambda: None
) -> Iterator[Recomputed]:
    """Run all ids from an empty cache, with the old queries of one layer after another changed."""
    before, random, n_layers = len(ids) - 1, np.random.default_rng(seed), engine.config.n_layers
    session, cache = _keeping_queries(engine, len(ids))
    assert cache.q is not None
    expected = session.feed(ids)
    sizes = [_sizes(cache, layer, before)["q"] for layer in range(n_layers)]
    rows = [(cache.keys(layer).copy(), cache.values(layer).copy()) for layer in range(n_layers)]
    for layer in range(n_layers):
        old = cache.q[layer, :, :before]
        old[:] = random.standard_normal(old.shape) * sizes[layer]
        cache.held = Held(layer, 0, before)  # all other layers write theirs again
        session.rewind()
        logits = session.feed(ids)
        on_pass()
        following = None
        if layer + 1 < n_layers:
            now = (cache.keys(layer + 1), cache.values(layer + 1))
            following = max(
                _change(new[:before], earlier[:before])
                for new, earlier in zip(now, rows[layer + 1], strict=True)
            )
        yield Recomputed(
            backend=engine.backend,
            layer=layer,
            n_positions=before,
            max_abs_logit_change=_change(logits, expected),
            next_rows_change=following,
        )


def change_last_token(engine: EditingEngine, ids: Sequence[int], *, seed: int) -> LaterToken:
    """Run the ids with another last token, with the causal mask and without."""
    others = np.delete(np.arange(engine.config.vocab_size), ids[-1])
    other = int(np.random.default_rng(seed).choice(others)) if len(others) else ids[-1]
    changes = []
    for edit in (None, Edit(kind="unmasked")):
        one, two = (_all_rows(engine, each, edit) for each in (ids, [*ids[:-1], other]))
        difference = np.abs(one - two)[:, :-1]
        changes.append(tuple(difference.max(axis=(0, 2, 3)).tolist()))
    return LaterToken(causal=changes[0], unmasked=changes[1])


def _all_rows(engine: EditingEngine, ids: Sequence[int], edit: Edit | None) -> FloatArray:
    """K and V of all layers, [2 L, S, G, D]."""
    session = Session(engine, len(ids))
    engine.forward(ids, session.cache, edit=edit)
    layers = range(engine.config.n_layers)
    return np.stack(
        [read(layer) for read in (session.cache.keys, session.cache.values) for layer in layers]
    )


def _keeping_queries(engine: Engine, capacity: int) -> tuple[Session, KeyValueCache]:
    cache = engine.new_cache(capacity, queries=True)
    assert isinstance(cache, KeyValueCache)
    return Session(engine, capacity, cache=cache), cache


def _sizes(cache: KeyValueCache, layer: int, n_rows: int) -> dict[RowKind, float]:
    """The root mean squares of a layer's first kept rows, of each kind."""
    assert cache.q is not None
    rows: dict[RowKind, FloatArray] = {
        "k": cache.keys(layer)[:n_rows],
        "v": cache.values(layer)[:n_rows],
        "q": cache.q[layer, :, :n_rows],
    }
    squares = {kind: np.square(of, dtype=np.float64).mean() for kind, of in rows.items()}
    return {kind: float(np.sqrt(mean)) or 1.0 for kind, mean in squares.items()}


def _change(one: FloatArray, other: FloatArray) -> float:
    """The greatest difference; above 0 wherever a bit differs, infinite where it is no number."""
    if np.array_equal(_bits(one), _bits(other)):
        return 0.0
    greatest = float(np.abs(one - other).max())
    return max(greatest, 2.0**-149) if np.isfinite(greatest) else float("inf")


def _bits(numbers: FloatArray) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(numbers, np.float32).view(np.uint32)
