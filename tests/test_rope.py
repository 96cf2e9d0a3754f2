"""RoPE whose frequencies depend on the length of the sequence: what runs again, and when."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvgen
from kvgen.attention.diagnostics import diagnose
from kvgen.attention.record import record
from kvgen.bench.contender import WARM_STEPS
from kvgen.bench.plan import BenchPlan, Workload
from kvgen.bench.run import bench
from kvgen.bench.verify import verify
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.calibration import Calibration
from kvgen.engine.config import RopeConfig
from kvgen.engine.contract import Engine
from kvgen.engine.open import open_engine
from kvgen.engine.rope import length_dependent, positions_run_again, same_frequencies_from
from kvgen.engine.trace import Capture
from kvgen.errors import CheckpointError, NonFiniteError
from kvgen.loading import default_model
from kvgen.model import Model
from kvgen.sampling import Sampler
from kvgen.session import Session
from tests import tiny
from tests.command import inside
from tests.configs import CONFIGS, CROSSING_LENGTHS, LENGTH_DEPENDENT
from tests.conftest import BACKENDS, Loader
from tests.sequences import GREEDY, fed, steps_of
from tests.test_golden import GOLDEN, TOLERANCE

ROUNDING = 5e-5  # float32 sums in another order, on logits of order one to ten
IDS = tiny.make_ids(200)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_name = pytest.mark.parametrize("name", LENGTH_DEPENDENT)

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    # The kept ids are run again in several chunks.
    "long_prompt": (
        "phi3_longrope",
        {"original_max_position_embeddings": 230, "max_position_embeddings": 512},
    ),
    # Layers of two kinds; the frequencies of one of them change.
    "two_kinds": (
        "gemma3_parameters",
        {
            "max_position_embeddings": 40,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e6},
            },
        },
    ),
}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Model]:
    """Gives a model of `OTHERS` on a backend."""

    def load(case: str, backend: str) -> Model:
        name, changes = OTHERS[case]
        folder = tiny.write_checkpoint(tmp_path_factory.mktemp(case), name)
        (folder / "config.json").write_text(json.dumps(CONFIGS[name] | changes), encoding="utf-8")
        return kvgen.load(folder, backend=backend)

    return load


def tokens_of(engine: Engine, ids: list[int], n: int, *, use_cache: bool = True) -> list[int]:
    return [step.token for step in steps_of(engine, ids, n, reuse_cache=use_cache)]


def whole(engine: Engine, ids: list[int]) -> np.ndarray:
    """The last logits of one pass."""
    return engine.forward(ids, engine.new_cache(len(ids)))


def assert_equal_to_rounding(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@every_backend
@every_name
def test_greedy_tokens_around_the_boundary_equal_the_reference_implementation(
    name: str, backend: str, use_cache: bool, tiny_model: Loader
) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    engine = tiny_model(name, backend=backend).engine
    for length, expected in zip(CROSSING_LENGTHS, golden["crossing_greedy_ids"], strict=True):
        ids = golden["ids"][:length].tolist()
        assert tokens_of(engine, ids, 16, use_cache=use_cache) == expected.tolist()


@every_backend
@every_name
def test_cached_logits_at_each_length_equal_the_reference_implementation(
    name: str, backend: str, tiny_model: Loader
) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    engine = tiny_model(name, backend=backend).engine
    cache = engine.new_cache(150)
    steps = [engine.forward([token], cache) for token in golden["ids"][:120].tolist()]
    got = np.stack([steps[length - 1] for length in CROSSING_LENGTHS])
    np.testing.assert_allclose(got, golden["crossing_logits"], rtol=0, atol=TOLERANCE)


@every_backend
@every_name
def test_a_text_does_not_depend_on_the_tokens_asked_for(
    name: str, backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model(name, backend=backend).engine
    longest = tokens_of(engine, IDS[:90], 20)
    for n in range(1, 20):
        assert tokens_of(engine, IDS[:90], n) == longest[:n]


@every_backend
@pytest.mark.parametrize("case", OTHERS)
def test_cached_logits_equal_one_pass_at_every_length(
    case: str, backend: str, other_model: Callable[[str, str], Model]
) -> None:
    engine = other_model(case, backend).engine
    boundary = length_dependent(engine.config)[0].original_context
    ids = tiny.make_ids(boundary + 5)
    session = fed(engine, ids[: boundary - 3], boundary + 9)
    for n in range(boundary - 3, len(ids)):
        assert_equal_to_rounding(session.feed([ids[n]]), whole(engine, ids[: n + 1]))
    keys = session.cache.keys(1).copy()
    session.rewind()
    session.feed(ids)
    assert_equal_to_rounding(session.cache.keys(1), keys)


@every_backend
@every_name
def test_positions_count_what_was_run_again(name: str, backend: str, tiny_model: Loader) -> None:
    engine = tiny_model(name, backend=backend).engine

    def counted(*, use_cache: bool) -> list[int]:
        steps = steps_of(engine, IDS[:98], 6, reuse_cache=use_cache)
        return [step.positions for step in steps]

    later = [102, 103] if name == "llama_dynamic" else [1, 1]
    assert counted(use_cache=True) == [98, 1, 1, 101, *later]
    assert counted(use_cache=False) == [98, 99, 100, 101, 102, 103]


@every_backend
@every_name
def test_rows_read_count_what_was_run_again(name: str, backend: str, tiny_model: Loader) -> None:
    engine = tiny_model(name, backend=backend).engine
    session = fed(engine, IDS[:99], 110)
    session.feed(IDS[99:100])
    n_heads = engine.config.n_heads
    assert set(session.rows_read.k) == {n_heads * 100} and session.positions_run == 1
    session.feed(IDS[100:101])
    assert set(session.rows_read.k) == {n_heads * 101 * 102 // 2} and session.positions_run == 101


@every_backend
@every_name
def test_a_prompt_beyond_the_boundary_is_run_once(
    name: str, backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model(name, backend=backend).engine
    expected = whole(engine, IDS[:120])
    for part in (1, 7, 99, 100, 101, 119):
        session = Session(engine, 130)
        for begin in range(0, 120, part):  # who feeds in parts says how long the whole will be
            logits = session.feed(IDS[begin : min(begin + part, 120)], rope_length=120)
        assert_equal_to_rounding(logits, expected)
        assert session.cache.positions_run == 120


@every_backend
@every_name
def test_parts_at_every_split_give_what_the_whole_gives(
    name: str, backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model(name, backend=backend).engine
    cache = engine.new_cache(103)
    expected = engine.forward(IDS[:103], cache)
    keys = cache.keys(0).copy()
    for split in range(1, 103):
        cache.clear()
        engine.forward(IDS[:split], cache)
        assert_equal_to_rounding(engine.forward(IDS[split:103], cache), expected)
        assert_equal_to_rounding(cache.keys(0), keys)


@every_backend
@every_name
def test_only_the_new_positions_have_logits(name: str, backend: str, tiny_model: Loader) -> None:
    engine = tiny_model(name, backend=backend).engine
    every = engine.forward(IDS[:104], engine.new_cache(104), all_logits=True)
    cache = engine.new_cache(104)
    engine.forward(IDS[:97], cache)
    logits = engine.forward(IDS[97:104], cache, all_logits=True)
    assert logits.shape == (7, engine.config.vocab_size)
    assert_equal_to_rounding(logits, every[97:])


@every_backend
@every_name
def test_cutting_back_below_the_boundary_goes_back_to_the_first_frequencies(
    name: str, backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model(name, backend=backend).engine
    session = fed(engine, IDS[:120], 130)
    session.rewind(90)
    assert list(session.ids) == IDS[:90]
    assert_equal_to_rounding(session.feed(IDS[150:155]), whole(engine, [*IDS[:90], *IDS[150:155]]))
    assert session.positions_run == 95


@every_backend
@every_name
def test_a_given_length_keeps_the_frequencies(name: str, backend: str, tiny_model: Loader) -> None:
    model = tiny_model(name, backend=backend)
    expected = model.logits(IDS[:110], cache=False)
    assert_equal_to_rounding(model.logits(IDS[:110]), expected)
    assert_equal_to_rounding(expected[-1], whole(model.engine, IDS[:110]))
    assert np.abs(expected[89] - whole(model.engine, IDS[:90])).max() > 100 * ROUNDING


@every_backend
@every_name
def test_captured_rows_belong_to_the_keys_after_a_change(
    name: str, backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model(name, backend=backend, cache_dtype="f32").engine
    layers = list(range(engine.config.n_layers))
    for first_captured in (0, 50, 100):  # the capture begins with the text, or later
        session, capture = Session(engine, 110), Capture(engine.config, layers, 110)
        if first_captured:
            session.feed(IDS[:first_captured])
        session.capture = capture
        for token in IDS[first_captured:103]:
            session.feed([token])
        trace = session.recording(n_prompt=50)
        assert diagnose(trace).recomputed < 1e-5
        again = Capture(engine.config, layers, 103)
        engine.forward(IDS[:103], engine.new_cache(103), capture=again)
        assert_equal_to_rounding(capture.q[:, :103], again.q)
        assert_equal_to_rounding(capture.z[:, :103], again.z)


@every_name
def test_a_recording_across_the_boundary_agrees_with_one_pass(
    name: str, tiny_model: Loader
) -> None:
    recording = record(
        tiny_model(name).engine,
        IDS[:95],
        layers=[0, 1],
        sampler=Sampler(GREEDY),
        max_new_tokens=20,
    )
    assert recording.decode_rows is not None and recording.decode_rows < 1e-5
    assert recording.diagnostics.recomputed < 1e-5
    assert recording.run_again == (100 if name == "phi3_longrope" else sum(range(100, 114)))


def test_a_pass_that_fails_while_ids_run_again_leaves_no_stale_key(
    tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in BACKENDS:
        engine: Any = tiny_model("phi3_longrope", backend=backend).engine
        session = fed(engine, IDS[:100], 110)

        def fail(*_: Any) -> None:
            raise NonFiniteError("planted")

        with monkeypatch.context() as patch, pytest.raises(NonFiniteError):
            patch.setattr(type(engine), "_run", fail)
            session.feed(IDS[100:101])
        assert not session.ids
        assert_equal_to_rounding(session.feed(IDS[:101]), whole(engine, IDS[:101]))


def test_lengths_with_the_same_frequencies_are_told_apart() -> None:
    long = RopeConfig(
        theta=1e4, dim=2, kind="longrope", original_context=100, short_factors=(1.0,),
        long_factors=(2.0,),
    )  # fmt: skip
    dynamic = RopeConfig(theta=1e4, dim=4, kind="dynamic", factor=2, original_context=50)
    plain = RopeConfig(theta=1e4, dim=4)
    lengths = (1, 50, 51, 100, 101, 400)
    assert [same_frequencies_from([plain], n) for n in lengths] == [1] * 6
    assert [same_frequencies_from([long], n) for n in lengths] == [1, 1, 1, 1, 101, 101]
    assert [same_frequencies_from([dynamic], n) for n in lengths] == [1, 1, 51, 100, 101, 400]
    for both in ([plain, long, dynamic], [dynamic, long, plain]):
        assert [same_frequencies_from(both, n) for n in lengths] == [1, 1, 51, 100, 101, 400]
    assert [positions_run_again([long], n) for n in (99, 100, 101)] == [0, 100, 0]
    assert [positions_run_again([dynamic], n) for n in (49, 50, 51)] == [0, 50, 51]


def test_nothing_is_prepared_for_other_models(tiny_model: Loader) -> None:
    engine = tiny_model("llama_yarn").engine
    session = Session(engine, 90)
    assert isinstance(session.cache, KeyValueCache)
    tables = session.cache.rope
    session.feed(IDS[:80])
    session.feed([1], rope_length=90)
    assert session.cache.rope is tables and session.cache.positions_run == 81


@every_backend
@every_name
def test_a_benchmark_counts_and_compares_across_the_boundary(
    name: str, backend: str, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name, backend=backend)
    work = Workload(ids=tuple(IDS[:98]), n_prompt=98, n_gen=6, ropes=length_dependent(model.config))
    later = [103, 104] if name == "llama_dynamic" else [1, 1]
    fed = [work.fed("on", step) for step in range(6)]
    assert fed == [1, 1, 101, *([102, *later] if name == "llama_dynamic" else [1, *later])]
    assert [work.fed("off", step) for step in range(6)] == [99, 100, 101, 102, 103, 104]
    plan = BenchPlan(workloads=(work,), repetitions=1, arms=("on", "off", "on+q"))
    speed = Calibration(
        read_bytes_per_second=1e10, flops_per_second=1e11, attention_flops_per_second=1e10
    )
    report = bench([model.engine], model.params, plan, calibrations=[speed])
    assert report.passed and report.ledger is not None
    on = report.ledger.on
    assert [count.computed for count in on] == fed[: len(on)]
    assert [count.kept_keys_read for count in on][:3] == [98, 99, 0]
    assert [maps.n_scores_on for maps in report.maps] == [
        maps.n_scores_off if count > 1 else maps.on.shape[1]
        for maps, count in zip(report.maps, (fed[0], fed[3], fed[5]), strict=True)
    ]
    for maps in report.maps:
        assert maps.off is not None
        np.testing.assert_allclose(maps.on[0], maps.off[-1], rtol=0, atol=1e-5)
    # A depth belongs to the same text: its positions are not run again in the timed prefill.
    deep = replace(work, ids=tuple(IDS[:110]), n_prompt=20, depth=90, n_gen=1)
    counting = Session(model.engine, 111)
    plan = replace(plan, workloads=(deep,), arms=("on",))
    monkeypatch.setattr("kvgen.bench.contender.Session", lambda *_: counting)
    bench([model.engine], model.params, plan, calibrations=[speed])
    # Compared, timed behind warm steps, and captured: each run of the text once.
    assert counting.cache.positions_run == 3 * deep.positions("on") + WARM_STEPS


@every_backend
@every_name
def test_verify_crosses_the_boundary_too(name: str, backend: str, tiny_model: Loader) -> None:
    model = tiny_model(name, backend=backend)
    reference = open_engine(model.params, backend="numpy", threads=None)
    checks = {check.name: check for check in verify(model.engine, reference, IDS)}
    assert all(check.passed for check in checks.values())
    assert checks["across a change of frequencies"].n_positions == 3
    shorter = [check.name for check in verify(model.engine, reference, IDS[:100])]
    assert "across a change of frequencies" not in shorter


@pytest.mark.parametrize(
    ("scaling", "said", "run_again"),
    [
        (
            {
                "type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32,
                "original_max_position_embeddings": 10,
            },
            "rotary frequencies changed at position 10: 10 positions run again",
            10,
        ),
        (
            {"type": "dynamic", "factor": 4.0},
            "rotary frequencies changed at position 10 (3 changes): 33 positions run again",
            10 + 11 + 12,
        ),
    ],
    ids=["longrope", "dynamic"],
)  # fmt: skip
def test_the_timing_block_tells_what_was_run_again(
    scaling: dict[str, Any], said: str, run_again: int, tmp_path: Path
) -> None:
    for file in default_model().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("rope_parameters", None)
    context = 10 if scaling["type"] == "dynamic" else 1024
    config |= {"rope_theta": 1e4, "rope_scaling": scaling, "max_position_embeddings": context}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ["generate", "Once upon a time", "-m", str(tmp_path), "--greedy"]
    n_prompt = len(json.loads(inside(*command, "-n", "0", "--json").stdout)["prompt_ids"])
    n_new = str(13 - n_prompt + 1)  # positions 0 to 12 are fed

    lines = inside(*command, "-n", n_new).stderr.decode().splitlines()
    assert [line for line in lines if line.startswith("cache   on") and said in line]
    for option, again in (("--cache", run_again), ("--no-cache", 0)):
        timings = json.loads(inside(*command, "-n", n_new, option, "--json").stdout)["timings"]
        assert timings["positions_run_again"] == again
        if option == "--cache":
            assert timings["positions_run"] == 13 + run_again
        else:
            assert timings["positions_run"] == sum(range(n_prompt, 14))
    within = inside(*command, "-n", str(11 - n_prompt)).stderr.decode()
    assert "cache   on" in within and "rotary" not in within


def test_dynamic_needs_more_than_one_pair() -> None:
    with pytest.raises(CheckpointError, match="kind dynamic divides by the turned numbers - 2"):
        RopeConfig(theta=1e4, dim=2, kind="dynamic", factor=2, original_context=50)
