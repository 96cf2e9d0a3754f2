"""Log-probabilities of new tokens, in Python, JSON and colours."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kvgen.errors import UsageError
from kvgen.model import Model
from kvgen.render.canvas import Canvas
from kvgen.render.draw import draw
from kvgen.render.probability import marked, painted, probability_legend
from kvgen.render.words import PaintedWrap, WordWrap
from kvgen.sampling import likeliest_tokens
from tests import tiny
from tests.command import KVGEN, PROMPT, assert_fails, inside, kvgen
from tests.conftest import BACKENDS, Loader
from tests.test_terminal import SEEN, hostile_model, on_terminal

__all__ = ["hostile_model"]  # a fixture

CLOSE = 1e-4  # cached against uncached logits, in float32
RUN = ["generate", PROMPT, "-n", "8", "--greedy"]
COLORS = {"COLORTERM": "truecolor"}


def by_hand(logits: np.ndarray) -> np.ndarray:
    """Log-softmax in float64."""
    exact = logits.astype(np.float64)
    return exact - np.log(np.exp(exact - exact.max()).sum()) - exact.max()


def assert_top_is_by_hand(model: Model, ids: list[int], *, n: int, **options: float) -> None:
    pieces = list(model.generate(ids, max_new_tokens=5, logprobs=n, seed=3, **options))
    logits = model.logits([*ids, *(piece.token for piece in pieces)])
    for step, piece in enumerate(pieces):
        expected = by_hand(logits[len(ids) + step - 1])
        tokens = [token for token, _ in piece.top]
        found = [logprob for _, logprob in piece.top]
        np.testing.assert_allclose(found, np.sort(expected)[::-1][:n], atol=CLOSE)
        np.testing.assert_allclose(found, expected[tokens], atol=CLOSE)
        assert len(set(tokens)) == len(tokens) == min(n, len(expected))
        assert piece.logprob == pytest.approx(expected[piece.token], abs=CLOSE)
        assert piece.logprob == dict(piece.top).get(piece.token, piece.logprob)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_the_likeliest_tokens_are_those_of_the_logits(
    name: str, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend)
    ids = tiny.make_ids(9, seed=4)
    assert_top_is_by_hand(model, ids, n=4, temperature=0.0)
    assert_top_is_by_hand(model, ids, n=1000, temperature=1.0, top_k=3)  # all of the vocabulary


def test_no_filter_of_the_default_model_changes_them(storyteller: Model) -> None:
    ids = storyteller.encode(PROMPT)
    for options in ({"temperature": 0.0}, {"temperature": 1.5, "top_k": 2, "min_p": 0.1}):
        assert_top_is_by_hand(storyteller, ids, n=5, **options)
    penalized = {"temperature": 0.0, "repetition_penalty": 1.5}
    assert_top_is_by_hand(storyteller, ids, n=20, **penalized)


def test_none_are_named_unless_asked_for(tiny_model: Loader) -> None:
    pieces = tiny_model("gpt2").generate([1, 2, 3], max_new_tokens=3)
    assert [piece.top for piece in pieces] == [()] * 3


def test_of_equal_logits_the_lower_id_comes_first() -> None:
    top = likeliest_tokens(np.float32([1, 2, 2, -0.0, 0.0]), 4)
    assert [token for token, _ in top] == [1, 2, 0, 3]
    assert likeliest_tokens(np.float32([1, 2]), 0) == ()


@pytest.mark.parametrize("count", [-1, 1.5, True, "3"])
def test_a_number_of_logprobs_that_cannot_be_is_refused(count: object, tiny_model: Loader) -> None:
    with pytest.raises(UsageError, match=r"logprobs is .* it must be a whole number, 0 or more"):
        tiny_model("gpt2").generate([1], logprobs=count)  # type: ignore[arg-type]


def test_json_names_each_token_and_the_likeliest() -> None:
    content = json.loads(inside(*RUN, "--json", "--logprobs", "3").stdout)
    entries = content["logprobs"]
    assert [entry["id"] for entry in entries] == content["ids"]
    assert "".join(entry["token"] for entry in entries) == content["text"]
    for entry in entries:
        assert list(entry) == ["id", "token", "logprob", "top"] and len(entry["top"]) == 3
        assert entry["top"][0] == [entry["id"], entry["token"], entry["logprob"]]  # greedy
        assert entry["top"][1][2] <= entry["logprob"] < 0
    bare = json.loads(inside(*RUN, "--json", "--logprobs", "0").stdout)["logprobs"]
    assert bare == [entry | {"top": []} for entry in entries]
    assert "logprobs" not in json.loads(inside(*RUN, "--json").stdout)


def test_lines_of_json_end_in_the_object_of_json() -> None:
    *tokens, last = map(json.loads, inside(*RUN, "--jsonl").stdout.splitlines())
    whole = json.loads(inside(*RUN, "--json").stdout)
    assert last.keys() == whole.keys() and last["ids"] == whole["ids"]
    assert [token["id"] for token in tokens] == whole["ids"]
    assert "".join(token["text"] for token in tokens) == last["text"] == whole["text"]
    assert all(list(token) == ["id", "text", "logprob"] for token in tokens)
    *tokens, last = map(json.loads, inside(*RUN, "--jsonl", "--logprobs", "2").stdout.splitlines())
    assert [token["top"] for token in tokens] == [entry["top"] for entry in last["logprobs"]]
    (only,) = inside(*RUN[:2], "-n", "0", "--jsonl").stdout.splitlines()
    assert json.loads(only)["ids"] == []


def test_an_interrupted_run_keeps_its_lines_of_json() -> None:
    process = subprocess.Popen(
        [*KVGEN, "generate", PROMPT, "-n", "1000", "--greedy", "--no-cache", "--jsonl"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())  # comes before the run has ended
    process.send_signal(signal.SIGINT)
    rest, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    *tokens, last = map(json.loads, rest.splitlines())
    assert last["finish_reason"] == "interrupted"
    printed = [first["id"], *(token["id"] for token in tokens)]
    assert last["ids"][: len(printed)] == printed
    assert len(last["ids"]) - len(printed) in (0, 1)  # the signal may come before the last line


@pytest.mark.parametrize("flags", [["--show-probs"], ["--jsonl"]], ids=" ".join)
def test_a_closed_stdout_is_no_failure(flags: list[str]) -> None:
    command = [*KVGEN, *RUN, "--backend", "numpy", *flags]
    run = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, b""), run.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "--jsonl"], "--jsonl and --json exclude each other: leave one out"),
        (["--jsonl", "--watch", "1.1"], "--jsonl and --watch exclude each other"),
        (["--jsonl", "--show-probs"], "--show-probs and --jsonl exclude each other"),
        (["--json", "--show-probs"], "--show-probs and --json exclude each other"),
        (["--watch", "1.1", "--show-probs"], "--show-probs and --watch exclude each other"),
        (["--logprobs", "2"], "--logprobs needs --json or --jsonl: add one of them"),
        (["--logprobs", "21", "--json"], "21 is not in the range 0<=x<=20"),
        (["--logprobs", "-1", "--json"], "-1 is not in the range 0<=x<=20"),
        (["--logprobs", "many", "--json"], "'many' is not a valid integer"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: list[str], message: str) -> None:
    assert_fails(inside("generate", PROMPT, *options), 2, message)


def test_without_colours_the_probability_stands_behind_each_token() -> None:
    run = inside(*RUN, "--show-probs")
    entries = json.loads(inside(*RUN, "--json", "--logprobs", "0").stdout)["logprobs"]
    text = run.stdout.decode()
    assert text == "".join(marked(each["token"], math.exp(each["logprob"])) for each in entries)
    assert run.stderr.decode().startswith("in square brackets: the probability of each new token")
    quiet = inside(*RUN, "--show-probs", "-q", "--echo")
    assert (quiet.stdout.decode(), quiet.stderr) == (PROMPT + text, b"")


def test_a_mark_stands_before_line_ends() -> None:
    assert marked(".\n\n", 0.5) == ".[.5]\n\n" and marked("\n", 1.0) == "[1]\n"


def test_text_held_back_for_a_stop_text_has_the_product() -> None:
    entries = json.loads(inside(*RUN, "--json", "--logprobs", "0").stdout)["logprobs"]
    held = entries[0]["token"] + entries[1]["token"] + "#"  # comes nearly, so both are held back
    text = inside(*RUN, "--show-probs", "-q", "--stop", held).stdout.decode()
    numbers = [float(number) for number in re.findall(r"\[([^]]+)\]", text)]
    logprobs = [entry["logprob"] for entry in entries]
    assert math.prod(numbers) == pytest.approx(math.exp(sum(logprobs)), rel=0.05)
    assert len(numbers) < len(entries)


def test_colours_follow_the_palette_and_the_text_stays() -> None:
    command = [*RUN, "--backend", "numpy", "-q"]  # quiet: a slow machine shows progress
    given = on_terminal(*command, "--show-probs", COLUMNS="60", **COLORS).stdout.decode()
    plain = on_terminal(*command, COLUMNS="60", **COLORS).stdout.decode()
    assert re.sub(r"\x1b\[[0-9;]*m", "", given) == plain
    entries = json.loads(inside(*command, "--json", "--logprobs", "0").stdout)["logprobs"]
    parts = [
        painted(entry["token"], math.exp(entry["logprob"]), Canvas(60, "color"))
        for entry in entries
    ]
    assert len(parts) == 8 and all(part in given for part in parts[:4])
    no_color = on_terminal(*command, "--show-probs", NO_COLOR="1").stdout.decode()
    assert "\x1b[" not in no_color and len(re.findall(r"\[[.0-9]+\]", no_color)) == 8


def test_the_legend_on_a_terminal_has_the_colours() -> None:
    given = on_terminal(*RUN, "--backend", "numpy", "--show-probs", **COLORS).stdout.decode()
    assert "\x1b[38;2;253;231;37m██" in given and "before any sampling filter" in given


def test_colours_are_forced_into_a_pipe_line_by_line() -> None:
    command = ["generate", "Once upon a time", "-n", "40", "--seed", "1", "--backend", "numpy"]
    colored = kvgen(*command, "--show-probs", FORCE_COLOR="1", TERM="xterm-256color", **COLORS)
    plain = kvgen(*command, "-q").stdout.decode()
    text = colored.stdout.decode()
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == plain and "\n" in plain
    assert all(line.count("\x1b[38;5;") == line.count("\x1b[0m") for line in text.split("\n"))
    assert b"probability of each new token: from dark (0) to bright (1)" in colored.stderr


def test_a_token_in_colour_cannot_act_on_the_terminal(hostile_model: Path) -> None:
    command = ["generate", "Once upon a time", "-n", "2", "--greedy", "--backend", "numpy"]
    command += ["-m", str(hostile_model), "--show-probs", "-q"]
    for environment in (COLORS, {"NO_COLOR": "1"}):
        text = on_terminal(*command, COLUMNS="400", **environment).stdout.decode()
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert SEEN in text and "\x1b" not in text


def test_letters_are_dark_on_bright_colours_and_the_other_way_round() -> None:
    canvas = Canvas(80, "color")
    assert painted("x", 1.0, canvas) == "\x1b[38;5;16;48;2;253;231;37mx\x1b[0m"
    assert painted("x", 0.0, canvas) == "\x1b[38;5;231;48;2;68;1;84mx\x1b[0m"
    assert painted("x", 0.0, Canvas(80, "color", "256")) == "\x1b[38;5;231;48;5;53mx\x1b[0m"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("mode", ["color", "glyphs", "ascii"])
def test_the_legend_fits(mode: str, width: int) -> None:
    canvas = Canvas(width, mode)  # type: ignore[arg-type]
    lines = re.sub(r"\x1b\[[0-9;]*m", "", draw(probability_legend(canvas), canvas)).splitlines()
    assert "before any sampling filter" in " ".join(lines)
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [1, 3, 8, 80])
def test_a_painted_text_has_the_lines_of_a_plain_one(width: int) -> None:
    random = np.random.default_rng(5)
    letters = ["a", "bc", " ", "  ", "\n", "\t", "猫", "d e", " \n "]
    pieces = [letters[index] for index in random.integers(len(letters), size=300)]
    plain, colored = WordWrap(), PaintedWrap()
    expected = "".join(plain.feed(piece, width) for piece in pieces) + plain.end(width)
    painted_text = "".join(colored.feed(piece, width, lambda run: f"<{run}>") for piece in pieces)
    painted_text += colored.end(width)
    assert re.sub("[<>]", "", painted_text) == expected
    assert not re.search("<[^>]*\n", painted_text)  # no colour goes over a line end


def test_a_word_of_two_pieces_keeps_both_colours() -> None:
    wrap = PaintedWrap()
    text = wrap.feed("the c", 8, str.upper) + wrap.feed("at sat", 8, str.title) + wrap.end(8)
    assert text == "THE CAt\nSat"
