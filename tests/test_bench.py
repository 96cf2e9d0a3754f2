"""The benchmark: same work in both arms, counted; never a timing."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from kvgen.attention.steps import attention_weights
from kvgen.bench.compare import compare_reports
from kvgen.bench.contender import pass_seconds
from kvgen.bench.cost import calibrate_with_overhead, cost_of, first_length_above
from kvgen.bench.phases import CALIBRATION_SECONDS, expected_seconds
from kvgen.bench.plan import BenchPlan, Workload
from kvgen.bench.report import BenchReport, Verification, spread
from kvgen.bench.run import bench
from kvgen.bench.verify import verify
from kvgen.engine import formula
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.calibration import Calibration
from kvgen.engine.fast.engine import FastEngine
from kvgen.engine.open import open_engine
from kvgen.engine.reference import decoder, ops
from kvgen.engine.rope import rope_tables
from kvgen.errors import UsageError
from kvgen.model import Model
from kvgen.render.bench import bench_view
from kvgen.render.bench_files import (
    bench_csv,
    bench_json,
    bench_lines,
    bench_markdown,
    comparison_json,
)
from kvgen.render.canvas import Canvas
from tests import tiny
from tests.command import inside
from tests.conftest import BACKENDS, Loader
from tests.reports import make_context
from tests.sequences import recorded

PROMPT = tuple(tiny.make_ids(9))
WORK = Workload(ids=PROMPT, n_prompt=9, n_gen=5)
PLAN = BenchPlan(workloads=(WORK,), repetitions=2, arms=("on", "off"))
SPEED = Calibration(
    read_bytes_per_second=1e10, flops_per_second=1e11, attention_flops_per_second=1e10
)
CONTEXT = make_context()


@pytest.fixture(autouse=True, scope="module")
def no_calibrations_between_passes() -> Iterator[None]:
    """They take long, and the figures of a report would depend on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvgen.bench.run.calibrate_with_overhead", lambda _: SPEED)
        yield


def run(model: Model, plan: BenchPlan = PLAN, **options: Any) -> BenchReport:
    return bench([model.engine], model.params, plan, calibrations=[SPEED], **options)


@pytest.fixture(scope="module", params=BACKENDS)
def report(request: pytest.FixtureRequest, tiny_model: Loader) -> BenchReport:
    return run(tiny_model("llama_gqa", backend=request.param))


def test_both_arms_choose_the_same_tokens(report: BenchReport) -> None:
    verification = report.runs[0].verification
    assert verification is not None and report.passed
    assert verification.passed and verification.tokens_equal
    assert verification.max_abs_logit_difference < 5e-5


def test_the_fed_ids_are_the_greedy_ones(report: BenchReport, tiny_model: Loader) -> None:
    model = tiny_model("llama_gqa")
    pieces = model.generate(PROMPT, max_new_tokens=5)
    assert [list(ids) for ids in report.generated_ids] == [[piece.token for piece in pieces]]


def test_every_step_of_every_repetition_is_timed(report: BenchReport) -> None:
    arms = report.runs[0].arms
    assert [arm.name for arm in arms] == ["on", "off"]
    for arm in arms:
        assert len(arm.prefill_seconds) == 2
        assert [len(samples) for samples in arm.step_seconds] == [5, 5]
        assert all(seconds > 0 for samples in arm.step_seconds for seconds in samples)


def test_positions_are_those_of_the_arms() -> None:
    assert WORK.positions("on") == WORK.positions("on+q") == 9 + 5
    assert WORK.positions("off") == 9 + 10 + 11 + 12 + 13 + 14


def test_new_tokens_take_one_decode_step_less(tiny_model: Loader) -> None:
    # `generate -n 6` chooses the first token out of the prefill; `bench -n 5` times the other five.
    model = tiny_model("llama_gqa", backend="numpy")
    pieces = list(model.generate(PROMPT, max_new_tokens=6))
    assert [piece.positions for piece in pieces] == [9, 1, 1, 1, 1, 1]
    assert sum(piece.positions for piece in pieces) == WORK.positions("on")
    uncached = [piece.positions for piece in model.generate(PROMPT, max_new_tokens=6, cache=False)]
    assert sum(uncached) == WORK.positions("off")


def test_progress_counts_what_is_run(tiny_model: Loader) -> None:
    engine = tiny_model("gpt2").engine
    told: dict[str, float] = {}

    def hear(phase: str, seconds: float) -> None:
        told[phase] = told.get(phase, 0.0) + seconds

    plan = replace(PLAN, arms=("on", "off"), warmup=2)
    run(tiny_model("gpt2"), plan, on_progress=hear)
    expected = expected_seconds([engine], [SPEED], plan)
    assert told == pytest.approx({name: time for name, time in expected.items() if time})
    on, off = (pass_seconds(engine, SPEED, WORK, arm) for arm in ("on", "off"))
    rounds = plan.repetitions * CALIBRATION_SECONDS
    assert expected["timing"] == pytest.approx((2 - 1 + 2) * (on + off) + rounds)


@pytest.mark.parametrize("phase", ["timing", "changing kept rows"])
def test_an_interrupted_run_reports_what_it_has(phase: str, tiny_model: Loader) -> None:
    told: list[str] = []

    def interrupt(now: str, _: float) -> None:
        told.append(now)
        # A round is a calibration, the prefill, warm steps and steps of an arm, and the other's.
        if now == phase and told.count(now) > 1 + (1 + 3 + 5) + (1 + 5):
            raise KeyboardInterrupt

    report = run(tiny_model("gpt2"), on_progress=interrupt)
    assert report.interrupted and report.passed
    n_passes = 1 if phase == "timing" else 2
    assert {len(arm.prefill_seconds) for arm in report.runs[0].arms} == {n_passes}
    assert report.ledger is None and bool(report.maps) == (phase != "timing")
    content = json.loads(json.dumps(bench_json(report, CONTEXT)))
    assert content["interrupted"] and content["ledger"] is None
    canvas = Canvas(100, "glyphs")
    for details in (False, True):
        shown = StringIO()
        Console(file=shown, width=100).print(bench_view(report, CONTEXT, canvas, details=details))
        assert "interrupted: this is what had been measured by then" in shown.getvalue()


def test_a_run_that_is_interrupted_before_it_has_anything_reports_nothing(
    tiny_model: Loader,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model("gpt2"), on_progress=interrupt)


def test_maps_are_what_each_arm_computed(report: BenchReport, tiny_model: Loader) -> None:
    engine = tiny_model("llama_gqa", backend="numpy").engine
    ids = [*PROMPT, *report.generated_ids[0]]
    layer, head = report.head
    _, trace = recorded(engine, ids)
    whole = attention_weights(trace.layer(layer))[head]
    assert [maps.step for maps in report.maps] == [0, 2, 4]
    for maps in report.maps:
        S = 9 + maps.step + 1
        assert maps.on.shape == (1, S) and maps.off is not None and maps.off.shape == (S, S)
        assert (maps.n_scores_on, maps.n_scores_off) == (S, S * (S + 1) // 2)
        np.testing.assert_allclose(maps.on[0], whole[S - 1, :S], atol=1e-5)
        np.testing.assert_allclose(maps.off, whole[:S, :S], atol=1e-5)


def test_the_cached_arm_alone_makes_no_comparison(tiny_model: Loader) -> None:
    report = run(tiny_model("gpt2"), replace(PLAN, arms=("on",)))
    assert report.runs[0].verification is None and report.runs[0].arm("off") is None
    assert all(maps.off is None for maps in report.maps)
    assert report.passed


def test_a_plan_beyond_the_context_is_refused(tiny_model: Loader) -> None:
    with pytest.raises(UsageError, match="exceed the context of 256"):
        run(tiny_model("gpt2"), replace(PLAN, workloads=(replace(WORK, n_gen=248),)))


def test_several_engines_and_texts_run_on_the_same_ids(tiny_model: Loader) -> None:
    models = [tiny_model("llama_gqa", backend=backend) for backend in BACKENDS]
    longer = Workload(ids=tuple(tiny.make_ids(20)), n_prompt=12, n_gen=2, depth=8)
    report = bench(
        [model.engine for model in models], models[0].params,
        replace(PLAN, workloads=(WORK, longer), arms=("on", "off", "on+q")),
        calibrations=[SPEED, SPEED],
    )  # fmt: skip
    assert [(one.workload.length, one.backend) for one in report.runs] == [
        (length, backend) for length in (9, 20) for backend in BACKENDS
    ]
    assert [len(ids) for ids in report.generated_ids] == [5, 2]
    assert report.passed
    assert all(len(one.arms) == 3 for one in report.runs)
    tests = [
        (row["test"], row["depth"], row["cache"]) for row in bench_json(report, CONTEXT)["results"]
    ]
    assert tests[:4] == [("pp9", 0, "on"), ("tg5", 9, "on"), ("tg5", 9, "off"), ("tg5", 9, "on+q")]
    assert tests[8] == ("pp12", 8, "on") and tests[9] == ("tg2", 20, "on")


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
    assert asdict(spread([1, 2, 6])) == pytest.approx(
        {"median": 2, "mean": 3, "stdev": 7**0.5, "min": 1, "max": 6}
    )
    assert spread([4]).stdev == 0


# --- The ledger -------------------------------------------------------------------------------


def test_with_the_cache_a_step_computes_one_row_and_reads_all_keys(report: BenchReport) -> None:
    for number, step in enumerate(report.ledger.on):
        length = 9 + number
        assert (step.length, step.computed, step.recomputed) == (length, 1, 0)
        assert (step.keys_read, step.values_read, step.queries_read) == (length + 1, length + 1, 1)
        assert (step.kept_keys_read, step.kept_values_read) == (length, length)
        assert step.kept_queries_read == 0
        assert step.max_abs_change == 0


def test_without_it_every_row_is_computed_again_and_is_the_same(report: BenchReport) -> None:
    for number, step in enumerate(report.ledger.off):
        length = 9 + number
        assert (step.computed, step.recomputed) == (length + 1, length)
        assert (step.keys_read, step.values_read, step.queries_read) == (length + 1,) * 3
        assert (step.kept_keys_read, step.kept_values_read, step.kept_queries_read) == (0, 0, 0)
        assert step.max_abs_change < 1e-5


def test_a_key_is_read_once_more_by_each_later_query(report: BenchReport) -> None:
    ledger, n = report.ledger, 9 + len(report.ledger.on)
    np.testing.assert_array_equal(ledger.reads_of_keys, n - np.arange(n))
    np.testing.assert_array_equal(ledger.reads_of_values, n - np.arange(n))
    np.testing.assert_array_equal(ledger.reads_of_queries, np.ones(n))
    # A row is there from its own step on: three uncached steps after the prefill.
    expected = [4] * 9 + [3, 2, 1]
    np.testing.assert_array_equal(ledger.recomputed, expected)


def test_the_timed_engine_counts_the_same(report: BenchReport) -> None:
    ledger = report.ledger
    assert ledger.agrees
    layers = report.runs[0].cost.config.n_layers
    assert ledger.n_compared == 3 * 2 * 5 * layers  # of K, of V and of old Q


@pytest.mark.parametrize("name", ["gemma3", "mistral", "gpt_neo"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_are_counted(name: str, backend: str, tiny_model: Loader) -> None:
    model = tiny_model(name, backend=backend)
    work = Workload(ids=tuple(tiny.make_ids(40)), n_prompt=40, n_gen=4)
    report = run(model, replace(PLAN, workloads=(work,), repetitions=1))
    assert report.passed
    totals = report.ledger.on[0].pairs
    windows = [model.config.window(layer) or 1000 for layer in range(model.config.n_layers)]
    np.testing.assert_array_equal(totals, [min(41, window) for window in windows])
    ledger = report.ledger
    assert ledger.on[0].keys_read == min(41, windows[ledger.layer])
    assert ledger.off[0].keys_read == 41  # each row by the queries near it
    shown = report.maps[0]
    window = windows[report.head[0]]
    assert shown.n_scores_on == min(41, window)
    assert shown.n_scores_off == sum(min(length, window) for length in range(1, 42))


def test_a_large_model_is_counted_by_its_first_layers(
    tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gemma3")
    monkeypatch.setattr("kvgen.bench.ledger._WIDENED_BYTES", 4 * 2 * model.config.layer_weights)
    assert model.config.n_layers > 2
    ledger = run(model).ledger
    assert ledger is not None and ledger.n_layers == 2 and ledger.agrees


# --- The cost model ---------------------------------------------------------------------------


def test_costs_by_hand(tiny_model: Loader) -> None:
    model = tiny_model("llama_gqa", backend="numpy")
    cost, config = cost_of(model.engine), model.config
    D, C, F = config.head_dim, config.d_model, config.d_ff
    assert config.layer_weights == (2 * config.n_heads + 2 * config.n_kv_heads) * D * C + 3 * C * F
    matrices = config.n_layers * config.layer_weights + C * config.vocab_size
    assert model.engine.weight_bytes == cost.weight_bytes == 4 * matrices
    assert cost.product_flops(1) == 2 * matrices
    assert cost.visible(0, 3) == config.n_layers * (1 + 2 + 3)
    assert cost.visible(5, 1) == config.n_layers * 6
    assert cost.cache_bytes(5, 1) == 4 * 6 * config.kv_floats_per_token


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma3", "phi", "olmo2"])
def test_weight_bytes_are_those_of_the_matrices(name: str, tiny_model: Loader) -> None:
    fast = tiny_model(name, kind="BF16", backend="numba")
    plain = tiny_model(name, kind="BF16", backend="numpy")
    assert 2 * fast.engine.weight_bytes == plain.engine.weight_bytes


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_calibration_measures_something(backend: str, tiny_model: Loader) -> None:
    engine = tiny_model("llama_gqa", backend=backend).engine
    measured = calibrate_with_overhead(engine)
    assert 1e7 < measured.read_bytes_per_second < 1e13
    assert 1e6 < measured.attention_flops_per_second < 1e14
    assert 1e6 < measured.flops_per_second < 1e14
    assert 0 <= measured.overhead_seconds_per_step < 1
    assert pass_seconds(engine, measured, WORK, "on") > 0


def test_a_length_is_found_by_its_time() -> None:
    assert first_length_above(0.5, lambda length: length / 100, 1000) == 51
    assert first_length_above(50, lambda length: length / 100, 1000) is None
    assert first_length_above(0.001, lambda length: 1 + length, 7) == 1


# --- Files ------------------------------------------------------------------------------------


JSON_NAMES = """
calibration.attention_gflops calibration.gflops calibration.overhead_seconds_per_position
calibration.overhead_seconds_per_step calibration.read_gb_per_second
crossing.above crossing.below crossing.over_seconds
environment.blas environment.blas_architecture environment.blas_threads environment.cores
environment.cpu environment.cpus environment.kvgen environment.last_level_cache_bytes
environment.load_average environment.numba environment.numpy environment.python environment.system
generated_ids
interrupted
interventions.as_expected interventions.backend interventions.first_visible interventions.layer
interventions.max_abs_logit_change interventions.positions interventions.q_live interventions.row
interventions.with_other_key interventions.step
later_token.causal later_token.unmasked
ledger.agrees ledger.layer ledger.layers ledger.off.computed ledger.off.kept_keys_read
ledger.off.kept_queries_read ledger.off.kept_values_read ledger.off.keys_read ledger.off.length
ledger.off.max_abs_change ledger.off.pairs ledger.off.queries_read ledger.off.recomputed
ledger.off.values_read ledger.on.computed ledger.on.kept_keys_read ledger.on.kept_queries_read
ledger.on.kept_values_read ledger.on.keys_read ledger.on.length ledger.on.max_abs_change
ledger.on.pairs ledger.on.queries_read ledger.on.recomputed ledger.on.values_read
ledger.reads_of_each_key ledger.reads_of_each_query ledger.reads_of_each_value
ledger.times_each_row_is_computed_without_cache ledger.totals_compared ledger.totals_different
maps.head maps.layer maps.steps.scores_off maps.steps.scores_on maps.steps.step
model
model_hash
old_queries_as_nan.max_abs_logit_change
other_programs_cpus
parameters
prompt
prompt_ids
results.backend results.bytes_per_step results.cache results.cache_dtype
results.calibration.attention_gflops results.calibration.gflops
results.calibration.overhead_seconds_per_position results.calibration.overhead_seconds_per_step
results.calibration.read_gb_per_second results.depth results.dtype results.first_step_seconds
results.flops_per_step results.positions_processed results.predicted_seconds_per_step
results.prefill results.samples results.seconds_per_step results.test results.threads
results.tokens_per_second.max results.tokens_per_second.mean results.tokens_per_second.median
results.tokens_per_second.min results.tokens_per_second.stdev
seed
uncached_interventions.backend uncached_interventions.layer
uncached_interventions.max_abs_logit_change uncached_interventions.n_positions
uncached_interventions.next_rows_change uncached_interventions.row
verification.max_abs_logit_difference verification.near_ties verification.passed
verification.tokens_equal verification.tolerance
version
"""
LINE_NAMES = """
avg_ts backends cache cpu_info environment.blas environment.blas_architecture
environment.blas_threads environment.cores environment.cpu environment.kvgen
environment.load_average environment.numba environment.numpy environment.python environment.system
median_ts model_filename model_hash model_n_params model_size model_type n_depth n_gen n_prompt
n_threads prefill samples_ts stddev_ts test type_k type_v
environment.cpus environment.last_level_cache_bytes
"""
COMPARISON_NAMES = """
differences only_in_one reports results.backend results.beyond_spread results.cache
results.cache_dtype results.depth results.dtype results.ratio results.test results.threads
results.tokens_per_second.max results.tokens_per_second.mean results.tokens_per_second.median
results.tokens_per_second.min results.tokens_per_second.stdev
"""


def names_in(content: Any, at: str = "") -> set[str]:
    """The path of every value, its names joined by dots; a list of objects adds none."""
    if isinstance(content, dict):
        return {
            name
            for key, value in content.items()
            for name in names_in(value, f"{at}.{key}" if at else key)
        }
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return {name for each in content for name in names_in(each, at)}
    return {at}


def test_json_has_exactly_these_names(report: BenchReport) -> None:
    whole = json.loads(json.dumps(bench_json(report, CONTEXT)))
    assert names_in(whole) == set(JSON_NAMES.split())
    for line in bench_lines(report, CONTEXT).splitlines():
        assert names_in(json.loads(line)) == set(LINE_NAMES.split())
    compared = comparison_json(compare_reports(whole, whole), names=("a", "b"))
    assert names_in(json.loads(json.dumps(compared))) == set(COMPARISON_NAMES.split())


def test_a_core_type_that_openblas_is_told_is_reported(report: BenchReport) -> None:
    told = replace(CONTEXT.environment, openblas_core_type="Haswell")
    content = bench_json(report, replace(CONTEXT, environment=told))
    assert content["environment"] == {
        **bench_json(report, CONTEXT)["environment"],
        "OPENBLAS_CORETYPE": "Haswell",
    }


def test_json_has_its_documented_names(report: BenchReport) -> None:
    content = json.loads(json.dumps(bench_json(report, CONTEXT)))
    tests = [(result["test"], result["cache"]) for result in content["results"]]
    assert tests == [("pp9", "on"), ("tg5", "on"), ("tg5", "off")]
    assert [result["positions_processed"] for result in content["results"]] == [9, 5, 60]
    uncached = content["results"][2]
    assert len(uncached["seconds_per_step"]) == 5 and np.shape(uncached["samples"]) == (2, 5)
    for name in ("predicted_seconds_per_step", "bytes_per_step", "flops_per_step"):
        assert len(uncached[name]) == 5 and min(uncached[name]) > 0
    assert set(uncached["tokens_per_second"]) == {"median", "mean", "stdev", "min", "max"}
    assert content["verification"]["passed"] and content["verification"]["tokens_equal"]
    assert content["calibration"]["read_gb_per_second"] == 10
    assert content["ledger"]["agrees"] and content["ledger"]["on"][0]["computed"] == 1


def test_lines_and_markdown_have_the_names_of_llama_bench(report: BenchReport) -> None:
    lines = [json.loads(line) for line in bench_lines(report, CONTEXT).splitlines()]
    assert [line["test"] for line in lines] == ["pp9", "tg5 @ d9", "tg5 @ d9"]
    assert (lines[0]["n_prompt"], lines[0]["n_gen"], lines[0]["n_depth"]) == (9, 0, 0)
    assert (lines[2]["n_prompt"], lines[2]["n_gen"], lines[2]["n_depth"]) == (0, 5, 9)
    assert all(len(line["samples_ts"]) == 2 for line in lines)
    table = bench_markdown(report, CONTEXT).splitlines()
    assert table[0] == "| model | size | params | backend | threads | cache | test | t/s |"
    assert "| off | tg5 @ d9 |" in table[4]


def test_a_name_from_elsewhere_stays_in_its_place_in_markdown(report: BenchReport) -> None:
    odd = make_context(model="a|b\n# c\x1b[2J <b> `d`", cpu="x | y\n")
    plain, text = bench_markdown(report, CONTEXT), bench_markdown(report, odd)
    assert text.splitlines()[:-1] == plain.splitlines()[:-1]
    assert text.splitlines()[-1].startswith(
        r"a\|b # c\\x1b\[2J \<b> \`d\` (0123) · cpu x \| y · cores 2 · "
    )


def test_no_cell_of_a_csv_can_be_taken_for_a_formula(report: BenchReport) -> None:
    cells = [cell for row in csv.reader(io.StringIO(bench_csv(report))) for cell in row]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))] == []


def test_csv_has_a_row_for_each_step(report: BenchReport) -> None:
    rows = list(csv.DictReader(io.StringIO(bench_csv(report))))
    assert [row["cache"] for row in rows] == ["on"] * 5 + ["off"] * 5
    assert [row["position"] for row in rows[5:]] == ["9", "10", "11", "12", "13"]
    assert [row["positions_run"] for row in rows[5:]] == ["10", "11", "12", "13", "14"]
    assert all(float(row["median_seconds"]) > 0 for row in rows)


def saved(rate: float, *, low: float, high: float, cache: str = "on", cpu: str = "x") -> Any:
    rates = {"median": rate, "mean": rate, "stdev": 1.0, "min": low, "max": high}
    result = {
        "test": "tg5", "depth": 9, "cache": cache, "dtype": "f32", "cache_dtype": "f32",
        "backend": "numba", "threads": 2, "tokens_per_second": rates,
    }  # fmt: skip
    return {"model": "tiny", "results": [result], "environment": {"cpu": cpu}}


@pytest.mark.parametrize(("low", "high", "beyond"), [(150, 250, True), (105, 250, False)])
def test_reports_are_compared_by_ratio_and_spread(low: float, high: float, beyond: bool) -> None:
    comparison = compare_reports(
        saved(100, low=90, high=110), saved(200, low=low, high=high, cpu="y")
    )
    (test,) = comparison.tests
    assert (test.ratio, test.beyond_spread) == (2.0, beyond)
    assert comparison.differences == ("cpu: x -> y",)


RATE_OF_0 = saved(0, low=0, high=0)
RATE_OF_ANY_SIZE = saved(10**400, low=1, high=1)


@pytest.mark.parametrize(
    "other", [{}, [], {"results": 3}, {"results": [{"test": 1}]}, None, RATE_OF_0, RATE_OF_ANY_SIZE]
)
def test_what_is_no_report_is_not_compared(other: Any) -> None:
    with pytest.raises(UsageError, match="needs two reports"):
        compare_reports(saved(1, low=1, high=1), other)


def test_reports_without_a_common_test_are_not_compared() -> None:
    with pytest.raises(UsageError, match="share no test"):
        compare_reports(saved(1, low=1, high=1), saved(1, low=1, high=1, cache="off"))


# --- Planted bugs -----------------------------------------------------------------------------


def reads_one_row_less(patch: pytest.MonkeyPatch) -> None:
    """A decode step that no longer sees the key before it."""
    mask = formula.causal_mask

    def blind(T: int, S: int, window: int | None = None) -> ops.Mask:
        visible = mask(T, S, window)
        if T == 1 and S > 1:
            visible[0, S - 2] = False
        return visible

    patch.setattr(decoder, "causal_mask", blind)


def writes_one_row_too_far(patch: pytest.MonkeyPatch) -> None:
    """A decode step that puts its key and value behind the place that is theirs."""
    write = KeyValueCache.write

    def shifted(self: KeyValueCache, layer: int, k: np.ndarray, v: np.ndarray) -> None:
        if len(k) == 1 and 0 < self.length < self.capacity - 1:
            self.extend([0])
            write(self, layer, k, v)
            self.truncate(self.length - 1)
        else:
            write(self, layer, k, v)

    patch.setattr(KeyValueCache, "write", shifted)


def widens_its_window(patch: pytest.MonkeyPatch) -> None:
    """A decode step whose window holds one key too many."""
    mask = formula.causal_mask

    def wide(T: int, S: int, window: int | None = None) -> ops.Mask:
        return mask(T, S, window + 1 if window and T == 1 else window)

    patch.setattr(decoder, "causal_mask", wide)


def keeps_a_stale_row(patch: pytest.MonkeyPatch) -> None:
    """The key of the first row that a truncate takes back stays, whatever is written there."""
    truncate, extend = KeyValueCache.truncate, KeyValueCache.extend
    kept: dict[str, Any] = {}

    def remember(self: KeyValueCache, length: int) -> None:
        block = self.k.shape[-1]
        kept["cache"] = self
        kept["place"] = (..., length // block, slice(None), length % block)
        kept["row"] = self.k[kept["place"]].copy()
        truncate(self, length)

    def put_back(self: KeyValueCache, ids: Sequence[int]) -> None:
        extend(self, ids)
        if kept.get("cache") is self:
            self.k[kept["place"]] = kept["row"]

    patch.setattr(KeyValueCache, "truncate", remember)
    patch.setattr(KeyValueCache, "extend", put_back)


def shifts_positions(patch: pytest.MonkeyPatch) -> None:
    """The compiled engine's decode steps run one position too late."""
    run_rows = FastEngine._run

    def late(self: Any, tokens: Any, position: int, *rest: Any) -> None:
        shift = len(tokens) == 1 and position > 0
        run_rows(self, tokens, position - shift, *rest)

    patch.setattr(FastEngine, "_run", late)


def keeps_old_frequencies(patch: pytest.MonkeyPatch) -> None:
    """New rotary frequencies are used for new positions, and the kept keys stay as they are."""

    def prepare(self: KeyValueCache, n_new: int, *, rope_length: int | None = None) -> list[int]:
        length = max(self.length + n_new, rope_length or 0)
        self.rope = rope_tables(self._config, self.capacity, length)
        return []

    patch.setattr(KeyValueCache, "prepare", prepare)


Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    ("command", "name", "backend", "plant"),
    [
        ("bench", "llama_gqa", "numpy", reads_one_row_less),
        ("bench", "gpt2", "numpy", writes_one_row_too_far),
        ("bench", "gemma3", "numpy", widens_its_window),
        ("bench", "llama_gqa", "numba", shifts_positions),
        ("verify", "llama_gqa", "numpy", reads_one_row_less),
        ("verify", "gpt2", "numpy", writes_one_row_too_far),
        ("verify", "mistral", "numpy", widens_its_window),
        ("verify", "llama_gqa", "numba", shifts_positions),
        ("verify", "llama_gqa", "numpy", keeps_a_stale_row),
        ("verify", "llama_gqa", "numba", keeps_a_stale_row),
        ("verify", "phi3_longrope", "numpy", keeps_old_frequencies),
        ("verify", "llama_dynamic", "numba", keeps_old_frequencies),
    ],
)
def test_a_planted_bug_is_found(
    command: str,
    name: str,
    backend: str,
    plant: Plant,
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["-m", str(tiny_folder(name)), "--backend", backend]
    arguments += ["--no-cache", "-p", "40", "-n", "6", "-r", "1"] if command == "bench" else []
    assert inside(command, *arguments).returncode == 0
    plant(monkeypatch)
    found = inside(command, *arguments)
    *_, verdict = found.stderr.decode().splitlines()
    assert found.returncode == 5
    assert re.match("kvgen: .*(logits differ|checks failed|not what they should be)", verdict)
    assert "Traceback" not in found.stderr.decode()


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma3"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_way_to_run_the_ids_agrees(name: str, backend: str, tiny_model: Loader) -> None:
    model = tiny_model(name, backend=backend)
    reference = open_engine(model.params, backend="numpy", threads=None)
    checks = list(verify(model.engine, reference, tiny.make_ids(200)))
    assert len(checks) == (5 if backend == "numpy" else 6)
    assert all(check.passed for check in checks)
    assert checks[2].n_positions == 10 * 200  # every split is within
