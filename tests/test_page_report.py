"""A benchmark's page in a real browser: its sentences and numbers are those of the report."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from kvgen.bench.plan import BenchPlan, Workload
from kvgen.bench.report import BenchReport, StepScores
from kvgen.bench.run import bench
from kvgen.choices import ArmName
from kvgen.cli import run as run_cli
from kvgen.engine.calibration import Calibration
from kvgen.engine.rope import length_dependent
from kvgen.experiment import Experiment
from kvgen.page.report_content import report_content
from kvgen.render.bench_words import bench_words, missing_parts
from tests import tiny
from tests.browser import chromium, opened, require
from tests.conftest import Loader
from tests.reports import make_context
from tests.test_page import AXE
from tests.test_render import make_report

N_PROMPT, N_GEN = 12, 6
SPEED = Calibration(
    read_bytes_per_second=1e10, flops_per_second=1e11, attention_flops_per_second=1e10
)
HOSTILE = "</script><script>document.title='owned'</script> \u202e${1} <b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def measured(
    load: Loader, name: str = "llama_gqa", arms: tuple[ArmName, ...] = ("on", "off")
) -> Experiment:
    """A real run of a tiny model."""
    model = load(name, backend="numpy")
    work = Workload(
        ids=tuple(tiny.make_ids(N_PROMPT, seed=4)),
        n_prompt=N_PROMPT,
        n_gen=N_GEN,
        ropes=length_dependent(model.config),
    )
    plan = BenchPlan(workloads=(work,), arms=arms, repetitions=3, over_seconds=1e9)
    report = bench([model.engine], model.params, plan, calibrations=[SPEED])
    return Experiment(report, make_context(model=name))


def invented(n_prompt: int = 9, **changes: Any) -> Experiment:
    """A report with invented figures."""
    report = make_report(n_prompt)
    scores = tuple(StepScores(on=maps.n_scores_on, off=maps.n_scores_off) for maps in report.maps)
    return Experiment(replace(report, **({"scores": scores} | changes)), make_context())


def saved(experiment: Experiment, path: Path) -> Path:
    experiment.save(path)
    return path


def facts_of(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', text)
    assert found is not None
    return json.loads(found[1])


def cells_of(shown: Any, where: str) -> list[list[str]]:
    return [
        [cell.inner_text() for cell in row.locator("th, td").all()]
        for row in shown.locator(f"{where} tbody tr").all()
    ]


@pytest.mark.parametrize("arms", [("on",), ("on", "off"), ("on", "off", "on+q")])
def test_the_sentences_are_those_of_the_terminal(
    arms: tuple[ArmName, ...], tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    experiment = measured(tiny_model, arms=arms)
    printed = experiment.text(width=2000, details=True)
    with opened(browser, saved(experiment, tmp_path / "report.html")) as shown:
        lines = shown.locator(".answers p, .checks li, .setting p, .note, #ledger .hint").all()
        texts = [line.evaluate("one => one.textContent") for line in lines]
        words = shown.locator("#need .words, #rows .words").all_inner_texts()
    assert len(texts) >= 8
    ours = "Counted by the reference engine, which"  # the one sentence of the page alone
    for text in [*texts, *words]:
        assert text.lstrip("✓✗") in printed or text.startswith(ours), text
    assert texts[0] == printed.splitlines()[0]
    assert len(words) == (0 if arms == ("on",) else 3 if "off" not in arms else 7)


def test_times_in_the_page_are_those_of_the_samples(
    tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    experiment = measured(tiny_model, arms=("on", "off", "on+q"))
    run = experiment.report.runs[0]
    file = saved(experiment, tmp_path / "report.html")
    for step in (0, 3, N_GEN - 1):
        with opened(browser, file, address=f"#s={step}") as shown:
            said = shown.locator("#times").inner_text()
            told = shown.locator("#chart").get_attribute("aria-valuetext")
            shown.locator("#times-table summary").click()
            row = cells_of(shown, "#times-table")[step]
        assert told == said and f"step {step + 1} · position {N_PROMPT + step} ·" in said
        expected = [f"{N_PROMPT + step}"]
        for arm in run.arms:
            times = [1e3 * samples[step] for samples in arm.step_seconds]
            predicted = f"{1e3 * run.predicted_step(arm.name, step):.2f}"
            assert (
                f"cache {arm.name} {median(times):.2f} ms ({min(times):.2f}..{max(times):.2f}), "
                f"predicted {predicted}"
            ) in said
            expected += [f"{median(times):.2f}", predicted]
        on, off = (median(samples[step] for samples in arm.step_seconds) for arm in run.arms[:2])
        assert said.endswith(f"{off / on:.1f} times slower")
        assert row == [*expected, f"{off / on:.1f}"]


def test_rates_stand_beside_what_was_predicted(
    tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    experiment = measured(tiny_model)
    run = experiment.report.runs[0]
    with opened(browser, saved(experiment, tmp_path / "report.html")) as shown:
        rows = cells_of(shown, "#rates")
    on, off = run.arms
    rates = [N_GEN / sum(samples) for samples in off.step_seconds]
    predicted = N_GEN / sum(run.predicted_step("off", step) for step in range(N_GEN))
    slower = median(map(sum, off.step_seconds)) / median(map(sum, on.step_seconds))
    assert [row[:2] for row in rows] == [
        [f"pp{N_PROMPT}", "on"], [f"tg{N_GEN} @ d{N_PROMPT}", "on"],
        [f"tg{N_GEN} @ d{N_PROMPT}", "off"],
    ]  # fmt: skip
    positions = sum(range(N_PROMPT + 1, N_PROMPT + N_GEN + 1))
    assert rows[2][2:] == [
        f"{median(rates):,.1f}", f"{min(rates):,.1f}..{max(rates):,.1f}", f"{predicted:,.1f}",
        f"{positions}", f"{slower:.1f}",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["llama_gqa", "mistral"])
def test_each_step_has_its_scores_and_the_sum_so_far(
    name: str, tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    experiment = measured(tiny_model, name)
    report = experiment.report
    assert report.head is not None
    window = report.runs[0].cost.config.window(report.head[0])
    seen = [min(i + 1, window or i + 1) for i in range(N_PROMPT + N_GEN)]  # keys of each query
    on = seen[N_PROMPT:]
    off = [sum(seen[: N_PROMPT + step + 1]) for step in range(N_GEN)]
    with opened(browser, saved(experiment, tmp_path / "report.html")) as shown:
        slider = shown.locator("#step")
        for step in (N_GEN - 1, 0, 2):
            slider.fill(str(step))
            title = f"step {step + 1} of {N_GEN}"
            shown.wait_for_function(
                "title => document.getElementById('step-title').textContent.startsWith(title)",
                arg=title,
            )
            sums = sum(on[: step + 1]), sum(off[: step + 1])
            assert cells_of(shown, "#scores") == [
                ["this step", f"{on[step]:,}", f"{off[step]:,}", f"{off[step] / on[step]:.1f} ×"],
                ["steps so far", f"{sums[0]:,}", f"{sums[1]:,}", f"{sums[1] / sums[0]:.1f} ×"],
            ]
            row = shown.locator("#maps canvas").first.get_attribute("aria-label")
            assert row == f"cache on, step {step + 1}: one row of {on[step]} scores"


def test_rows_that_change_with_the_length_are_drawn_where_they_were_captured(
    tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    experiment = measured(tiny_model, "llama_dynamic")
    assert experiment.report.runs[0].workload.ropes
    captured = [maps.step for maps in experiment.report.maps]
    with opened(browser, saved(experiment, tmp_path / "report.html")) as shown:
        assert shown.locator("#step").get_attribute("max") == f"{len(captured) - 1}"
        assert "captured at these 3 steps" in shown.locator("#maps .hint").inner_text()
        shown.get_by_role("button", name="before").click()
        title = f"step {captured[1] + 1} of {N_GEN}"
        shown.wait_for_function(
            "title => document.getElementById('step-title').textContent.startsWith(title)",
            arg=title,
        )


def test_the_cached_row_and_the_triangle_grow_with_the_steps(
    tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    """Pixels that are not the panel's: more of the triangle with each step, few of the row."""
    file = saved(measured(tiny_model), tmp_path / "report.html")
    count = """canvas => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let n = 0;
        for (let i = 0; i < data.length; i += 4) n += data[i + 2] > 60 && data[i + 1] < 50;
        return n;
    }"""
    drawn = []
    for step in range(N_GEN):
        with opened(browser, file, address=f"#s={step}") as shown:
            canvases = shown.locator("#maps canvas")
            drawn.append([canvases.nth(arm).evaluate(count) for arm in (0, 1)])
    whole = [off for _, off in drawn]
    assert whole == sorted(whole) and whole[-1] > 1.4 * whole[0]
    assert all(on < off for on, off in drawn)


@pytest.mark.parametrize("n_prompt", [9, 1200])
def test_maps_come_back_out_of_their_block(n_prompt: int) -> None:
    experiment = invented(n_prompt)
    report = experiment.report
    content = report_content(report, {}, {})
    maps = content.facts["maps"]
    block = zlib.decompress(base64.b64decode(content.blocks["maps-block"]))
    for place in maps["arrays"]:
        kind, _, step = place["name"].partition("-")
        captured = next(one for one in report.maps if one.step == int(step))
        dtype = {"f32": np.float32, "u8": np.uint8}[place["dtype"]]
        numbers = np.frombuffer(block, dtype, int(np.prod(place["shape"])), place["offset"])
        if kind == "on":
            assert np.array_equal(numbers, captured.on[0])
            continue
        size, S = maps["bin"], captured.on.shape[1]
        n = -(-S // size)
        assert size == (1 if n_prompt == 9 else 3) and len(numbers) == n * (n + 1) // 2
        square = np.zeros((n, n))
        square[np.tril_indices(n)] = (numbers / 255.0) ** 2
        assert captured.off is not None
        for i, j in [(0, 0), (n - 1, n - 1), (n // 2, n // 3)]:
            cell = captured.off[i * size : (i + 1) * size, j * size : (j + 1) * size]
            assert square[i, j] == pytest.approx(float(cell.max()), abs=4e-3)


def test_changed_rows_are_told_position_by_position(
    tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    experiment = measured(tiny_model, "mistral")
    asked = experiment.report.interventions
    layers = sorted({one.layer for one in asked})
    with opened(browser, saved(experiment, tmp_path / "report.html")) as shown:
        need = shown.locator("#need")
        need.focus()
        shown.keyboard.press("Home")
        for place in range(3):
            shown.wait_for_function(
                "at => document.getElementById('need').getAttribute('aria-valuetext')"
                ".startsWith(`position ${at} `)",
                arg=place,
            )
            said = need.get_attribute("aria-valuetext")
            assert said is not None
            for kind in ("k", "v", "q"):
                changes = [one.max_abs_logit_change[place] for one in asked if one.row == kind]
                most = max(changes)
                words = f"{most:.2g}" if most else "not one bit"
                assert f"{kind.upper()} {words}" in said
            assert said.endswith("Q not one bit")
            shown.keyboard.press("ArrowRight")
        shown.locator("#rows select").select_option(str(layers[-1]))
        shown.wait_for_function("() => location.hash.includes('y=')")
        words = shown.locator("#need .words").all_inner_texts()
    of_layer = [one for one in asked if one.layer == layers[-1]]
    for text, one in zip(words, of_layer, strict=True):
        assert text.startswith(f"{one.n_changing} of {len(one.positions)} rows matter")


def test_keys_choose_steps_and_the_address_remembers(
    tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    file = saved(measured(tiny_model), tmp_path / "report.html")
    with opened(browser, file, address="#s=3") as shown:

        def at(step: int) -> None:
            shown.wait_for_function(
                "step => document.querySelector('#step').value === step", arg=f"{step}"
            )
            assert f"s={step}" in shown.url.split("#")[1].split("&")
            assert shown.locator("#chart").get_attribute("aria-valuenow") == f"{step + 1}"

        shown.keyboard.press("]")
        at(4)
        shown.keyboard.press("[")
        shown.keyboard.press("[")
        at(2)
        shown.locator("#chart").focus()
        shown.keyboard.press("ArrowLeft")
        at(1)
        shown.keyboard.press("End")
        at(N_GEN - 1)
        shown.get_by_role("button", name="first").click()
        at(0)
        shown.get_by_role("button", name="next").click()
        at(1)
        shown.locator("#times-table summary").click()
        shown.locator("#times-table tbody tr").nth(4).click()
        at(4)
        box = shown.locator("#chart svg").bounding_box()
        shown.mouse.move(box["x"] + 60, box["y"] + 100)
        assert shown.locator("#times").inner_text().startswith("step 1 ")
        shown.mouse.click(box["x"] + box["width"] - 20, box["y"] + 100)
        at(N_GEN - 1)
        shown.keyboard.press("?")
        assert shown.locator("#help").is_visible()
        shown.keyboard.press("Escape")
        shown.keyboard.press("t")
        shown.wait_for_selector("html[data-theme=light]")


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_screen(
    width: int, scheme: str, browser: Any, tmp_path: Path
) -> None:
    file = saved(invented(300), tmp_path / "report.html")
    with opened(browser, file, width=width, scheme=scheme, address="#y=1&p=7") as shown:
        shown.locator("#times-table summary").click()
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        wide = "all => all.filter(one => one.getBoundingClientRect().right > innerWidth).length"
        assert (
            shown.locator("canvas, svg, h2, h3, p, button, input, figure").evaluate_all(wide) == 0
        )


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_no_serious_fault(scheme: str, browser: Any, tmp_path: Path) -> None:
    require(AXE.exists(), "axe-core (npm ci in tests/page)")
    file = saved(invented(), tmp_path / "report.html")
    with opened(browser, file, scheme=scheme) as shown:
        shown.locator("#times-table summary").click()
        shown.add_script_tag(path=AXE)
        found = shown.evaluate("axe.run()")["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


ABSENT: dict[str, Any] = {"head": None, "maps": (), "scores": ()}
UNCOUNTED: dict[str, Any] = {"ledger": None, "later_token": None, "recomputed": ()}


@pytest.mark.parametrize(
    ("changes", "hidden", "said"),
    [
        ({"interrupted": True, "interventions": (), **ABSENT, **UNCOUNTED}, "maps rows ledger",
         "the run was interrupted before it had maps, changed rows, counted rows"),
        ({"interrupted": True, **UNCOUNTED}, "ledger",
         "the run was interrupted before it had counted rows"),
        ({"interventions": (), "recomputed": (),
          "plan": replace(make_report(9).plan, most_positions=0)}, "rows",
         "no kept rows were changed: leave out --changed-rows 0"),
        ({"runs": make_report(9, ("f32", "int8")).runs}, "maps rows ledger",
         "changed rows, counted rows and maps are shown for a single run: ask for one length, "
         "dtype and backend"),
        ({}, "", None),
    ],
)  # fmt: skip
def test_a_part_that_is_missing_is_left_out_and_named(
    changes: dict[str, Any], hidden: str, said: str | None, browser: Any, tmp_path: Path
) -> None:
    experiment = invented(**changes)
    assert missing_parts(experiment.report) == ([] if said is None else [said])
    with opened(browser, saved(experiment, tmp_path / "report.html")) as shown:
        for part in ("answer", "curves", "maps", "rows", "ledger", "rates"):
            assert shown.locator(f"#{part}").is_visible() == (part not in hidden.split()), part
        assert shown.locator(".missing li").all_inner_texts() == ([said] if said else [])


def test_each_of_several_runs_can_be_chosen(browser: Any, tmp_path: Path) -> None:
    experiment = invented(runs=make_report(9, ("f32", "int8")).runs)
    with opened(browser, saved(experiment, tmp_path / "report.html")) as shown:
        options = shown.locator("#curves select option").all_inner_texts()
        shown.locator("#curves select").select_option("1")
        shown.wait_for_function("() => location.hash.includes('r=1')")
        assert len(cells_of(shown, "#rates")) == 8
    assert options == ["f32 dtype", "int8 dtype"]


def test_a_prefill_alone_has_its_rate_and_no_curve(
    tiny_model: Loader, browser: Any, tmp_path: Path
) -> None:
    model = tiny_model("gpt2", backend="numpy")
    experiment = model.bench(tiny.make_ids(9, seed=1), max_new_tokens=0, arms=["on"], repetitions=1)
    with opened(browser, saved(experiment, tmp_path / "report.html")) as shown:
        assert not shown.locator("#curves").is_visible()
        assert [row[0] for row in cells_of(shown, "#rates")] == ["pp9"]
        assert "no decode steps were run" in shown.locator(".missing").inner_text()


def test_one_step_and_long_texts_are_drawn(browser: Any, tmp_path: Path) -> None:
    with opened(browser, saved(invented(2000), tmp_path / "long.html")) as shown:
        assert "the greatest of 4 × 4 neighbours" in shown.locator("#maps .hint").inner_text()
    with opened(browser, saved(invented(1), tmp_path / "short.html")) as shown:
        assert shown.locator("#need .words").count() == 3


def test_logits_that_overflow_are_named(browser: Any, tmp_path: Path) -> None:
    report = make_report(9)
    wild = replace(report.interventions[0], max_abs_logit_change=(float("inf"), *(0.5,) * 8))
    lost = replace(report.recomputed[0], max_abs_logit_change=float("inf"))
    experiment = invented(
        interventions=(wild, *report.interventions[1:]),
        recomputed=(lost, *report.recomputed[1:]),
    )
    with opened(browser, saved(experiment, tmp_path / "report.html"), address="#p=0") as shown:
        said = shown.locator("#need").get_attribute("aria-valuetext")
    assert said == (
        "position 0 · the greatest change in any layer: K no numbers · V 0.5 · Q not one bit"
    )


def test_what_failed_is_marked_without_colour(browser: Any, tmp_path: Path) -> None:
    report = make_report(9)
    checked = report.runs[0].verification
    assert checked is not None and report.ledger is not None
    wrong = replace(report.runs[0], verification=replace(checked, max_abs_logit_difference=1.0))
    experiment = invented(runs=(wrong,), ledger=replace(report.ledger, n_different=2))
    with opened(browser, saved(experiment, tmp_path / "report.html")) as shown:
        lines = shown.locator(".checks li").all_inner_texts()
    assert all(line.startswith("✗") for line in lines) and len(lines) == 2


def test_a_hostile_name_is_text(browser: Any, tmp_path: Path) -> None:
    context = replace(make_context(model=HOSTILE + "\udcff", cpu=HOSTILE), prompt=HOSTILE)
    file = saved(Experiment(invented().report, context), tmp_path / "report.html")
    with opened(browser, file) as shown:
        assert shown.title() != "owned" and "<b>" in shown.locator("h1").inner_text()
        assert shown.locator("#main b").count() == 0


def test_the_page_holds_the_whole_report_as_json(tiny_model: Loader, tmp_path: Path) -> None:
    experiment = measured(tiny_model)
    facts = facts_of(saved(experiment, tmp_path / "report.html"))
    assert facts["report"] == json.loads(experiment.content("json"))
    words = bench_words(experiment.report, experiment.context)
    assert facts["words"] == json.loads(json.dumps(words))


def test_every_step_has_counted_scores(tiny_model: Loader) -> None:
    report: BenchReport = measured(tiny_model).report
    assert len(report.scores) == N_GEN
    for maps in report.maps:
        counted = report.scores[maps.step]
        assert (counted.on, counted.off) == (maps.n_scores_on, maps.n_scores_off)


def test_a_notebook_shows_the_report() -> None:
    frame = invented()._repr_html_()
    assert frame.startswith('<iframe sandbox="allow-scripts"')
    assert 'title="a benchmark of the KV cache"' in frame


def test_the_command_writes_and_opens_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    file = tmp_path / "report.html"
    options = ["bench", "-p", "6", "-n", "2", "-r", "1", "-q", "-o", str(file)]
    assert run_cli([*options, "--open"]) == 0
    assert shown == [file.as_uri()] and "tok/s" in capsys.readouterr().out
    assert facts_of(file)["words"]["answers"]
    assert run_cli(["bench", "--open", "-o", str(tmp_path / "x.json")]) == 2
    assert "--open is for a page: add -o FILE.html" in capsys.readouterr().err
