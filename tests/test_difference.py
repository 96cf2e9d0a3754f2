"""Differences of two recordings: distances by hand, and which recordings can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvgen.attention.difference import (
    N_MOVED,
    Difference,
    common_places,
    compare,
    differing_positions,
)
from kvgen.attention.export import export
from kvgen.attention.record import RecordedRun, record
from kvgen.attention.saved import read_export
from kvgen.engine.trace import AttentionTrace, LayerTrace
from kvgen.errors import UsageError
from kvgen.sampling import Sampler, SamplingOptions
from tests import tiny
from tests.conftest import Loader
from tests.test_render import make_trace

T, CHANGED = 20, (3, 11)  # tokens, and the positions at which the two texts differ


def recorded(
    tiny_model: Loader,
    name: str,
    ids: Sequence[int],
    *,
    layers: Sequence[int] = (0, 1, 2),
    heads: Sequence[int] | None = None,
) -> RecordedRun:
    engine = tiny_model(name).engine
    sampler = Sampler(SamplingOptions())
    return record(engine, ids, layers=layers, heads=heads, sampler=sampler)


def two_texts() -> tuple[list[int], list[int]]:
    before = tiny.make_ids(T, seed=3)
    after = [
        token if place not in CHANGED else (token + 1) % 131 for place, token in enumerate(before)
    ]
    return before, after


def compared(tiny_model: Loader, name: str) -> Difference:
    before, after = (recorded(tiny_model, name, ids).trace for ids in two_texts())
    return compare(before, after)


def weights_by_hand(trace: LayerTrace, head: int) -> np.ndarray:
    """One head's map [T, T] in float64, query by query."""
    column, kv_head = trace.heads.index(head), head // trace.group_size
    weights = np.zeros((len(trace.q), len(trace.q)))
    for query, q in enumerate(trace.q[:, column].astype(np.float64)):
        first = 0 if trace.window is None else max(0, query - trace.window + 1)
        scores = trace.k[first : query + 1, kv_head].astype(np.float64) @ q * trace.scale
        if trace.softcap is not None:
            scores = trace.softcap * np.tanh(scores / trace.softcap)
        exponentials = np.exp(scores - scores.max())
        weights[query, first : query + 1] = exponentials / exponentials.sum()
    return weights


@pytest.mark.parametrize("name", ["llama_gqa", "mistral", "gemma2", "gpt2"])
def test_distances_are_half_the_sum_of_what_each_weight_moved(
    name: str, tiny_model: Loader
) -> None:
    """Grouped queries, windows of 9 of 20 tokens, capped scores."""
    difference = compared(tiny_model, name)
    assert difference.rows.shape == (len(difference.layers), len(difference.heads), T)
    for row, layer in enumerate(difference.layers):
        for column, head in enumerate(difference.heads):
            before, after = (
                weights_by_hand(trace.layer(layer), head)
                for trace in (difference.before, difference.after)
            )
            distances = [sum(abs(w - v) for v, w in zip(*pair, strict=True)) / 2
                         for pair in zip(before, after, strict=True)]  # fmt: skip
            np.testing.assert_allclose(difference.rows[row, column], distances, atol=1e-5)
            np.testing.assert_allclose(difference.rows_of(layer, head), distances, atol=1e-5)
            assert difference.means[row, column] == pytest.approx(np.mean(distances), abs=1e-5)
            np.testing.assert_allclose(difference.change(layer, head), after - before, atol=1e-5)


@pytest.mark.parametrize("name", ["llama_gqa", "mistral"])
def test_the_weights_that_moved_most_are_found_among_all(name: str, tiny_model: Loader) -> None:
    difference = compared(tiny_model, name)
    expected = []
    for layer in difference.layers:
        for head in difference.heads:
            change = np.abs(difference.change(layer, head))
            places = sorted(np.ndindex(change.shape), key=lambda place: -change[place])[:2]
            expected += [(change[place], layer, head, *place) for place in places]
    expected.sort(key=lambda one: -one[0])
    assert [weight[:4] for weight in difference.moved] == [one[1:] for one in expected[:N_MOVED]]
    for weight, (size, *_) in zip(difference.moved, expected, strict=False):
        maps = [
            weights_by_hand(trace.layer(weight.layer), weight.head)
            for trace in (difference.before, difference.after)
        ]
        assert (weight.before, weight.after) == pytest.approx(
            tuple(one[weight.query, weight.key] for one in maps), abs=1e-5
        )
        assert abs(weight.change) == pytest.approx(size, abs=1e-5)
    strongest = difference.moved[0]
    assert difference.moved_in(strongest.layer, strongest.head, 3)[0][:4] == strongest[:4]
    sizes = [abs(weight.change) for weight in difference.moved_in(1, 2, 5)]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 5


def test_rows_before_the_first_different_token_are_the_same(tiny_model: Loader) -> None:
    difference = compared(tiny_model, "llama_gqa")
    assert difference.rows[:, :, : CHANGED[0]].max() < 1e-6
    assert (difference.rows[:, :, CHANGED[0]] > 1e-4).any()


def a_map(weights: Sequence[Sequence[float]], *, layer: int = 0) -> AttentionTrace:
    """A trace whose head 0 has this map: keys are unit vectors, queries logarithms of weights."""
    rows = np.float32(weights)
    n = len(rows)
    q = np.log(np.maximum(rows, 1e-30)).astype(np.float32)[:, None]
    k = np.eye(n, dtype=np.float32)[:, None]
    one = LayerTrace(layer=layer, heads=(0,), group_size=1, scale=1.0, q=q, k=k, v=k, z=k)
    return AttentionTrace(token_ids=tuple(range(n)), n_prompt=n, layers=(one,))


def test_the_worked_example_of_the_docstring() -> None:
    before = a_map([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    after = a_map([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.2, 0.3]])
    difference = compare(before, after)
    np.testing.assert_allclose(difference.rows[0, 0], [0, 0, 0.3], atol=1e-6)
    assert difference.means[0, 0] == pytest.approx(0.1, abs=1e-6)
    assert [weight[:4] for weight in difference.moved] == [(0, 0, 2, 1), (0, 0, 2, 2)]
    assert [weight.change for weight in difference.moved] == pytest.approx([-0.3, 0.3], abs=1e-6)


def test_equal_changes_are_listed_in_the_order_of_the_map() -> None:
    before = a_map([[1, 0, 0], [0.25, 0.75, 0], [0.25, 0.75, 0]])
    after = a_map([[1, 0, 0], [0.75, 0.25, 0], [0.75, 0.25, 0]])
    changes = compare(before, after).moved_in(0, 0, 4)
    assert {abs(weight.change) for weight in changes} == {0.5}
    assert [weight[2:4] for weight in changes] == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_distance_is_one_where_no_key_is_shared() -> None:
    difference = compare(a_map([[1, 0], [1, 0]]), a_map([[1, 0], [0, 1]]))
    np.testing.assert_allclose(difference.rows[0, 0], [0, 1], atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 13])
def test_a_recording_does_not_differ_from_itself(length: int) -> None:
    trace = make_trace(length)
    difference = compare(trace, trace)
    assert not difference.rows.any() and difference.moved == ()
    assert difference.rows.shape == (2, 4, length) and difference.length == length


def test_a_saved_recording_does_not_differ_from_what_was_saved(
    tiny_model: Loader, tmp_path: Path
) -> None:
    recordings = [recorded(tiny_model, "llama_gqa", ids) for ids in two_texts()]
    read = []
    for recording, kind in zip(recordings, ("npz", "safetensors"), strict=True):
        path = tmp_path / f"saved.{kind}"
        path.write_bytes(export(recording, [b"a"] * T, facts={}, kind=kind))
        read.append(read_export(path).recording)
    for before, after in zip(recordings, read, strict=True):
        assert not compare(before.trace, after.trace).rows.any()
    fresh = compare(*(recording.trace for recording in recordings))
    again = compare(*(recording.trace for recording in read))
    np.testing.assert_array_equal(again.rows, fresh.rows)
    assert again.moved == fresh.moved


def test_what_both_have_is_compared(tiny_model: Loader) -> None:
    before, after = two_texts()
    whole = compared(tiny_model, "llama_gqa")
    part = compare(
        recorded(tiny_model, "llama_gqa", before, layers=(2, 0), heads=(0, 1, 3, 5)).trace,
        recorded(tiny_model, "llama_gqa", after, layers=(1, 2), heads=(1, 2, 5)).trace,
    )
    assert (part.layers, part.heads) == ((2,), (1, 5))
    np.testing.assert_allclose(part.rows, whole.rows[2:, [1, 5]], atol=1e-6)
    some = compare(whole.before, whole.after, layers=[2, 1], heads=[5, 0])
    assert (some.layers, some.heads) == ((1, 2), (0, 5))
    np.testing.assert_allclose(some.rows, whole.rows[1:, [0, 5]], atol=1e-6)
    assert {weight.head for weight in some.moved} <= {0, 5}


def test_models_may_share_keys_and_values_in_other_groups() -> None:
    before, after = make_trace(9, G=2), make_trace(9, G=4)
    difference = compare(before, after)
    for layer, head in np.ndindex(2, 4):
        maps = [weights_by_hand(trace.layers[layer], head) for trace in (before, after)]
        np.testing.assert_allclose(
            difference.rows[layer, head], np.abs(maps[1] - maps[0]).sum(axis=1) / 2, atol=1e-5
        )


def renumbered(trace: AttentionTrace, layers: Sequence[int]) -> AttentionTrace:
    named = zip(trace.layers, layers, strict=True)
    return replace(trace, layers=tuple(replace(one, layer=layer) for one, layer in named))


def test_what_cannot_be_compared_is_said_in_one_line() -> None:
    trace = make_trace(6)
    some = replace(trace, layers=tuple(one.only(2, 3) for one in trace.layers))
    others = replace(trace, layers=tuple(one.only(0) for one in trace.layers))
    for other, message in (
        (make_trace(9), "have 6 and 9 tokens: compare texts with the same number of tokens"),
        (make_trace(6, H=6), "of models with 4 and 6 heads: compare models with the same number"),
        (renumbered(trace, [4, 5]), "no layer in common, the first has 0, 1 and the second 4, 5"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(trace, other)
        with pytest.raises(UsageError, match=message):
            common_places(trace, other)
    with pytest.raises(UsageError, match="no head in common, the first has 2, 3 and the second 0"):
        compare(some, others)


def test_tokens_differ_where_their_ids_or_bytes_do() -> None:
    before, after = two_texts()
    assert differing_positions(before, after) == list(CHANGED)
    assert differing_positions([b"a", b"b"], [b"a", b"c"]) == [1]
    assert differing_positions([], []) == []
