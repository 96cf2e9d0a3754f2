"""Figures: words are drawn as they are, whatever matplotlib or its settings would make of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kvgen.bench.report import ReportContext
from kvgen.errors import KvgenError
from kvgen.loading import default_model
from tests.command import KVGEN, assert_fails, inside
from tests.reports import make_context

matplotlib = pytest.importorskip("matplotlib")

from kvgen.render.plot import check_latency_figure  # noqa: E402

BENCH = ["bench", "-p", "4", "-n", "2", "-r", "1", "--backend", "numpy"]
NAMES = {
    "run$1_$2": "run$1_$2",
    r"\$a$ $\frac$": r"\$a$ $\frac$",
    "$": "$",
    "_hidden": "_hidden",
    "月 🐈 \u0e01": "月 🐈 \u0e01",
    "a\x1b]0;x\x07\x00\nb\tc": r"a\x1b]0;x\x07\x00 b c",
    "\ud800\u202e": r"\ud800\u202e",
    "<b>&amp;": "<b>&amp;",
    "": "",
}


def context(model: str) -> ReportContext:
    return make_context(model=model, cpu="CPU $1^$2")


def words_in(svg: bytes) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.text]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that are drawn, where the words of an .svg are words and not shapes."""
    from kvgen.render import plot

    made: list[bytes] = []
    draw = plot._file_of

    def file_of(figure: Any, kind: str) -> bytes:
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            made.append(draw(figure, kind))
        return made[-1]

    monkeypatch.setattr(plot, "_file_of", file_of)
    return made


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_drawn_as_it_is(name: str, drawn: list[bytes]) -> None:
    for kind in ("png", "pdf", "svg"):
        check_latency_figure(context(name), kind=kind)
    assert f"{NAMES[name]} · CPU $1^$2 (dashed: predicted)".strip() in [
        text.strip() for text in words_in(drawn[-1])
    ]


def test_a_long_name_is_cut_and_has_a_line_of_its_own(drawn: list[bytes]) -> None:
    check_latency_figure(context("x" * 1000), kind="svg")
    names = [text for text in words_in(drawn[-1]) if "xxx" in text and len(text) < 80]
    assert names and " ... " in names[0]


def test_tokens_are_drawn_as_they_are(tmp_path: Path, drawn: list[bytes]) -> None:
    file = tmp_path / "map.svg"
    prompt = "$a_b$ \x1b _c 月\n\\frac$"
    run = inside(
        "inspect-attention", prompt, "-l", "1", "-H", "1", "-o", str(file), "--backend", "numpy"
    )
    assert run.returncode == 0, run.stderr
    words = [text.strip() for text in words_in(drawn[-1])]
    assert "$" in words or "$a" in words or "␣$" in words, words
    assert any(r"\x1b" in word for word in words)


def test_a_benchmark_of_a_model_with_dollars_in_its_name_is_drawn(tmp_path: Path) -> None:
    folder = tmp_path / "run$1_$2 月"
    folder.mkdir()
    for file in default_model().iterdir():
        (folder / file.name).symlink_to(file)
    figure = tmp_path / "y.png"
    run = inside(*BENCH, "-m", str(folder), "--plot", str(figure), "-q")
    assert (run.returncode, run.stderr) == (0, b"")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_settings_of_the_user_neither_break_a_figure_nor_speak(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    settings = tmp_path / "matplotlibrc"
    settings.write_text(
        "text.usetex: True\ntext.parse_math: False\nbackend: nonsense\nfont.family: nonsense\n"
        "nonsense: 3\naxes.titlesize: nonsense\n"
    )
    figure = tmp_path / "y.svg"
    run = subprocess.run(
        [*KVGEN, *BENCH, "-m", str(tiny_folder("gpt2")), "--plot", str(figure), "-q"],
        capture_output=True, check=False,
        env=os.environ | {"MATPLOTLIBRC": str(settings), "MPLCONFIGDIR": str(tmp_path / "no/such")},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, b"")
    assert figure.exists()


# --- told before anything is run ----------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["bench", "--plot", "y.png"], ["inspect-attention", "hi", "-o", "y.png"]]
)
def test_a_missing_matplotlib_is_told_before_a_model_is_looked_for(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_fails(inside(*command, "-m", "no/such/model"), 2, "pip install 'kvgen[plot]'")


def test_a_backend_that_matplotlib_does_not_know_is_told(tmp_path: Path) -> None:
    run = subprocess.run(
        [*KVGEN, *BENCH, "--plot", str(tmp_path / "y.png")], capture_output=True, check=False,
        env=os.environ | {"MPLBACKEND": "non\x1bsense"},
    )  # fmt: skip
    if run.returncode:  # a matplotlib that looks at it when it is loaded
        assert_fails(run, 2, "matplotlib cannot be loaded: ")
        assert b"\x1b" not in run.stderr


def test_a_figure_that_cannot_be_drawn_is_told_before_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no\nfont")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(KvgenError, match="matplotlib cannot draw the figure: no font"):
        check_latency_figure(context("x"), kind="png")
    run = inside(*BENCH, "--plot", str(tmp_path / "y.png"))
    assert_fails(run, 1, "matplotlib cannot draw the figure: no font")


def test_too_many_maps_are_told_before_the_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvgen.render.plot._MOST_MAPS", 3)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr("kvgen.attention.record.record", fail)
    run = inside("inspect-attention", "hi", "-o", str(tmp_path / "y.png"), "--backend", "numpy")
    assert_fails(run, 2, "maps are too many for a figure of at most 3")
