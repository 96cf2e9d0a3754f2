"""The README and the help tell the truth."""

from __future__ import annotations

import ast
import doctest
import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

import kvgen
from kvgen.checkpoint.families import FAMILIES
from kvgen.cli import cli
from tests import readme
from tests.command import COMMANDS, inside

ROOT = Path(__file__).parents[1]
TEXT = readme.README.read_text(encoding="utf-8")


@pytest.mark.parametrize("block", readme.blocks(), ids=lambda block: block.command)
def test_the_readme_shows_what_its_commands_print(
    block: readme.Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.command.startswith("kvgen inspect-attention"):  # many, and no stream matters
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.chdir(ROOT)
        run = inside(*shlex.split(block.command)[1:])
        assert run.returncode == 0
        now = (run.stdout + run.stderr).decode()
    else:
        now = readme.run(block.command)
    assert readme.masked(now, block.command) == readme.masked(block.output, block.command)


def test_the_notebook_of_the_readme_gives_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = TEXT.split("```pycon\n")[1].split("```")[0]
    notebook = doctest.DocTestParser().get_doctest(
        cells, {"kvgen": kvgen, "model": kvgen.load()}, "README", None, None
    )
    assert len(notebook.examples) > 8
    runner = doctest.DocTestRunner()
    said: list[str] = []
    runner.run(notebook, out=said.append)
    assert not runner.failures, "".join(said)
    assert len(kvgen.Recording.open("girl.npz").tokens) == 13


@pytest.mark.parametrize("between", [" ", "\n"])
def test_the_note_of_a_busy_machine_is_masked_on_one_line_or_two(between: str) -> None:
    note = (
        f"the machine was busy: other programs used 1.4 of 2 CPUs meanwhile, so times are{between}"
    )
    calm = "prompt: 17 tokens\n\ntest cache\n"
    busy = calm.replace("\n\n", f"\n{note}long and vary\n\n")
    assert readme.masked(busy, "kvgen bench") == readme.masked(calm, "kvgen bench")


def test_there_are_fifteen_questions_each_with_one_answer() -> None:
    questions = readme.QUESTIONS.read_text(encoding="utf-8").split("\n## ")[1:]
    questions = [each for each in questions if each[0].isdigit()]
    assert len(questions) == 15
    for question in questions:
        assert question.count("\n$ kvgen ") == 1, question.splitlines()[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_every_option_in_its_help(name: str) -> None:
    assert f"`kvgen {name}`" in TEXT
    shown = inside(name, "--help").stdout.decode()
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            for option in parameter.opts + parameter.secondary_opts:
                assert option.strip() in shown, f"{option} of {name}"


def test_a_command_of_the_readme_draws_each_picture() -> None:
    shown = set(re.findall(r"\]\(tests/pictures/(\S+)\)", TEXT))
    assert shown == set(readme.pictures()) == {each.name for each in readme.PICTURES.iterdir()}


def test_the_readme_can_be_read_to_the_end() -> None:
    assert len(TEXT.splitlines()) <= 300


def test_every_family_is_in_the_readme() -> None:
    for family in FAMILIES:
        assert f"`{family}`" in TEXT


def test_every_exit_code_is_in_readme_and_help() -> None:
    from kvgen import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, BaseException)}
    epilog = cli.epilog or ""
    for code in codes | {0, 130, 141}:
        assert re.search(rf"\b{code} ", epilog), code
        assert f"`{code}` " in TEXT, code


def test_the_changelog_knows_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{kvgen.__version__}]" in changelog or "## [Unreleased]" in changelog


def test_every_public_name_has_a_docstring() -> None:
    for path in (ROOT / "kvgen").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                docstring = ast.get_docstring(node)
                assert docstring, f"{path}: {node.name}"
                assert docstring.splitlines()[0].endswith((".", ":")), f"{path}: {node.name}"


def test_the_top_level_holds_nothing_else() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert top <= {
        "pyproject.toml", "README.md", "CHANGELOG.md", "kvgen", "weights", "tests", ".ci",
        ".gitignore", "LICENSE",
    }  # fmt: skip


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    command = TEXT.split("<!-- test command -->")[1].split("```")[1].strip().splitlines()[1]
    assert command.startswith("python3 -m venv .venv && ") and "pytest" in command
