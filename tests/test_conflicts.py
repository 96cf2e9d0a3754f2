"""Options of `kvgen inspect-attention` that do not go together: every row of the table, once."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from kvgen.cli.attention_conflicts import CONFLICTS, Conflict, check_conflicts
from kvgen.errors import UsageError
from tests.command import assert_fails, inside

# A command line for each row, in the order of the table, and what it is told.
LINES = (
    (["--example", "--json"], "--example is a text: leave out --json"),
    (["--what-if", "kq", "--explain"], "--what-if compares runs of the prompt: leave out --expla"),
    (["--ablate-all", "-o", "x.html"], "--ablate-all compares runs of the prompt: leave out a pa"),
    (["--ablate-all", "--queries", "1:"], "--ablate-all draws maps of its own: leave out --queri"),
    (["--compare", "The dog", "--show", "cos"], "weights differ between two runs: leave out --sh"),
    (["--compare", "The dog", "-o", "maps.npz"], "--compare writes .json and .txt files: choose o"),
    (["--lens", "--explain"], "--lens is a view of its own: leave out --explain"),
    (["--patch", "The dog", "-n", "3"], "--patch compares runs of two prompts: leave out -n"),
    (["--contributions", "-o", "x.png"], "is drawn as text: write a .txt file in place of a fig"),
    (["--token", " mat"], "--token names a token for --contributions or --patch: give one of them"),
    (["--site", "residual"], "--site says what --patch takes from its prompt: add --patch FROM"),
    (["--patch", "The dog", "--site", "kv-head", "-H", "1"], "all heads of it together: leave ou"),
    (["--lens", "-l", "1", "-H", "1"], "--lens looks behind whole layers: leave out -H"),
    (["--contributions", "-l", "1"], "with -l shows what single heads read: add -H HEAD"),
    (["--contributions", "--queries", "3:"], "takes one query, such as --contributions 3: leave"),
    (["--at", "2.3", "-H", "1"], "--at takes the place of -l and -H: leave out -H"),
    (["--json", "-o", "maps.txt"], "--json and -o name two outputs: give one of them"),
    (["-H", "1"], "-H names a head of a layer: add -l LAYER"),
    (["--similarity", "-l", "1", "--multi-head"], "--similarity and --multi-head are two views"),
    (["--similarity", "--explain"], "--similarity is a view of its own: leave out --explain"),
    (["-l", "1", "-H", "1", "--multi-head"], "adds up all heads of a layer: leave out -H"),
    (["-l", "1", "--multi-head"], "holds no model, and --multi-head needs its W_O: leave it out"),
    (["--multi-head", "0"], "--multi-head adds up the heads of a layer: add -l LAYER"),
    (["--vectors"], "--vectors shows the vectors of an explained query: add --explain"),
    (["--show", "rollout", "--explain"], "combines all heads and layers; it cannot be used with"),
    (["--metric", "sink", "--explain"], "--metric applies to the summary of all layers: leave ou"),
    (["--pool", "mean"], "--pool applies to a map: add -l LAYER"),
    (["--steps", "-n", "3"], "--steps shows the decode steps of one head: add -l LAYER"),
    (["--steps", "-n", "3", "-l", "1"], "--steps shows the decode steps of one head: add -H HEAD"),
    (["--steps", "-l", "1", "-H", "1", "--explain"], "--steps and --explain are two views: give"),
    (["--explain", "--json"], "leave it out, or write a .txt file in place of --json"),
    (["-l", "1", "--sink", "drop", "-o", "json"], "--json holds the maps as they are: leave out"),
    (["--probe"], "a saved recording holds no model to run: leave out --probe"),
    (["--open", "-o", "maps.npz"], "--open is for a page: add -o FILE.html"),
    (["--probe", "--system", "Be brief"], "--probe makes its own prompt: leave out --system"),
    (["--prefill", "fast"], "--prefill fast rounds activations, and attention is recorded exactly"),
)


@pytest.mark.parametrize(
    ("conflict", "line"),
    list(zip(CONFLICTS, LINES, strict=True)),
    ids=[line[1][:40] for line in LINES],
)
def test_options_that_do_not_go_together_are_refused_before_a_model_is_loaded(
    conflict: Conflict, line: tuple[list[str], str], tmp_path: Path
) -> None:
    arguments, message = line
    prompt = [] if "PROMPT" in conflict.others else ["The cat"]
    if "a saved recording" in conflict.others:
        saved = tmp_path / "saved.npz"
        saved.touch()
        prompt = [str(saved)]
    run = inside("inspect-attention", *prompt, *arguments, "-m", "no/such/model/at/all")
    assert_fails(run, 2, message)


@pytest.mark.parametrize("conflict", CONFLICTS, ids=lambda conflict: conflict.message[:40])
def test_each_pair_of_a_conflict_is_refused_and_each_exception_taken(conflict: Conflict) -> None:
    for this, other in itertools.product(conflict.these, conflict.others or ("",)):
        with pytest.raises(UsageError):
            check_conflicts({this, other})
        for exception in conflict.unless:
            try:
                check_conflicts({this, other, exception})
            except UsageError as another_row:
                assert str(another_row) != conflict.message.format(this=this, other=other)


def test_options_that_go_together_are_taken() -> None:
    for given in (
        {"-l", "-H", "a layer", "a head", "--show", "--sink"},
        {"--at", "a layer", "a head", "--steps", "-n"},
        {"--what-if", "--at", "-l", "-H"},
        {"--show", "--show rollout", "--scale"},
        {"-H", "-o", "a .json file"},
        {"--show", "-o", "a figure"},
        {"--probe", "-l"},
        {"--metric", "-n"},
        {"--compare", "-n", "a text"},
        {"--lens", "-l", "a layer", "--queries", "-n", "-o", "a file of arrays"},
        {"--lens", "--contributions", "--token", "a saved recording"},
        {"--contributions", "-l", "a layer", "-H", "a head", "--against"},
        {"--patch", "--site", "--site residual", "-l", "a layer", "--queries", "--json"},
        {"--patch", "--site", "--site head", "-H", "a head", "--token", "a text"},
        {"--compare", "-l", "a layer", "--range", "--queries"},
        {"--similarity", "-H", "a head", "a saved recording"},
        {"--multi-head", "-l", "a layer", "--probe", "-n", "-o", "a text"},
        {"--explain", "--vectors", "a saved recording"},
    ):
        check_conflicts(given)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--at", "2.3", "--show", "share"], b"share of o"),
        (["--at", "2.3", "--steps", "-n", "3"], b"q_4"),
        (["--at", "L2", "--sink", "keep"], b"layer 2"),
        (["--at", "3", "--show", "rollout"], b"rollout through layers 0..3"),
        (["--at", "2.3", "--ablate-all"], b"missed"),
        (["--at", "2", "--multi-head"], b"output = concat(z_0, .., z_3) W_O"),
        (["--at", "2.3", "--similarity"], b" head 3 "),
    ],
)
def test_an_address_names_a_layer_and_a_head_as_l_and_h_do(
    arguments: list[str], expected: bytes
) -> None:
    run = inside("inspect-attention", "The cat sat", *arguments, "--backend", "numpy")
    assert run.returncode == 0 and expected in run.stdout, run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "2", "--steps", "-n", "3"], "add -H HEAD"),
        (["--at", "2.3", "--show", "rollout"], "it cannot be used with a head"),
        (["--at", "2", "--metric", "sink"], "leave out --at"),
        (["--at", "2.3", "--multi-head"], "leave out a head"),
    ],
)
def test_an_address_runs_into_the_same_conflicts(arguments: list[str], message: str) -> None:
    assert_fails(inside("inspect-attention", "The cat", *arguments), 2, message)
