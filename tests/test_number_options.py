"""`--similarity`, `--multi-head` and `--vectors` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvgen.attention.multi_head import output_projection
from tests.command import LAST_HEAD, LAST_LAYER, assert_fails, inside
from tests.conftest import Loader

LOOK = ["inspect-attention", "The cat sat on the mat", "--backend", "numpy"]


def shown(*arguments: str) -> list[str]:
    run = inside(*LOOK, *arguments)
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode().splitlines()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("saved") / "maps.npz"
    assert inside(*LOOK, "-n", "3", "-o", str(path)).returncode == 0
    return str(path)


def test_similarity_is_that_of_the_named_layers_and_heads(saved: str) -> None:
    def rows(lines: list[str]) -> list[str]:
        """The lines of the panels: numbers of layers, and a cell for each head."""
        return [line for line in lines if line[:4].strip().isdigit() and line[4:6] == "  "]

    whole = shown("--similarity")
    assert len(rows(whole)) == LAST_LAYER + 1
    some = shown("--similarity", "-l", "3,1", "-H", "2,0")
    assert [row[:4].strip() for row in rows(some)] == ["3", "1"]
    assert " head 0 2 " in "\n".join(some)
    # 7 of 8 queries have two keys to choose from.
    assert f"the {7 * (LAST_LAYER + 1) * (LAST_HEAD + 1)} rows of all heads" in " ".join(whole)
    assert "the 28 rows of all heads" in " ".join(some)
    column = {row[:4]: row.split()[1] for row in rows(whole)}
    assert all(row.split()[1] == column[row[:4]] for row in rows(some))
    again = inside("inspect-attention", saved, "--similarity", "-l", "3,1", "-H", "2,0").stdout
    text = again.decode().replace("\n", " ")
    assert " head 0 2 " in text and "the 36 rows of all heads" in text


def test_similarity_may_be_that_of_a_head_in_every_layer() -> None:
    text = " ".join(shown("--similarity", "-H", "1"))
    assert f"the {7 * (LAST_LAYER + 1)} rows of all heads" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-l", "2", "--multi-head"], ["layer 2 · query 7 at"]),
        (["-l", "2", "--multi-head", "0"], ["layer 2 · query 0"]),
        (["-l", "0,-1", "--multi-head", "8", "-n", "3"], ["layer 0 · query 8", "layer 6 · query"]),
    ],
)
def test_heads_are_added_up_for_one_query(arguments: list[str], expected: list[str]) -> None:
    lines = shown(*arguments)
    text = "\n".join(lines)
    assert all(words in text for words in expected)
    n_views = len(expected)
    n_heads = [line.split()[0] for line in lines if line.split()[:1] in (["0"], [str(LAST_HEAD)])]
    assert n_heads == ["0", str(LAST_HEAD)] * n_views
    assert text.count("differ by at most") == n_views


def test_vectors_stand_below_each_explanation(saved: str) -> None:
    lines = shown("-l", "2", "-H", "1,3", "--explain", "4", "--vectors", "3")
    starts = [number for number, line in enumerate(lines) if line.startswith("w_j v_j: ")]
    assert [lines[start] for start in starts] == ["w_j v_j: numbers 0..2 of 64"] * 2
    assert len([line for line in lines[: starts[0]] if line.startswith("layer 2 head")]) == 1
    assert lines[starts[0] + 1].split() == ["j", "key", "[0]", "[1]", "[2]"]
    again = inside("inspect-attention", saved, "--explain", "--vectors").stdout.decode()
    assert "w_j v_j: numbers 0..7 of 64" in again and "differ by at most" in again


@pytest.mark.parametrize("view", [["--similarity"], ["-l", "1", "--multi-head"]])
def test_numbers_can_be_written_to_a_text(view: list[str], tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    assert inside(*LOOK, *view, "-o", str(path)).returncode == 0
    written = path.read_text(encoding="utf-8").splitlines()
    assert [line.split() for line in written] == [line.split() for line in shown(*view)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-l", "1", "--multi-head", "8"], "query 8"),
        (["-l", "1", "--multi-head", "first"], "'first' is not a number, or last"),
        (["--explain", "--vectors", "the"], "write the prompt before --vectors"),
    ],
)
def test_wrong_numbers_are_told(arguments: list[str], message: str) -> None:
    assert_fails(inside(*LOOK, "-q", *arguments), 2, message)


def test_what_follows_the_sum_of_heads_is_known(tiny_model: Loader) -> None:
    follows = {
        name: output_projection(tiny_model(name).params, 1)[2:]
        for name in ("llama_gqa", "gemma2", "granite")
    }
    assert follows == {
        "llama_gqa": (False, 1.0),
        "gemma2": (True, 1.0),
        "granite": (False, 0.22),
    }
    biased = output_projection(tiny_model("llama_biased").params, 1)
    assert biased.bias is not None and biased.weights.shape == (54, 54)
