"""What the command line says where a word is wrong, and where results go."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest

from kvgen.cli.command import closest
from kvgen.cli.output import Destination, destination
from kvgen.errors import UsageError
from tests.command import COMMANDS, assert_fails, inside

BENCH = ["bench", "-p", "5", "-n", "2", "-r", "1", "--backend", "numpy", "-q"]
LOOK = ["inspect-attention", "The cat sat", "--backend", "numpy", "-q"]


# --- suggestions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect"], "No such command 'inspect'. (Did you mean 'inspect-attention'?)"),
        (["help"], "No such command 'help'. (Did you mean '--help'?)"),
        (["genrate", "hi"], "(Did you mean 'generate'?)"),
        (["inspect-attention", "a", "--show", "weight"], "(Did you mean 'weights'?)"),
        (["inspect-attention", "a", "--metric", "sink,previos"], "(Did you mean 'previous'?)"),
        (["inspect-attention", "a", "--scale", "logs"], "(Did you mean 'log'?)"),
        (["generate", "a", "--dtype", "bf"], "(Did you mean 'bf16'?)"),
        (["verify", "--backend", "nunba"], "(Did you mean 'numba'?)"),
        (["info", "--color", "allways"], "(Did you mean 'always'?)"),
        (["bench", "-o", "jsn"], "(Did you mean 'json'?)"),
    ],
)
def test_a_word_that_is_nearly_right_gets_a_suggestion(arguments: list[str], message: str) -> None:
    assert_fails(inside(*arguments), 2, message)


def test_a_word_like_no_other_gets_no_suggestion() -> None:
    assert "Did you mean" not in inside("zzz").stderr.decode()
    assert closest("", ["a"]) is None and closest("warmth", ["sink", "entropy"]) is None


@pytest.mark.parametrize("command", ["generate", "bench", "inspect-attention"])
def test_a_prompt_without_quotes_is_shown_with_them(command: str) -> None:
    run = inside(command, "The", "cat", "sat", "-n", "3")
    assert_fails(run, 2, 'put the prompt in quotes, "The cat sat"')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "-p", "Once upon a time"], "in bench -p is a number of ids; give a text as PRO"),
        (["bench", "-p", "5,many"], "'many' is not a valid integer: in bench -p is a number"),
        (["verify", "-p", "Once"], "in verify -p is a number of positions; it takes no prompt"),
        ([*LOOK, "-l", "1", "-H", "1", "--steps", "-n", "1"], "N new tokens take N - 1 decode ste"),
    ],
)
def test_a_letter_that_means_something_else_elsewhere_gets_a_hint(
    arguments: list[str], message: str
) -> None:
    assert_fails(inside(*arguments), 2, message)


def test_a_missing_extra_is_told_with_its_command_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    for line in (
        ["bench", "--plot", str(tmp_path / "a.svg")],
        ["bench", "-o", str(tmp_path / "a.svg")],
        ["inspect-attention", "a", "-o", str(tmp_path / "a.png")],
    ):
        assert_fails(inside(*line, "-m", "no/such/model/at/all"), 2, "pip install 'kvgen[plot]'")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-m", "MODEL/none"], 3, "MODEL/none: there is no such model folder: check the name"),
        (["-m", "MODEL.gguf"], 4, "MODEL.gguf: is a file of a format that kvgen does not read; "
         "name the folder that holds config.json and model.safetensors"),
        (["-m", "MODEL"], 4, "MODEL: part-2.safetensors is missing; the download may be"),
        (["--chat"], 4, "storyteller: has no chat template: leave out --chat and --system, or use"),
        (["--temprature", "1"], 2, "No such option '--temprature'. (Did you mean one of: '--temp'"),
        (["--top-p", "90"], 2, "'--top-p': 90.0 is not in the range 0<x<=1"),
        (["-n", "5000"], 2, "new ones exceed the context of 1024: at most 1022 new tokens fit"),
        (["-f", "MODEL.gguf"], 2, "give the prompt once: as PROMPT or by one option"),
        (["--stop", ""], 2, "a stop text must not be empty"),
        (["--prompt-cache", "MODEL"], 2, "MODEL: is a folder: name a file"),
        (["--prompt-cache", "MODEL.gguf"], 4, "is not a whole prompt cache"),
    ],
)  # fmt: skip
def test_common_mistakes_are_told_with_what_to_do(
    arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    """MODEL is a folder without its second shard; MODEL.gguf a file."""
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    weights = {"a": "part-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    given, message = (
        [word.replace("MODEL", str(model)) for word in words] for words in (arguments, [message])
    )
    assert_fails(inside("generate", "hi", *given), code, message[0])


# --- where results go -------------------------------------------------------------------------


def test_an_output_is_a_format_or_a_file_by_its_ending(tmp_path: Path) -> None:
    kinds = {"formats": ("json", "txt"), "endings": (".json", ".npz")}
    file = str(tmp_path / "maps.npz")
    assert destination("json", **kinds) == Destination("json", None)
    assert destination(file, **kinds) == Destination("npz", file)
    for wrong, message in (
        ("jsn", "neither a format"),
        ("maps.csv", "name must end in .json, .npz"),
        (str(tmp_path / "no" / "maps.json"), "there is no folder"),
    ):
        with pytest.raises(UsageError, match=message):
            destination(wrong, **kinds)


def test_a_benchmark_prints_and_writes_the_same_json(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.csv"
    printed = inside(*BENCH, "--json", "-o", str(one))
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout) == json.loads(one.read_text())
    shown = inside(*BENCH, "-o", str(other))
    assert b"tg2" in shown.stdout and other.read_text().startswith("test,cache,")
    again = inside(*BENCH, "-o", "json", "--out", str(tmp_path / "third.json"))
    assert set(json.loads(again.stdout)) == set(json.loads(printed.stdout))


def test_compared_reports_are_printed_as_json(tmp_path: Path) -> None:
    file = str(tmp_path / "one.json")
    assert inside(*BENCH, "-o", file).returncode == 0
    content = json.loads(inside("bench", "--compare", file, file, "--json").stdout)
    assert content["reports"] == [file, file] and content["differences"] == []
    assert [result["test"] for result in content["results"]] == ["pp5", "tg2"]
    assert all(result["ratio"] == 1 for result in content["results"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "-o", "md"], "--json and -o md name two formats: give one of them"),
        (["-o", "a.json", "--out", "b.csv"], "-o and --out name two files: leave out --out"),
        (["-o", "a.svg", "--plot", "b.svg"], "-o and --plot name two files: leave out --plot"),
        (
            ["-o", "a.gif"],
            "a.gif: the file's name must end in .html, .json, .jsonl, .csv, .md, .png",
        ),
    ],
)
def test_outputs_that_contradict_each_other_are_refused(arguments: list[str], message: str) -> None:
    assert_fails(inside("bench", *arguments, "-m", "no/such/model/at/all"), 2, message)


def test_an_inspection_prints_what_it_writes_as_json(tmp_path: Path) -> None:
    file = tmp_path / "maps.json"
    assert inside(*LOOK, "-l", "2", "-H", "3", "-o", str(file)).returncode == 0
    for flags in (["--json"], ["-o", "json"], ["-o", "json", "--json"]):
        run = inside(*LOOK, "-l", "2", "-H", "3", *flags)
        assert run.stdout == file.read_bytes() and run.stderr == b""
    text = inside(*LOOK, "-l", "2", "-H", "3", "-o", "txt", "--color", "always").stdout
    assert text.startswith(b"layer 2 head 3") and b"\x1b" not in text


def test_edits_are_printed_as_json() -> None:
    run = inside(*LOOK, "--what-if", "kq", "--what-if", "ablate=2.3", "--ablate-all", "-l", "2",
                 "-H", "3", "--json")  # fmt: skip
    content = json.loads(run.stdout)
    kq, ablated = content["what_ifs"]
    assert (kq["edit"], kq["layer"], kq["heads"]) == ("kq", None, None)
    assert (ablated["edit"], ablated["layer"], ablated["heads"]) == ("ablate=2.3", 2, [3])
    losses = ablated["edited_losses"]
    without = content["ablations"]["losses_without"]
    assert without == [[pytest.approx(sum(losses) / len(losses), abs=1e-5)]]
    assert content["ablations"]["loss"] == pytest.approx(sum(kq["losses"]) / 3, abs=1e-5)


def test_info_tells_the_bytes_of_the_cache_for_a_length() -> None:
    content = json.loads(inside("info", "--tokens", "2000", "--json").stdout)
    assert content["tokens"] == 2000
    assert content["kv_bytes_for_tokens"] == 2000 * content["kv_bytes_per_token"]
    run = inside("info", "--tokens", "2000")
    size = content["kv_bytes_for_tokens"] / 2**20
    assert f"2,000 tokens take {size:.1f} MiB of KV cache (f16)" in run.stdout.decode()
    assert "2,000 tokens exceed the context of 1,024" in run.stderr.decode()
    assert b"exceed" not in inside("info", "--tokens", "1024").stderr
    assert "tokens" not in json.loads(inside("info", "--json").stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json(name: str) -> None:
    option = next(each for each in COMMANDS[name].params if "--json" in each.opts)
    assert option.is_flag  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_text_falls_back_into_settled_phrases(name: str) -> None:
    """Phrases that help texts had, and that plain words have replaced."""
    with click.Context(COMMANDS[name], info_name=name) as context:
        words = " ".join(COMMANDS[name].get_help(context).split())
    for phrase in ("held against", "looked at", "what is asked", "so many", "is of ", "said in"):
        assert phrase not in words, phrase
