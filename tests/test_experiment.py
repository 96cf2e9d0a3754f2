"""`Model.bench` from Python: what it gives, what it writes, what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from kvgen.choices import REPORTS
from kvgen.errors import KvgenError, UsageError
from kvgen.experiment import Experiment
from tests.conftest import Loader

IDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def experiment(tiny_model: Loader) -> Experiment:
    model = tiny_model("llama_gqa", backend="numpy")
    return model.bench(IDS, max_new_tokens=2, repetitions=1)


def test_it_says_what_was_timed_and_how_the_arms_compare(experiment: Experiment) -> None:
    slower = experiment.times_slower
    assert slower is not None and slower > 0
    assert repr(experiment).startswith("<Experiment on ")
    assert "5 + 2 tokens, cache on, off" in repr(experiment)
    assert f"{slower:.3g} times slower without the cache" in repr(experiment)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_its_text_keeps_to_the_width(experiment: Experiment, width: int) -> None:
    for details in (False, True):
        lines = experiment.text(width=width, details=details).splitlines()
        assert max(map(cell_len, lines)) <= width and "\x1b" not in "".join(lines)


def test_every_report_can_be_saved_and_is_what_content_gives(
    experiment: Experiment, tmp_path: Path
) -> None:
    for ending in REPORTS:
        file = tmp_path / f"report{ending}"
        experiment.save(file)
        assert file.read_bytes() == experiment.content(ending[1:])
    whole = json.loads((tmp_path / "report.json").read_text())
    assert {one["cache"] for one in whole["results"]} == {"on", "off"}
    lines = (tmp_path / "report.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) >= 2
    assert len(list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))) >= 2


def test_figures_are_files_of_their_kind(experiment: Experiment) -> None:
    pytest.importorskip("matplotlib")
    for kind, begin in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        assert experiment.content(kind).startswith(begin)


def test_one_arm_is_not_compared(tiny_model: Loader) -> None:
    one = tiny_model("llama_gqa", backend="numpy").bench(
        IDS, max_new_tokens=1, arms=["on", "on"], repetitions=1
    )
    assert one.times_slower is None and one.report.plan.arms == ("on",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ["cache"]}, "arm 'cache' is not one of on, off, on"),
        ({"arms": "on"}, r"arms 'on' is not a list: write \['on'\]"),
        ({"arms": []}, "0 arms, 1 repetitions and 2 new tokens cannot be timed"),
        ({"repetitions": 0}, "2 arms, 0 repetitions"),
        ({"max_new_tokens": -1}, "-1 new tokens cannot be timed"),
        ({"max_new_tokens": 10**6}, "exceed the context"),
    ],
)
def test_what_cannot_be_timed_is_refused(
    options: dict[str, object], message: str, tiny_model: Loader
) -> None:
    model = tiny_model("llama_gqa", backend="numpy")
    with pytest.raises(UsageError, match=message):
        model.bench(IDS, **{"max_new_tokens": 2, "repetitions": 1, **options})  # type: ignore[arg-type]


def test_files_that_cannot_be_written_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the name must end in \.\w+, "):
        experiment.save(tmp_path / "report.exe")
    with pytest.raises(KvgenError, match="cannot be written: No such file"):
        experiment.save(tmp_path / "nowhere" / "report.json")
    with pytest.raises(UsageError, match="'exe' is not a kind of report"):
        experiment.content("exe")
