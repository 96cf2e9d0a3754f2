"""`kvgen inspect-attention --compare`, as a command: prompts, saved recordings, JSON and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvgen.attention.saved import read_export
from kvgen.attention.steps import attention_weights
from tests.command import LAST_HEAD, LAST_LAYER, Run, assert_fails, inside

CAT, DOG = "The cat sat on the hat", "The dog sat on the hat"


def inspect(*arguments: str, width: int = 80) -> Run:
    return inside("inspect-attention", *arguments, "--backend", "numpy", "--width", str(width))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Recordings of both prompts, in one kind of file each."""
    folder = tmp_path_factory.mktemp("saved")
    files = str(folder / "cat.npz"), str(folder / "dog.safetensors")
    for prompt, file in zip((CAT, DOG), files, strict=True):
        assert inspect(prompt, "-o", file).returncode == 0
    return files


def test_two_prompts_are_compared_as_two_saved_recordings_are(saved: tuple[str, str]) -> None:
    fresh = json.loads(inspect(CAT, "--compare", DOG, "--json").stdout)
    for pair in (saved, (saved[0], DOG), (CAT, saved[1])):
        run = inspect(pair[0], "--compare", pair[1], "--json")
        again = json.loads(run.stdout)
        for side, name in zip(("before", "after"), pair, strict=True):
            assert again[side].pop("name") == name
        assert again == {
            name: value if name not in ("before", "after") else
            {key: each for key, each in value.items() if key != "name"}
            for name, value in fresh.items()
        }  # fmt: skip


def test_the_json_holds_the_distances_of_the_saved_weights(saved: tuple[str, str]) -> None:
    content = json.loads(inspect(saved[0], "--compare", saved[1], "-l", "2-3", "--json").stdout)
    before, after = (
        np.stack([attention_weights(layer) for layer in read_export(Path(file))[0].trace.layers])
        for file in saved
    )
    change = (after - before)[2:4]
    assert content["layers"] == [2, 3] and content["heads"] == list(range(LAST_HEAD + 1))
    assert content["tokens_differ_at"] == [2]
    assert content["before"]["tokens"][2:4] == [" cat", " sat"]
    distances = np.abs(change).sum(axis=3) / 2
    np.testing.assert_allclose(content["row_distances"], distances, atol=1e-5)
    np.testing.assert_allclose(content["distances"], distances.mean(axis=2), atol=1e-5)
    greatest = content["changes"][0]
    assert abs(greatest["after"] - greatest["before"]) == pytest.approx(np.abs(change).max())
    place = greatest["layer"] - 2, greatest["head"], greatest["query"], greatest["key"]
    assert greatest["after"] - greatest["before"] == pytest.approx(change[place], abs=1e-5)


@pytest.mark.parametrize("width", [80, 120])
def test_each_selection_has_its_view(saved: tuple[str, str], width: int) -> None:
    for selection, expected in (
        ([], "layers x heads\nlayer 0 1 2 3\n   0  "),
        (["-l", "2"], "layer 2 · 4 heads · scale to "),
        (["-l", "2", "-H", "0-1"], "layer 2 head 1 · mean distance of rows 0."),
        (["--at", "2.1", "--range", ".5"], "scale to .5, by --range"),
        (["-l", "-1", "-H", "-1"], f"layer {LAST_LAYER} head {LAST_HEAD} · "),
        (
            ["-l", "2", "-H", "0", "--queries", "5:"],
            "greatest changes of a weight in the whole map",
        ),
    ):
        run = inspect(saved[0], "--compare", saved[1], *selection, width=width)
        text = run.stdout.decode()
        assert run.returncode == 0 and expected in text, text
        assert text.startswith(f"before: {saved[0]}"[:width])
        assert "tokens differ at 2 · rows 0-1 do not differ" in text
        assert text.splitlines()[-1].startswith("verified: |recomputed - kernel| <= ")
        drawn = [line for line in text.splitlines() if "/" not in line]  # but for the files
        assert max(map(len, drawn)) <= width


def test_a_text_holds_what_the_screen_shows(saved: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "difference.txt"
    shown = inspect(*saved[:1], "--compare", saved[1], "-l", "2")
    written = inspect(*saved[:1], "--compare", saved[1], "-l", "2", "-o", str(path))
    assert written.returncode == 0 and written.stdout == b""
    assert written.stderr.decode() == f"{path}: 1 layers x 4 heads x 7 tokens\n"
    assert path.read_bytes() == shown.stdout


def test_colours_and_ascii_are_taken_as_everywhere(saved: tuple[str, str]) -> None:
    arguments = [saved[0], "--compare", saved[1], "-l", "2", "-H", "1"]
    assert b"\x1b[48;2;" in inspect(*arguments, "--color", "always").stdout
    assert inspect(*arguments, "--ascii").stdout.isascii()


def test_decoded_tokens_and_seeds_are_those_of_both_runs() -> None:
    run = inspect(
        CAT, "--compare", CAT, "-n", "4", "--temperature", "1", "--top-k", "5", "--json"
    )  # fmt: skip
    content = json.loads(run.stdout)
    assert len(content["before"]["token_ids"]) == content["before"]["prompt_len"] + 3
    assert content["before"]["token_ids"] == content["after"]["token_ids"]
    assert not np.any(content["distances"]) and content["changes"] == []
    assert run.stderr.decode().count("seed ") == 1


def test_models_that_differ_are_named(saved: tuple[str, str]) -> None:
    text = inspect(saved[0], "--compare", CAT, "--dtype", "int8", width=300).stdout.decode()
    lines = text.splitlines()
    assert lines[0] == f"before: {saved[0]} (storyteller, bf16)"
    assert lines[1] == f"after:  {CAT} (storyteller, int8)"
    assert "the same tokens" in lines[2]


def test_a_prompt_may_come_from_an_option_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(CAT + "\n")
    for source, name in ((["-p", CAT], CAT), (["-f", str(file)], str(file))):
        content = json.loads(inspect(*source, "--compare", DOG, "--json").stdout)
        assert (content["before"]["name"], content["after"]["name"]) == (name, DOG)
        assert content["tokens_differ_at"] == [2]
    content = json.loads(inspect("a " * 50, "--compare", "b " * 50, "--json").stdout)
    assert len(content["before"]["name"]) < 70 and " ... a" in content["before"]["name"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [DOG + "s and slept"],
            "kvgen: the recordings have 7 and 10 tokens: compare texts with the",
        ),
        ([DOG, "-l", "99"], "layer 99: this model has layers 0-"),
        ([DOG, "-l", "1", "--queries", "50:"], "--queries: these runs have tokens 0-6, choose"),
        ([""], "the recordings have 7 and 1 tokens"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments: list[str], message: str) -> None:
    assert_fails(inspect(CAT, "--compare", *arguments), 2, message)


def test_a_saved_recording_may_lack_what_is_asked_for(
    saved: tuple[str, str], tmp_path: Path
) -> None:
    part = str(tmp_path / "part.npz")
    assert inspect(CAT, "-l", "1", "-o", part).returncode == 0
    run = inspect(part, "--compare", saved[1], "-l", "2")
    assert_fails(run, 2, "layer 2: this pair of recordings has layer 1 only")
    run = inspect(part, "--compare", DOG, "-l", "2")
    assert_fails(run, 2, "no layer in common, the first has 1 and the second 2: record the same")
    run = inspect(part, "--compare", saved[1], "-n", "2")
    assert_fails(run, 2, "a saved recording holds no model to run: leave out -n")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"not a recording")
    assert_fails(inspect(part, "--compare", str(broken)), 1, "is no recording of attention")
