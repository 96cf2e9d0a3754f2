"""Does the cache change anything? The same ids run in every way that must give the same logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from kvgen.bench.cost import cost_of
from kvgen.bench.rounding import measure_rounding
from kvgen.engine.contract import Engine
from kvgen.engine.finite import require_finite
from kvgen.engine.rope import length_dependent, positions_run_again
from kvgen.engine.tensors import FloatArray
from kvgen.session import Session

# Where a prompt is cut in two: single tokens, and both sides of blocks and chunks.
SPLITS = (1, 2, 7, 63, 64, 65, 127, 191, 192, 193)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One way to run the ids, held against one pass over all of them."""

    name: str
    max_abs_difference: float
    tolerance: float
    n_positions: int
    n_equal: int  # positions where the most probable token is the same
    near_ties: int  # others where the two best lie within rounding of each other
    miscounted: int = 0  # totals of rows read that differ from what the shapes say
    different_bits: int | None = None  # logits with other bits; None where bits play no part

    @property
    def passed(self) -> bool:
        wrong = self.miscounted or self.different_bits
        close = self.max_abs_difference <= self.tolerance and not wrong
        return close and self.n_equal + self.near_ties == self.n_positions


def verify(engine: Engine, reference: Engine, ids: Sequence[int]) -> Iterator[Check]:
    """Cached, cut at several places, after a truncate, and against the reference engine.

    All of them turn positions with the rotary frequencies of the whole length. Where these depend
    on the length, one check more lets them change.
    Raises NonFiniteError where the logits hold NaN or infinity.
    """
    whole = _whole(engine, ids)
    require_finite(whole, engine, ids)
    rounding, largest = measure_rounding(engine, ids), float(np.abs(whole).max())
    allowed = rounding.allowed(largest, engine.cache_dtype)
    one_by_one = _in_pieces(engine, ids, range(1, len(ids)))
    yield _check("cached, token by token", one_by_one, whole, allowed)
    yield _same_bits(engine, ids)
    cuts = [cut for cut in SPLITS if cut < len(ids)]
    of_cuts = [_check("", _in_pieces(engine, ids, [cut]), whole, allowed) for cut in cuts]
    yield _summary(f"cut at {', '.join(map(str, cuts))}", of_cuts)
    if len(ids) > 2:
        yield _check("cut back and fed again", _after_truncate(engine, ids), whole, allowed)
    yield _counted(engine, ids)
    changed = _across_a_change(engine, ids, chunk=None)
    if changed is not None:
        yield _check("across a change of frequencies", *changed, allowed)
    if engine.backend != reference.backend:
        assert engine.cache_dtype == reference.cache_dtype  # else more is rounded than `allowed`
        yield _check(f"the {reference.backend} reference", _whole(reference, ids), whole, allowed)


def _whole(engine: Engine, ids: Sequence[int]) -> FloatArray:  # [T] -> [T, V]
    """One pass; the engines cut it into chunks by themselves."""
    return _in_pieces(engine, ids, [])


def _in_pieces(engine: Engine, ids: Sequence[int], cuts: Sequence[int]) -> FloatArray:
    """The logits of all ids, fed in pieces that end at `cuts`."""
    session = Session(engine, len(ids))
    return np.concatenate(
        [
            session.feed(ids[begin:end], all_logits=True, rope_length=len(ids))
            for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)
        ]
    )


def _after_truncate(engine: Engine, ids: Sequence[int]) -> FloatArray:
    """Feed half, then other ids behind it, take those back, and go on: no stale row may be left."""
    session, half = Session(engine, len(ids)), len(ids) // 2
    feed = partial(session.feed, all_logits=True, rope_length=len(ids))
    first = feed(ids[:half])
    feed([ids[0]] * (len(ids) - half))
    session.rewind(half)
    return np.concatenate([first, feed(ids[half:-1]), feed(ids[-1:])])


def _across_a_change(
    engine: Engine, ids: Sequence[int], *, chunk: int | None
) -> tuple[FloatArray, FloatArray] | None:  # -> [N, V] and [N, V]
    """Decode steps around the first change of rotary frequencies, and one pass at each length."""
    ropes = length_dependent(engine.config)
    changes = [n for n in range(1, len(ids)) if positions_run_again(ropes, n)]
    if not changes:
        return None
    first, last = changes[0], min(changes[0] + 2, len(ids))
    session = Session(engine, len(ids))
    cached = [session.feed(ids[:first], chunk=chunk)]
    cached += [session.feed([ids[n]], chunk=chunk) for n in range(first, last)]
    whole = [Session(engine, n).feed(ids[:n], chunk=chunk) for n in range(first, last + 1)]
    return np.stack(cached), np.stack(whole)


def _same_bits(engine: Engine, ids: Sequence[int]) -> Check:
    """One feed after another, and from an empty cache, in chunks of one: the same bits of logits.

    Every sum has the same order then, so that rounding explains nothing. Compared at a few lengths,
    and around the first change of rotary frequencies.
    """
    lengths = sorted({2, len(ids) // 2 + 1, len(ids)})
    feed = partial(Session.feed, rope_length=len(ids), chunk=1)
    session = Session(engine, len(ids))
    one_by_one = [feed(session, [token]) for token in ids]
    cached = np.stack([one_by_one[length - 1] for length in lengths])
    again = np.stack([feed(Session(engine, length), ids[:length]) for length in lengths])
    changed = _across_a_change(engine, ids, chunk=1)
    if changed is not None:
        cached, again = np.concatenate([cached, changed[0]]), np.concatenate([again, changed[1]])
    check = _check(
        "token by token: the same bits with and without the cache", cached, again, allowed=0.0
    )
    different = int((cached.view(np.uint32) != again.view(np.uint32)).sum())
    return replace(check, different_bits=different)


def _check(name: str, got: FloatArray, whole: FloatArray, allowed: float) -> Check:
    require_finite(got)
    differences = np.abs(got - whole).max(axis=1)
    unequal = np.flatnonzero(got.argmax(axis=1) != whole.argmax(axis=1))
    best = np.partition(whole[unequal], -2, axis=1)[:, -2:]
    near = best[:, 1] - best[:, 0] <= 2 * differences[unequal]
    return Check(
        name=name,
        max_abs_difference=float(differences.max()),
        tolerance=allowed,
        n_positions=len(whole),
        n_equal=len(whole) - len(unequal),
        near_ties=int(near.sum()),
    )


def _summary(name: str, checks: Sequence[Check]) -> Check:
    """Several checks as one: the greatest difference, and all positions."""
    return Check(
        name=name,
        max_abs_difference=max(check.max_abs_difference for check in checks),
        tolerance=checks[0].tolerance,
        n_positions=sum(check.n_positions for check in checks),
        n_equal=sum(check.n_equal for check in checks),
        near_ties=sum(check.near_ties for check in checks),
    )


def _counted(engine: Engine, ids: Sequence[int]) -> Check:
    """The rows that a prefill and decode steps read, against what windows and lengths say."""
    cost, session, wrong = cost_of(engine), Session(engine, len(ids)), 0
    split = max(1, len(ids) - 4)
    for begin, end in zip([0, *range(split, len(ids))], [*range(split, len(ids) + 1)], strict=True):
        session.feed(ids[begin:end], rope_length=len(ids))
        for layer, totals in enumerate(zip(session.rows_read.k, session.rows_read.v, strict=True)):
            expected = engine.config.n_heads * cost.visible_in(layer, begin, end - begin)
            wrong += sum(int(total != expected) for total in totals)
    return Check(
        name="rows of K and V read, counted",
        max_abs_difference=0.0,
        tolerance=0.0,
        n_positions=0,
        n_equal=0,
        near_ties=0,
        miscounted=wrong,
    )
