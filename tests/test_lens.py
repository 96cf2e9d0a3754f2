"""The logit lens and the predictions, against norms and heads applied by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvgen import session
from kvgen.attention.lens import Lens, logit_lens
from kvgen.attention.predictions import PredictionLog, likeliest, probabilities_of
from kvgen.errors import UsageError
from tests import tiny
from tests.by_hand import (
    CASES,
    TOLERANCE,
    Exact,
    logits_by_hand,
    probabilities,
    record_states,
    run_by_hand,
)
from tests.conftest import BACKENDS, Loader

N_CANDIDATES = 4


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_lens_equals_final_norm_and_head_by_hand(
    name: str, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    run = record_states(model.engine, tiny.make_ids(20, seed=3), max_new_tokens=5)
    layers, positions = [0, model.config.n_layers - 1], [2, 3, 19, run.trace.length - 1]
    lens = logit_lens(
        model.engine, run, layers=layers, positions=positions, n_candidates=N_CANDIDATES
    )
    assert (lens.layers, lens.positions) == (tuple(layers), tuple(positions))
    assert lens.error < TOLERANCE
    by_hand = run_by_hand(model.params, run.trace.token_ids)
    at_layers = by_hand.states[[layer + 1 for layer in layers]][:, positions]
    assert_lens_is_of(lens, logits_by_hand(model.params, at_layers))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "cohere"])
def test_last_row_of_the_lens_is_the_model_itself(
    name: str, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    run = record_states(model.engine, tiny.make_ids(30, seed=5))
    lens = logit_lens(model.engine, run, n_candidates=N_CANDIDATES)
    assert lens.layers == tuple(range(model.config.n_layers))
    assert lens.positions == tuple(range(30))
    logits = model.logits(run.trace.token_ids)
    assert lens.final_ids.tolist() == logits.argmax(axis=1).tolist()
    assert lens.ids[-1, :, 0].tolist() == lens.final_ids.tolist()
    assert (lens.ranks[-1] == 1).all()
    np.testing.assert_array_equal(lens.final_probabilities[-1], lens.probabilities[-1, :, 0])
    assert_rows(
        probabilities(logits.astype(np.float64)),
        lens.ids[-1],
        lens.probabilities[-1],
        lens.entropies[-1],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama_dynamic", "phi3_longrope"])
def test_lens_holds_where_rotary_frequencies_change_on_the_way(
    name: str, backend: str, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    monkeypatch.setattr(session, "_LOGITS_AT_ONCE", 50 * model.config.vocab_size)  # three parts
    run = record_states(model.engine, tiny.make_ids(98, seed=3), max_new_tokens=6)
    assert run.run_again > 0
    lens = logit_lens(model.engine, run, positions=[0, 60, 97, 102])
    assert lens.error < TOLERANCE
    states = run_by_hand(model.params, run.trace.token_ids).states[1:, [0, 60, 97, 102]]
    assert_lens_is_of(lens, logits_by_hand(model.params, states))


@pytest.mark.parametrize("backend", BACKENDS)
def test_lens_is_the_same_in_parts(
    backend: str, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gemma3", backend=backend, cache_dtype="f32")
    run, heard = record_states(model.engine, tiny.make_ids(30, seed=7)), []
    positions = [29, 4, 5, 6, 11, 23]  # in any order
    whole = logit_lens(model.engine, run, positions=positions, on_rows=heard.append)
    assert sum(heard) == (model.config.n_layers + 1) * len(positions)
    monkeypatch.setattr(session, "_LOGITS_AT_ONCE", 2 * model.config.vocab_size)
    heard.clear()
    parts = logit_lens(model.engine, run, positions=positions, on_rows=heard.append)
    assert sum(heard) == (model.config.n_layers + 1) * len(positions)
    assert max(heard) == 2
    assert parts.positions == whole.positions == (4, 5, 6, 11, 23, 29)
    np.testing.assert_array_equal(parts.ids, whole.ids)
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, atol=1e-6)
    np.testing.assert_allclose(parts.entropies, whole.entropies, atol=1e-5)
    assert parts.error < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_of_the_lens_tells_of_damaged_states(
    backend: str, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gpt2", backend=backend, cache_dtype="f32")
    run = record_states(model.engine, tiny.make_ids(9))
    assert run.states is not None
    states = run.states.copy()
    states[-1, 4, 7] += 3
    monkeypatch.setattr(session, "_LOGITS_AT_ONCE", 2 * model.config.vocab_size)
    found = logit_lens(model.engine, replace(run, states=states))
    damaged = logits_by_hand(model.params, states[-1].astype(np.float64))
    expected = np.abs(damaged - model.logits(run.trace.token_ids)).max()
    assert found.error == pytest.approx(expected, abs=TOLERANCE)
    assert expected > 100 * TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_end_where_a_stop_id_ends_the_run(backend: str, tiny_model: Loader) -> None:
    engine = tiny_model("qwen2", backend=backend, cache_dtype="f32").engine
    ids = tiny.make_ids(8, seed=2)
    chosen = record_states(engine, ids, max_new_tokens=5).trace.token_ids[8:]
    stopped = record_states(engine, ids, max_new_tokens=5, stop_ids=chosen[1:2])
    assert stopped.trace.length == 9 and stopped.sampled_last == chosen[1]
    assert stopped.states is not None and stopped.states.shape[1] == 9
    lens = logit_lens(engine, stopped)
    assert lens.positions == tuple(range(9)) and lens.error < TOLERANCE
    assert lens.final_ids[-1] == chosen[1]


def test_lens_needs_the_states(tiny_model: Loader) -> None:
    model = tiny_model("gpt2", backend="numpy")
    run = replace(record_states(model.engine, tiny.make_ids(4)), states=None)
    with pytest.raises(UsageError, match="a lens needs the residual stream"):
        logit_lens(model.engine, run)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2", "granite"])
@pytest.mark.parametrize("n_new", [0, 1, 5])
def test_predictions_equal_the_softmax_of_all_logits(
    name: str, backend: str, n_new: int, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    run = record_states(model.engine, tiny.make_ids(21, seed=9), max_new_tokens=n_new)
    predicted, ids = run.predictions, list(run.trace.token_ids)
    assert predicted is not None and len(ids) == 21 + max(0, n_new - 1)
    exact = probabilities(model.logits(ids, cache=False).astype(np.float64))
    assert_rows(exact, predicted.ids, predicted.probabilities, predicted.entropies)
    following = ids[1:] if run.sampled_last is None else [*ids[1:], run.sampled_last]
    np.testing.assert_allclose(
        predicted.next_probabilities[: len(following)],
        exact[np.arange(len(following)), following],
        atol=TOLERANCE,
    )
    assert np.isnan(predicted.next_probabilities).tolist() == [
        n_new == 0 and position == len(ids) - 1 for position in range(len(ids))
    ]


@pytest.mark.parametrize(("name", "length"), [("llama_gqa", 17), ("llama_dynamic", 104)])
def test_predictions_are_the_same_in_parts(
    name: str, length: int, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_model(name, backend="numpy").engine
    whole = record_states(engine, tiny.make_ids(length), max_new_tokens=3).predictions
    monkeypatch.setattr(session, "_LOGITS_AT_ONCE", 5 * engine.config.vocab_size)
    parts = record_states(engine, tiny.make_ids(length), max_new_tokens=3).predictions
    assert whole is not None and parts is not None
    np.testing.assert_array_equal(parts.ids, whole.ids)
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, atol=TOLERANCE)
    np.testing.assert_allclose(parts.next_probabilities, whole.next_probabilities, atol=TOLERANCE)


def test_predictions_begin_anew_where_the_prompt_is_fed_again() -> None:
    logits = np.float32([[1, 2, 3], [4, 3, 1]])
    log = PredictionLog([2, 0], n_candidates=1)
    log.hear(0, logits)
    log.hear(0, logits[:, ::-1])
    predicted = log.predictions([])
    assert predicted.ids.tolist() == [[0], [2]]
    first = float(probabilities(np.array([3.0, 2.0, 1.0]))[0])
    np.testing.assert_allclose(predicted.next_probabilities, [first, np.nan], rtol=1e-6)


@pytest.mark.parametrize("n_candidates", [1, 2, 5, 40, 999])
def test_of_equal_tokens_the_lowest_ids_are_named(n_candidates: int) -> None:
    # Soft caps and untrained tokens make equal logits, so the cut may go through them.
    logits = np.random.default_rng(3).integers(0, 4, (7, 999)).astype(np.float32)
    found = likeliest(logits, n_candidates)
    for row, ids in zip(logits, found.ids, strict=True):
        order = sorted(range(999), key=lambda token: (-row[token], token))
        assert ids.tolist() == order[:n_candidates]
    assert found.ids[:, 0].tolist() == logits.argmax(axis=1).tolist()


def test_far_and_even_logits_keep_their_probabilities() -> None:
    logits = np.float32([[0, 0, 0, 0], [1e4, -1e4, 0, 3], [-1e38, 0, 1e38, 1]])
    found = likeliest(logits, 9)
    assert found.ids.shape == (3, 4)
    np.testing.assert_allclose(found.entropies, [np.log(4), 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.probabilities[0], 0.25)
    np.testing.assert_array_equal(found.probabilities[1:], [[1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(probabilities_of(logits, [3, 0, 1]), np.float32([0.25, 1, 0]))


def assert_lens_is_of(lens: Lens, logits: Exact) -> None:
    """Every number of a lens, from the logits [N, P, V] that each layer would give."""
    exact = probabilities(logits)
    for layer in range(len(lens.layers)):
        assert_rows(exact[layer], lens.ids[layer], lens.probabilities[layer], lens.entropies[layer])
        own = exact[layer, np.arange(len(lens.positions)), lens.final_ids]
        np.testing.assert_allclose(lens.final_probabilities[layer], own, atol=TOLERANCE)
        # How many are more probable; others may be as close as rounding, which makes a range.
        behind = logits[layer] - logits[layer, np.arange(len(own)), lens.final_ids][:, None]
        best, worst = (behind > TOLERANCE).sum(axis=1), (behind > -TOLERANCE).sum(axis=1)
        assert (best + 1 <= lens.ranks[layer]).all() and (lens.ranks[layer] <= worst).all()
        assert (worst - best <= 3).all()
    assert lens.final_ids.tolist() == logits[-1].argmax(axis=1).tolist()


def assert_rows(exact: Exact, ids: np.ndarray, chances: np.ndarray, entropies: np.ndarray) -> None:
    """The likeliest tokens of rows of probabilities [P, V], ties within rounding allowed."""
    best = -np.sort(-exact, axis=1)[:, : ids.shape[1]]
    np.testing.assert_allclose(chances, best, rtol=0, atol=TOLERANCE)
    named = np.take_along_axis(exact, ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(named, best, rtol=0, atol=TOLERANCE)
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    expected = -(exact * np.log(np.maximum(exact, 1e-300))).sum(axis=1)
    np.testing.assert_allclose(entropies, expected, rtol=0, atol=2 * TOLERANCE)
