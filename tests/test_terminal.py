"""What a terminal is given: text from elsewhere must not act on it (CWE-150)."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from kvgen.loading import default_model
from kvgen.render.canvas import Canvas, token_label
from kvgen.render.draw import draw
from kvgen.visible import one_line, visible
from tests import tiny
from tests.command import COMMANDS, KVGEN, Run, assert_fails, inside

TITLE, CLIPBOARD = "\x1b]0;owned\x07", "\x1b]52;c;b3duZWQ=\x07"
HOSTILE = f"a{TITLE}b{CLIPBOARD}c\r\x08\x7f\x9b2J\u202ed\u2066e\u200ff\u061cg"
SEEN = r"a\x1b]0;owned\x07b\x1b]52;c;b3duZWQ=\x07c\r\x08\x7f\x9b2J\u202ed\u2066e\u200ff\u061cg"
GREEDY = ["--greedy", "--backend", "numpy"]


def on_terminal(*arguments: str, stdin: bytes = b"", **environment: str) -> Run:
    """Run the command with stdout and stderr on one terminal; what it was given is `stdout`."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*KVGEN, *arguments], stdin=subprocess.PIPE, stdout=terminal, stderr=terminal,
        env=os.environ | {"TERM": "xterm-256color"} | environment,
    )  # fmt: skip
    os.close(terminal)
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    given = b""
    with contextlib.suppress(OSError):  # raised when the other end is closed
        while part := os.read(controller, 4096):
            given += part
    os.close(controller)
    # The terminal itself makes CR LF of each line end.
    return Run(arguments, process.wait(timeout=60), given.replace(b"\r\n", b"\n"), b"")


@pytest.fixture(scope="module")
def hostile_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, with names in its files and a token that it writes made hostile."""
    folder = tmp_path_factory.mktemp("models") / f"x{TITLE}[red]\n$1_$2"
    folder.mkdir()
    for file in default_model().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    run = inside("generate", "Once upon a time", "-n", "1", *GREEDY, "--json")
    token = json.loads(run.stdout)["ids"][0]
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    old = next(name for name, number in vocabulary.items() if number == token)
    del vocabulary[old]
    vocabulary[HOSTILE] = token
    content["model"]["merges"] = [
        pair for pair in content["model"]["merges"] if old not in (*pair, "".join(pair))
    ]
    path.write_text(json.dumps(content), "utf-8")
    return folder


# --- one rule -----------------------------------------------------------------------------------


def test_every_character_that_acts_is_written_out() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        kind = unicodedata.category(character)
        acts = (kind[0] == "C" or kind in ("Zl", "Zp")) and character not in "\n\t\u200c\u200d"
        shown = visible(character)
        assert (shown == character) is not acts, hex(number)
        assert shown.isprintable() or not acts


def test_what_belongs_to_writing_stays() -> None:
    joined = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f"
    for text in (joined, "e\u0301", "می\u200cخواهم", "क्\u200dष", "a\u00a0b\u3000c", "one\n\ttwo"):
        assert visible(text) == text


def test_text_cut_into_pieces_comes_out_the_same() -> None:
    text = HOSTILE + "\r\n\ud83d\udc08"
    assert "".join(map(visible, text)) == visible(text)


def test_maps_and_text_show_the_same_pictures() -> None:
    for character in HOSTILE:
        label = token_label(character.encode(), Canvas(80, "glyphs"), 10).rstrip()
        assert label == visible(character)


def test_a_message_is_one_line_that_can_be_read() -> None:
    assert one_line("a\r\n  b\n\n\tc\td  e\x1b") == r"a b c d  e\x1b"
    long = one_line("file.json: " + "x" * 10**6 + ": do this", most=400)
    assert len(long) <= 400 + 5
    assert long.startswith("file.json: xxx") and long.endswith("xxx: do this")
    assert one_line("x" * 400, most=400) == "x" * 400


# --- generate -----------------------------------------------------------------------------------


def test_a_hostile_prompt_is_written_out_on_a_terminal_and_left_alone_in_a_pipe() -> None:
    flags = ["-", "--echo", "-n", "0", "-q", "--backend", "numpy"]
    prompt = HOSTILE.encode()
    assert on_terminal("generate", *flags, stdin=prompt).stdout == SEEN.encode() + b"\n"
    run = subprocess.run(
        [*KVGEN, "generate", *flags], input=prompt, capture_output=True, check=True
    )
    assert run.stdout == prompt


def test_what_a_hostile_model_writes_is_written_out_on_a_terminal(hostile_model: Path) -> None:
    command = ["generate", "Once upon a time", "-m", str(hostile_model), "-n", "1", *GREEDY]
    shown = on_terminal(*command, "-v").stdout.decode()
    assert SEEN in shown
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
    assert inside(*command, "-q").stdout.decode() == HOSTILE


def test_a_watched_head_shows_hostile_text_written_out(hostile_model: Path) -> None:
    command = ["generate", "Once upon a time", "-m", str(hostile_model), "-n", "3", *GREEDY]
    shown = on_terminal(*command, "--watch", "1.1", COLUMNS="200", LINES="40").stdout.decode()
    assert r"a\x1b]0;owned" in shown
    assert TITLE not in shown and CLIPBOARD not in shown and "\u202e" not in shown


def test_generated_text_on_a_terminal_is_broken_between_words() -> None:
    prompt = "Once upon a time there was a very small mouse in a very large house of stone"
    flags = ["-", "--echo", "-n", "0", "-q", "--backend", "numpy"]
    run = on_terminal("generate", *flags, stdin=prompt.encode(), COLUMNS="30")
    lines = run.stdout.decode().splitlines()
    assert run.returncode == 0 and max(map(len, lines)) <= 30
    assert " ".join(lines) == prompt


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437", "shift_jis"])
def test_a_terminal_that_is_not_utf8_gets_nothing_that_acts(encoding: str) -> None:
    run = on_terminal(
        "generate", "-", "--echo", "-n", "0", "-q", "--backend", "numpy",
        stdin=HOSTILE.encode() + "é月".encode(), PYTHONIOENCODING=encoding,
    )  # fmt: skip
    assert run.returncode == 0
    assert run.stdout.startswith(SEEN.encode()) and b"\x1b" not in run.stdout


# --- names in views, notes and error lines ------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["generate", "hi", "-v", "-n", "1"],
        ["bench", "-p", "4", "-n", "2", "-r", "1"],
        ["bench", "-p", "4", "-n", "2", "-r", "1", "-o", "md"],
        ["bench", "-p", "4", "-n", "2", "-r", "1", "-o", "csv"],
        ["verify", "-p", "4"],
        ["inspect-attention", "Once", "-l", "1", "-H", "1", "-n", "2"],
    ],
    ids=" ".join,
)
def test_a_hostile_name_of_a_model_is_shown_as_it_is_but_harmless(
    command: list[str], hostile_model: Path, tmp_path: Path
) -> None:
    folder = hostile_model
    if command[0] == "bench":  # a small model is measured sooner
        folder = tiny.write_checkpoint(tmp_path / hostile_model.name, "gpt2")
    model = ["-m", str(folder), "--backend", "numpy"]
    run = on_terminal(*command, *(model if command != ["info"] else model[:2]), NO_COLOR="1")
    text = run.stdout.decode()
    assert run.returncode == 0, text
    assert TITLE not in text and "\x07" not in text and "\u202e" not in text
    if command[0] in ("info", "bench") and "csv" not in command:
        if "md" in command:
            text = text.replace("\\\\", "\\").replace("\\[", "[")
        assert "x\\x1b]0;owned\\x07[red] $1_$2" in " ".join(text.split())


def test_hostile_names_are_harmless_in_error_lines_on_a_pipe_too(tmp_path: Path) -> None:
    assert_fails(inside("info", f"no{TITLE}"), 3, r"no\x1b]0;owned\x07: there is no such")
    assert_fails(inside("generate", "-f", "\u202etxt.a"), 2, r"\u202etxt.a: cannot be read")
    assert_fails(inside("generate", "hi", "--dtype", f"x{TITLE}"), 2, "is not one of")
    assert_fails(inside("generate", "hi", f"--x{TITLE}"), 2, r"--x\x1b]0;owned")
    assert_fails(inside("generate", "hi", "-n", "\x9b2J"), 2, "is not a valid integer")
    assert_fails(inside(f"generate{TITLE}"), 2, r"generate\x1b]0;owned\x07")
    folder = tmp_path / "model"
    folder.mkdir()
    for file in default_model().iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "tokenizer.json").unlink()
    content = json.loads((default_model() / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(content | {"version": HOSTILE}), "utf-8")
    run = inside("generate", "hi", "-m", str(folder))
    assert_fails(run, 4, "is not a usable tokenizer")
    assert visible(run.stderr.decode()) == run.stderr.decode()


def test_a_long_value_in_an_error_line_is_shortened() -> None:
    run = inside("generate", "-f", "x" * 10**5)
    assert_fails(run, 2, "xxx: cannot be read: File name too long")
    assert len(run.stderr) < 500


def test_a_hostile_report_is_compared_as_text(tmp_path: Path) -> None:
    rates = dict.fromkeys(("median", "mean", "stdev", "min", "max"), 1.0)
    key = {"depth": 0, "cache": "on", "dtype": "f32", "cache_dtype": "f32", "backend": "numpy"}
    test = key | {
        "test": f"[link=x]{TITLE}[/nothing]:cat:",
        "threads": 1,
        "tokens_per_second": rates,
    }
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        report = {"results": [test], "model": f"{path.name}\n{CLIPBOARD}", "environment": {}}
        path.write_text(json.dumps(report))
    run = inside("bench", "--compare", *map(str, paths), "--width", "200")
    text = run.stdout.decode()
    assert run.returncode == 0, run.stderr
    assert r"[link=x]\x1b]0;owned\x07[/nothing]:cat:" in text
    assert r"differs  model: a.json \x1b]52;c;b3duZWQ=\x07 -> b.json" in text
    assert visible(text) == text


@pytest.mark.parametrize("mode", ["glyphs", "color"])
def test_a_view_takes_words_as_they_are(mode: str) -> None:
    table = Table("[red]name", box=None)
    table.add_row(f"[link=x]{TITLE}", style="bold")
    for view in (table, Text(TITLE), f"[b]:cat:{TITLE}"):
        text = draw(view, Canvas(80, mode))  # type: ignore[arg-type]
        assert TITLE not in text and r"\x1b]0;owned" in text


def test_what_python_prints_by_itself_is_a_line_too() -> None:
    script = (
        "import sys, threading, warnings\n"
        "from kvgen import cli\n"
        f"title = {TITLE!r}\n"
        "def run(_):\n"
        "    warnings.warn('one\\n' + title)\n"
        "    def fail():\n"
        "        raise ValueError('two\\n' + title)\n"
        "    thread = threading.Thread(target=fail)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "    class Lost:\n"
        "        def __del__(self):\n"
        "            raise ValueError('three' + title)\n"
        "    Lost()\n"
        "    return 0\n"
        "cli.run = run\n"
        "cli.main()\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert run.stderr.decode().splitlines() == [
        r"warning: one \x1b]0;owned\x07",
        r"internal error: ValueError: two \x1b]0;owned\x07",
        r"internal error: ValueError: three\x1b]0;owned\x07",
    ]


def test_a_panic_of_a_library_is_a_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException(f"no entry\nfor {TITLE}")

    monkeypatch.setattr(COMMANDS["generate"], "callback", panic)
    run = inside("generate", "hi")
    assert_fails(run, 1, r"internal error: PanicException: no entry for \x1b]0;owned\x07; please")


def test_importing_the_command_line_leaves_warnings_alone() -> None:
    assert warnings.showwarning.__module__ != "kvgen.cli"
