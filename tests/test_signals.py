"""Ctrl-C and SIGTERM where Python would lose the exception: in imports, in `__del__`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EVERY_SIGNAL = pytest.mark.parametrize(
    ("name", "raised"),
    [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "TerminatedError")],
    ids=["Ctrl-C", "SIGTERM"],
)
SEND = "import os, signal, time; os.kill(os.getpid(), signal.{name}); time.sleep(0.1)"
# As NumPy's modules in C do: whatever happens while they import another becomes an ImportError.
CARELESS_MODULE = """
try:
    import sender
except BaseException as error:
    raise ImportError("failed to import") from error
"""
PROGRAM = """
import time
import kvgen.cli
from kvgen.cli import signals

signals.install()
kvgen.cli._take_over_messages()
try:
    {body}
    time.sleep(20)
except BaseException as error:
    print(type(error).__name__)
"""


def run(body: str, folder: Path) -> tuple[str, str]:
    """What a process prints that runs these statements, and then waits for the signal."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
    )  # fmt: skip
    return ran.stdout.strip(), ran.stderr


@EVERY_SIGNAL
def test_a_signal_in_an_import_is_raised_behind_it(name: str, raised: str, tmp_path: Path) -> None:
    (tmp_path / "sender.py").write_text(SEND.format(name=name), encoding="utf-8")
    (tmp_path / "careless.py").write_text(CARELESS_MODULE, encoding="utf-8")
    assert run("import careless", tmp_path) == (raised, "")


@EVERY_SIGNAL
def test_a_signal_that_python_cannot_pass_on_is_sent_again(
    name: str, raised: str, tmp_path: Path
) -> None:
    (tmp_path / "careless.py").write_text(
        f"class Careless:\n    def __del__(self):\n        {SEND.format(name=name)}\n",
        encoding="utf-8",
    )
    assert run("from careless import Careless; Careless()", tmp_path) == (raised, "")
