"""`kvgen inspect-attention --lens`, `--contributions`, `--patch`: options, files, signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from kvgen.attention.patch import PatchMap
from kvgen.recording import Recording
from tests.command import KVGEN, assert_fails, inside

PROMPT, OTHER = "The cat sat on the mat", "The dog sat on the mat"
TOKENS = ["--token", " dog", "--against", " cat"]
PATCH = ["--patch", OTHER, *TOKENS]


def inspect(*arguments: str) -> str:
    """What is printed; nothing may stand on stderr, which is no terminal here."""
    run = inside("inspect-attention", *arguments)
    assert (run.returncode, run.stderr) == (0, b""), run.stderr.decode()
    return run.stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lens", "--queries", "20:"], "--queries: this run has tokens 0-7, choose some"),
        (["--lens", "-l", "7"], "layer 7: this model has layers 0-6"),
        (["--contributions", "8"], "query 8: this run has queries 0-7"),
        (["--contributions", "-9"], "query -9: this run has queries 0-7"),
        (["--contributions", "x"], "query 'x' is not a number, or last"),
        (["--contributions", "--token", "two words"], "'two words' is not one token, but 3 ('t"),
        (["--contributions", "--token", ""], "'' is not one token, but 0"),
        (["--contributions", "--token", "id:999999"], "token id 999999 is outside the vocabulary"),
        (["--contributions", "--token", "id:x"], "'id:x' is not one token"),
        (["--contributions", "--token", "id:5", "--against", "id:5"], "token and against are both"),
        (["--patch", OTHER, "--queries", "8:"], "--queries: this run has tokens 0-7, choose some"),
        (["--patch", OTHER, "-H", "4"], "head 4: this model has heads 0-3"),
        (["--patch", OTHER, "--site", "heads"], "'heads' is not one of 'head', 'kv-head', 'resid"),
        (["--patch", "A cat"], "patching needs prompts of the same number of tokens: 8 and 3;"),
        (["--patch", PROMPT], "patching needs two different prompts: these have the same tokens"),
        ([*PATCH[:-1], " dog"], "are the same token, ' dog': name two tokens"),
    ],
)
def test_wrong_values_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    assert_fails(inside("inspect-attention", PROMPT, *arguments), 2, message)


def test_two_prompts_with_one_answer_are_asked_for_tokens_by_its_text() -> None:
    run = inside(
        "inspect-attention", "The little dog sat down", "--patch", "The little cat sat down"
    )
    assert_fails(run, 2, "both prompts predict the same token, ' in': name two tokens")


def test_a_saved_recording_is_no_source_of_patches(tmp_path: Path) -> None:
    file = tmp_path / "seen.npz"
    inside("inspect-attention", PROMPT, "-o", str(file))
    run = inside("inspect-attention", PROMPT, "--patch", str(file))
    assert_fails(run, 2, "seen.npz: is a saved recording, and --patch takes a prompt to run")


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_a_saved_file_shows_the_same_views(ending: str, tmp_path: Path) -> None:
    file = str(tmp_path / f"seen.{ending}")
    run = inside("inspect-attention", PROMPT, "--lens", "--contributions", "3", "-o", file)
    assert run.stderr.decode().splitlines()[0] == f"{file}: 7 layers x 4 heads x 8 tokens"
    for options in (["--lens"], ["--lens", "-l", "1-3", "--queries", "2:5"], ["--lens", "--ascii"]):
        assert inspect(file, *options) == inspect(PROMPT, *options)
    assert inspect(file, "--contributions") == inspect(PROMPT, "--contributions", "3")
    assert inspect(file, "--contributions", "3") == inspect(PROMPT, "--contributions", "3")
    for options, message in (
        (["--contributions", "2"], "contributions to the logit of token ' on' after position 3"),
        (["--contributions", "--token", " dog"], "any others need the model"),
        (
            ["--contributions", "-l", "2", "-H", "3"],
            "holds no model, which -H with --contrib",
        ),
        (["--lens", "-l", "9"], "layer 9: this recording has layers 0-6"),
    ):
        assert_fails(inside("inspect-attention", file, *options), 2, message)


def test_a_file_without_a_lens_says_how_to_get_one(tmp_path: Path) -> None:
    file = str(tmp_path / "seen.npz")
    inside("inspect-attention", PROMPT, "-o", file)
    for option in ("--lens", "--contributions"):
        message = f"give the prompt in its place, or write the file with {option}"
        assert_fails(inside("inspect-attention", file, option), 2, message)


def test_a_part_of_a_lens_names_its_parts(tmp_path: Path) -> None:
    file = str(tmp_path / "seen.npz")
    inside("inspect-attention", PROMPT, "--lens", "-l", "2-3", "--queries", "1:3", "-o", file)
    assert inspect(file, "--lens").startswith("lens · 2 layers x 2 of 8 positions")
    for options, message in (
        (["-l", "5"], "layer 5: this saved lens has layers 2-3"),
        (["--queries", "5"], "position 5: this saved lens has positions 1-2"),
    ):
        assert_fails(inside("inspect-attention", file, "--lens", *options), 2, message)


@pytest.mark.parametrize("extra", [[], ["--lens"], ["--contributions"], ["--lens", "-n", "3"]])
def test_json_of_a_recording_has_the_names_of_the_docstring(extra: list[str]) -> None:
    content = json.loads(inspect(PROMPT, *extra, "--json"))
    names = {"meta", "token_ids", "tokens", "metrics", "maps", "names", "predictions"}
    assert content.keys() == names | {option[2:] for option in extra if option[:2] == "--"}
    assert len(content["tokens"]) == len(content["token_ids"]) == (10 if "-n" in extra else 8)
    if "--lens" in extra:
        assert content["lens"]["layers"] == list(range(7))
        assert all(str(token) in content["names"] for token in content["lens"]["final_ids"])


@pytest.mark.parametrize(
    ("options", "n_columns"), [([], 4), (["--site", "kv-head"], 2), (["--site", "residual"], 8)]
)
def test_json_of_patches_has_all_numbers(options: list[str], n_columns: int) -> None:
    content = json.loads(inspect(PROMPT, *PATCH, *options, "--json"))
    assert content.keys() == {"model", "effects", *(field.name for field in fields(PatchMap))}
    assert np.array(content["effects"], float).shape == (7, n_columns)
    assert not content["interrupted"] and None not in np.array(content["patched"]).ravel()


def test_files_of_patches_hold_what_is_printed(tmp_path: Path) -> None:
    for ending, printed in (
        ("json", inspect(PROMPT, *PATCH, "--json")), ("txt", inspect(PROMPT, *PATCH, "-o", "txt")),
    ):  # fmt: skip
        file = tmp_path / f"patches.{ending}"
        run = inside("inspect-attention", PROMPT, *PATCH, "-o", str(file))
        assert run.stderr.decode() == f"{file}: patches of 7 layers x 4 heads\n"
        assert file.read_text() == printed
    one = inside("inspect-attention", PROMPT, *PATCH, "-l", "1", "-H", "2", "-o", str(file))
    assert one.stderr.decode() == f"{file}: patches of 1 layer x 1 head\n"


def test_files_of_python_and_of_the_command_are_alike(tmp_path: Path) -> None:
    file = tmp_path / "seen.npz"
    inside("inspect-attention", PROMPT, "--lens", "-o", str(file))
    assert Recording.open(file).lens().positions == tuple(range(8))


# At the sixth patch the process sends itself the signal of Ctrl-C.
INTERRUPTED = """
import os, signal, sys
from kvgen.attention import {module}
from kvgen.cli import main

usual, calls = {module}.{name}, []

def interrupting(*arguments, **options):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGINT)
    return usual(*arguments, **options)

{module}.{name} = interrupting
sys.argv[1:] = ["inspect-attention", *{arguments}]
main()
"""


def interrupted(module: str, name: str, call: int, *arguments: str) -> tuple[str, str]:
    """The command's stdout and stderr, where Ctrl-C comes before a call of a function."""
    script = INTERRUPTED.format(module=module, name=name, call=call, arguments=list(arguments))
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, text=True, timeout=120
    )
    assert run.returncode == 128 + signal.SIGINT
    assert run.stderr.endswith("kvgen: interrupted\n") and "Traceback" not in run.stderr
    return run.stdout, run.stderr


def test_ctrl_c_prints_the_patches_that_were_run() -> None:
    text, _ = interrupted("patch", "_Plan._rerun", 6, PROMPT, *PATCH)
    assert "interrupted: 5 of 28 patches were run" in text and "?: not run" in text
    assert text.count("greatest effects") == 1
    text, _ = interrupted("patch", "_Plan._rerun", 6, PROMPT, *PATCH, "--json")
    content = json.loads(text)
    assert content["interrupted"] and sum(row.count(None) for row in content["patched"]) == 23


def test_ctrl_c_writes_the_patches_that_were_run(tmp_path: Path) -> None:
    file = tmp_path / "patches.txt"
    text, notes = interrupted("patch", "_Plan._rerun", 6, PROMPT, *PATCH, "-o", str(file))
    assert text == "" and notes.startswith(f"{file}: patches of 7 layers x 4 heads\n")
    assert file.read_text().endswith("interrupted: 5 of 28 patches were run\n")


@pytest.mark.parametrize(
    ("module", "name", "call", "options"),
    [
        ("patch", "_Plan._rerun", 1, PATCH),
        ("lens", "_look", 3, ["--lens"]),
        ("contributions", "_readout", 3, ["--contributions"]),
    ],
)
def test_ctrl_c_before_there_is_a_result_prints_and_leaves_nothing(
    module: str, name: str, call: int, options: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "seen.json"
    for arguments in ([], ["-o", str(file)]):
        assert interrupted(module, name, call, PROMPT, *options, *arguments)[0] == ""
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--lens"], ["--contributions"], PATCH, [*PATCH, "--json"]])
def test_a_closed_pipe_ends_each_view_silently(options: list[str]) -> None:
    process = subprocess.Popen(
        [*KVGEN, "inspect-attention", PROMPT, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), message) == (141, b"")
