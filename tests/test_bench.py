"""The benchmark: same work in both arms, counted; never a timing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from kvgen.attention.steps import attention_weights
from kvgen.bench.report import BenchPlan, BenchReport, Verification, spread
from kvgen.bench.run import bench
from kvgen.errors import UsageError
from kvgen.render.bench import bench_json
from kvgen.trace import Capture
from tests import tiny
from tests.conftest import BACKENDS, Loader

PROMPT = tuple(tiny.make_ids(9))
PLAN = BenchPlan(prompt_ids=PROMPT, n_gen=5, repetitions=2, arms=("on", "off"))
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module", params=BACKENDS)
def report(request: pytest.FixtureRequest, tiny_model: Loader) -> BenchReport:
    return bench(tiny_model("llama_gqa", backend=request.param).engine, PLAN)


def test_both_arms_choose_the_same_tokens(report: BenchReport) -> None:
    assert report.verification is not None
    assert report.verification.passed and report.verification.tokens_equal
    assert report.verification.max_abs_logit_difference < 5e-5


def test_the_fed_ids_are_the_greedy_ones(report: BenchReport, tiny_model: Loader) -> None:
    model = tiny_model("llama_gqa")
    pieces = model.generate(PROMPT, max_new_tokens=5)
    assert list(report.generated_ids) == [piece.token for piece in pieces]


def test_every_step_of_every_repetition_is_timed(report: BenchReport) -> None:
    assert [arm.cache for arm in report.arms] == ["on", "off"]
    for arm in report.arms:
        assert len(arm.prefill_seconds) == 2
        assert [len(samples) for samples in arm.step_seconds] == [5, 5]
        assert all(seconds > 0 for samples in arm.step_seconds for seconds in samples)


def test_positions_are_those_of_the_two_arms() -> None:
    assert PLAN.positions("on") == 9 + 5
    assert PLAN.positions("off") == 9 + 10 + 11 + 12 + 13 + 14
    assert PLAN.positions_per_pass == 14 + 69
    assert PLAN.total_positions == 3 * (14 + 69)


def test_progress_adds_up_to_the_plan(tiny_model: Loader) -> None:
    done: list[int] = []
    bench(tiny_model("gpt2").engine, replace(PLAN, arms=("on",)), on_progress=done.append)
    maps = PLAN.positions("on")  # one more pass to capture the attention
    assert sum(done) == replace(PLAN, arms=("on",)).total_positions + maps


def test_maps_are_what_each_arm_computed(report: BenchReport, tiny_model: Loader) -> None:
    engine = tiny_model("llama_gqa", backend="numpy").engine
    ids = [*PROMPT, *report.generated_ids]
    layer, head = report.head
    capture = Capture(engine.config, [layer], len(ids))
    cache = engine.new_cache(len(ids))
    engine.forward(ids, cache, capture=capture)
    from kvgen.attention.record import gather

    trace = gather(engine, ids, cache, capture, n_prompt=len(ids))
    whole = attention_weights(trace.layers[0])[head]
    assert [maps.step for maps in report.maps] == [0, 2, 4]
    for maps in report.maps:
        S = 9 + maps.step + 1
        assert maps.on.shape == (1, S) and maps.off is not None and maps.off.shape == (S, S)
        assert (maps.n_scores("on"), maps.n_scores("off")) == (S, S * (S + 1) // 2)
        np.testing.assert_allclose(maps.on[0], whole[S - 1, :S], atol=1e-5)
        np.testing.assert_allclose(maps.off, whole[:S, :S], atol=1e-5)


def test_the_cached_arm_alone_makes_no_comparison(tiny_model: Loader) -> None:
    report = bench(tiny_model("gpt2").engine, replace(PLAN, arms=("on",)))
    assert report.verification is None and report.arm("off") is None
    assert all(maps.off is None for maps in report.maps)


def test_a_plan_beyond_the_context_is_refused(tiny_model: Loader) -> None:
    with pytest.raises(UsageError, match="exceed the context of 256"):
        bench(tiny_model("gpt2").engine, replace(PLAN, n_gen=248))


@pytest.mark.parametrize(
    ("difference", "equal", "near_ties", "passed"),
    [(1e-5, 10, 0, True), (1e-5, 9, 1, True), (1e-5, 9, 0, False), (2e-3, 10, 0, False)],
)
def test_the_verdict(difference: float, equal: int, near_ties: int, passed: bool) -> None:
    checked = Verification(
        max_abs_logit_difference=difference,
        tolerance=1e-3,
        n_steps=10,
        n_equal=equal,
        near_ties=near_ties,
    )
    assert checked.passed == passed


def test_a_spread_by_hand() -> None:
    assert spread([1, 2, 6]) == pytest.approx(
        {"median": 2, "mean": 3, "stdev": 7**0.5, "min": 1, "max": 6}
    )
    assert spread([4])["stdev"] == 0


def test_json_has_its_documented_names(report: BenchReport) -> None:
    facts = {
        "model": "tiny", "dtype": "f32", "cache_dtype": "f32", "backend": "numpy", "threads": 1,
        "prompt": "9 tokens", "seed": None, "environment": {"cpu": "x"},
    }  # fmt: skip
    content = json.loads(json.dumps(bench_json(report, facts)))
    tests = [(result["test"], result["cache"]) for result in content["results"]]
    assert tests == [("pp9", "on"), ("tg5", "on"), ("tg5", "off")]
    assert [result["positions_processed"] for result in content["results"]] == [9, 5, 60]
    uncached = content["results"][2]
    assert len(uncached["seconds_per_step"]) == 5 and np.shape(uncached["samples"]) == (2, 5)
    assert set(uncached["tokens_per_second"]) == {"median", "mean", "stdev", "min", "max"}
    assert content["verification"]["passed"] and content["verification"]["tokens_equal"]
