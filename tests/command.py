"""The command line in tests: as a real process, or within this one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys

import click

from kvgen.cli import cli
from kvgen.cli import run as run_command
from kvgen.loading import default_model

KVGEN = [sys.executable, "-m", "kvgen"]
SHAPE = json.loads((default_model() / "config.json").read_text())
LAST_LAYER, LAST_HEAD = SHAPE["num_hidden_layers"] - 1, SHAPE["num_attention_heads"] - 1
_CONTEXT = click.Context(cli)
COMMANDS = {name: cli.get_command(_CONTEXT, name) for name in cli.list_commands(_CONTEXT)}
PROMPT = "Once upon a time there was"

Run = subprocess.CompletedProcess[bytes]


def kvgen(*arguments: str, stdin: bytes | None = b"", **environment: str) -> Run:
    """Run the command; stdin is a pipe with these bytes, or /dev/null for None."""
    return subprocess.run(
        [*KVGEN, *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


def inside(*arguments: str, encoding: str = "utf-8") -> Run:
    """The same command within this process: faster, where no stream or signal matters."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(list(arguments))
    out.flush()
    err.flush()
    return Run(arguments, code, out.buffer.getvalue(), err.buffer.getvalue())  # type: ignore[attr-defined]


def assert_fails(run: Run, code: int, message: str) -> None:
    """One clear line on stderr, nothing on stdout, the documented exit code."""
    text = run.stderr.decode()
    assert run.returncode == code, text
    assert message in text
    assert text.startswith("kvgen: ") and text.count("\n") == 1 and "Traceback" not in text
    assert run.stdout == b""
