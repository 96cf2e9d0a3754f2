"""Dot product, cosine and distance: which key they choose, by plain loops over rows and keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvgen.attention import similarity
from kvgen.attention.measures import measured
from kvgen.attention.similarity import compare_measures, distances
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import Canvas
from kvgen.render.head_map import MapView, head_map
from tests.conftest import Loader
from tests.test_maps import recorded
from tests.test_render import lines_of, make_recording, make_trace


def by_hand(trace: AttentionTrace, row: int, column: int, *, first_key: int) -> tuple[int, ...]:
    """Rows where cosine and distance choose the key of the dot product, and rows with a choice."""
    layer, head = trace.layers[row], trace.heads[column]
    same_cosine = same_distance = n_rows = 0
    for i in range(trace.length):
        first = max(first_key, i + 1 - (layer.window or trace.length))
        q = layer.q[i, column].astype(np.float64)
        keys = layer.k[first : i + 1, head // layer.group_size].astype(np.float64)
        if len(keys) < 2:
            continue
        products = [float(q @ key) for key in keys]
        cosines = [float(q @ key / np.linalg.norm(q) / np.linalg.norm(key)) for key in keys]
        far = [float(np.linalg.norm(q - key)) for key in keys]
        same_cosine += int(np.argmax(cosines) == np.argmax(products))
        same_distance += int(np.argmin(far) == np.argmax(products))
        n_rows += 1
    return same_cosine, same_distance, n_rows


# grouped queries; one key/value head and a window; a soft cap and windows; no groups; a window
FAMILIES = ["llama_gqa", "mistral", "gemma2", "gpt2", "gpt_neo"]


@pytest.mark.parametrize("at_once", [2**20, 90])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_keys_are_counted_as_by_hand(
    name: str, at_once: int, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "_NUMBERS_AT_ONCE", at_once)  # 90: rows in many blocks
    trace = recorded(tiny_model, name)[1].trace
    found = compare_measures(trace)
    for row in range(len(trace.layers)):
        for column in range(len(trace.heads)):
            for first_key, counts in enumerate((found.all_keys, found.later_keys)):
                one = (counts.cosine, counts.distance, counts.rows)
                numbers = tuple(int(each[row, column]) for each in one)
                assert numbers == by_hand(trace, row, column, first_key=first_key)


def test_rows_with_one_key_offer_no_choice() -> None:
    assert compare_measures(make_trace(5)).all_keys.rows.tolist() == [[4] * 4] * 2
    assert compare_measures(make_trace(5)).later_keys.rows.tolist() == [[3] * 4] * 2
    alone = compare_measures(make_trace(1)).all_keys
    assert not alone.rows.any() and np.isnan(alone.cosine_shares).all()
    trace = make_trace(5)
    narrow = replace(trace, layers=tuple(replace(layer, window=1) for layer in trace.layers))
    assert not compare_measures(narrow).all_keys.rows.any()


def test_the_three_measures_choose_three_keys() -> None:
    """The long key has the greatest product, a parallel one the cosine, a near one the distance."""
    trace = make_trace(3, H=1, G=1, D=2, layers=1)
    q = np.float32([[1, 0], [1, 0], [1, 0]])[:, None]
    k = np.float32([[9, 9], [0.1, 0], [1, 0.2]])[:, None]
    found = compare_measures(replace(trace, layers=(replace(trace.layers[0], q=q, k=k),)))
    assert found.all_keys.cosine.tolist() == [[0]] and found.all_keys.distance.tolist() == [[0]]
    # Without key 0 the near one has the greatest product.
    assert found.later_keys.rows.tolist() == [[1]]
    assert found.later_keys.cosine.tolist() == [[0]]
    assert found.later_keys.distance.tolist() == [[1]]
    assert found.later_keys.distance_shares.tolist() == [[1.0]]


def test_keys_of_one_length_are_ranked_alike_by_all_measures() -> None:
    trace = make_trace(40)
    layers = tuple(
        replace(layer, k=layer.k / np.linalg.norm(layer.k, axis=2, keepdims=True))
        for layer in trace.layers
    )
    agreed = compare_measures(replace(trace, layers=layers)).all_keys
    np.testing.assert_array_equal(agreed.cosine, agreed.rows)
    np.testing.assert_array_equal(agreed.distance, agreed.rows)


def test_the_same_key_twice_is_one_choice() -> None:
    """Where equal keys have products that differ by rounding alone, either of them is the same."""
    trace = make_trace(60, H=2, G=1, D=64, layers=1)
    layer = trace.layers[0]
    k = np.repeat(layer.k[:1], 60, axis=0)
    k *= 1 + np.random.RandomState(3).uniform(-1e-7, 1e-7, k.shape).astype(np.float32)
    agreed = compare_measures(replace(trace, layers=(replace(layer, k=k),))).all_keys
    assert agreed.cosine.tolist() == agreed.distance.tolist() == [[59, 59]]


def test_a_key_without_length_has_the_cosine_0() -> None:
    trace = make_trace(2, H=1, G=1, D=2, layers=1)
    q, k = np.float32([[1, 0], [1, 0]])[:, None], np.float32([[0, 0], [-1, 0]])[:, None]
    agreed = compare_measures(replace(trace, layers=(replace(trace.layers[0], q=q, k=k),))).all_keys
    assert agreed.cosine.tolist() == agreed.distance.tolist() == [[1]]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_identity_holds_and_is_looked_at(name: str, tiny_model: Loader) -> None:
    trace = recorded(tiny_model, name)[1].trace
    found = compare_measures(trace)
    assert 0 <= found.identity < 1e-14
    of_a_head = sum(
        min(row + 1, layer.window or trace.length)
        for layer in trace.layers
        for row in np.linspace(0, trace.length - 1, 8).astype(int).tolist()
    )
    assert found.n_pairs == of_a_head * len(trace.heads)


def test_distances_are_lengths_of_differences() -> None:
    random = np.random.RandomState(1)
    q, k = (random.standard_normal((n, 20)).astype(np.float32) * 30 for n in (5, 7))
    k[3] = q[2]
    expected = np.linalg.norm(q[:, None] - k, axis=2)
    np.testing.assert_allclose(distances(q, k), expected, rtol=1e-6, atol=1e-5)


def test_a_map_of_distances_hides_what_a_query_does_not_see(tiny_model: Loader) -> None:
    trace = recorded(tiny_model, "mistral")[1].trace
    numbers = measured(trace, "distance", layer=1, head=4, norms=None)
    layer = trace.layer(1)
    assert layer.window == 9
    assert np.isnan(numbers[12, :4]).all() and np.isnan(numbers[12, 13:]).all()
    expected = np.linalg.norm(layer.q[12, 4] - layer.k[4:13, layer.kv_head(4)], axis=1)
    np.testing.assert_allclose(numbers[12, 4:13], expected, rtol=1e-5)


def test_counting_does_not_write_to_the_trace() -> None:
    trace = make_trace(9)
    before = [(layer.q.copy(), layer.k.copy()) for layer in trace.layers]
    compare_measures(trace)
    for layer, (q, k) in zip(trace.layers, before, strict=True):
        np.testing.assert_array_equal(layer.q, q)
        np.testing.assert_array_equal(layer.k, k)


@pytest.mark.parametrize("width", [60, 100])
def test_a_map_of_distances_names_the_nearest_key(width: int) -> None:
    trace = make_trace(6, H=1, G=1, layers=1)
    canvas = Canvas(width, "glyphs")
    layer = trace.layers[0]
    tokens = [b"abcdef"[number : number + 1] for number in range(6)]
    for sink, title in (("keep", "nearest key"), ("split", "nearest other ")):
        view = MapView(show="distance", sink=sink)  # type: ignore[arg-type]
        map_ = head_map(make_recording(trace), tokens, layer=0, head=0, canvas=canvas, view=view)
        text = "\n".join(lines_of(map_, canvas))
        far = np.linalg.norm(layer.q[5, 0] - layer.k[:, 0], axis=1)
        first = 0 if sink == "keep" else 1
        nearest = first + int(far[first:].argmin())
        assert title in text
        assert f"{nearest:>4} {'abcdef'[nearest]:<7} {far[nearest]:.2f}".strip() in text
