"""Chat templates in a process of their own, which is ended when it takes too long or too much.

Within a process nothing bounds a program: `{{ 'a' * 3000000000 }}` is one call of C, and nested
loops go on for years. A fresh interpreter (no fork: other threads may hold locks) imports
`kvgen.text.template` and jinja2 alone.
"""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kvgen.errors import CheckpointError, KvgenError

_READY = b"ready\n"  # goes before the answer: from there on only the template can fail
_GLANCE_SECONDS = 0.2


def ask(request: dict[str, Any], *, seconds: float, memory_bytes: int) -> dict[str, Any]:
    """What `kvgen.text.template` answers to a request.

    Raises CheckpointError where the template takes more than so many seconds, or more memory than
    that beyond the interpreter's own (on Windows time alone is bounded), and KvgenError where no
    interpreter can be started.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise KvgenError("a chat template runs in a process of its own, and there is no python")
    content = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        process = subprocess.Popen(
            _command(seconds, memory_bytes),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for this process, which ends the other one.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
            | getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise KvgenError(
            f"a chat template runs in a process of its own: {sys.executable}: {error.strerror}"
        ) from None
    with process:
        try:
            output = _output(process, content, seconds=seconds, memory_bytes=memory_bytes)
        except BaseException:
            process.kill()
            process.wait()
            raise
    return _answer(output, process.returncode, seconds=seconds, memory_bytes=memory_bytes)


def _command(seconds: float, memory_bytes: int) -> list[str]:
    """An interpreter that finds modules where this one does, before it imports any."""
    flags = ["-I"] if sys.flags.isolated else ["-E"] if sys.flags.ignore_environment else []
    places = [place for place in sys.path if isinstance(place, str)]
    places.append(str(Path(__file__).parents[2]))
    code = (
        f"import sys; sys.path[:] = {places!a}; from kvgen.text.template import main; "
        f"sys.stdout.buffer.write({_READY!r}); sys.stdout.flush(); "
        f"main(seconds={seconds}, memory_bytes={memory_bytes})"
    )
    return [sys.executable, *flags, "-c", code]


def _output(
    process: subprocess.Popen[bytes], content: bytes, *, seconds: float, memory_bytes: int
) -> bytes:
    """All that the process writes."""
    end = time.monotonic() + seconds
    unsent: bytes | None = content
    while True:
        try:
            return process.communicate(unsent, timeout=_GLANCE_SECONDS)[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end:
                raise _too_long(seconds) from None
            if _resident_bytes(process.pid) > memory_bytes:
                raise _too_much(memory_bytes) from None
            unsent = None  # the next call goes on with the rest


def _resident_bytes(process_id: int) -> int:
    """The memory that a process holds, where only looking tells; Linux bounds it by itself."""
    if platform.system() in ("Linux", "Windows"):
        return 0
    command = ["ps", "-o", "rss=", "-p", str(process_id)]
    listed = subprocess.run(command, capture_output=True, check=False)
    return 1024 * int(listed.stdout.strip() or 0)


def _answer(output: bytes, code: int, *, seconds: float, memory_bytes: int) -> dict[str, Any]:
    if not output.startswith(_READY):
        raise KvgenError(
            f"a chat template runs in a process of its own: {sys.executable} does not start one"
        )
    ended_by = {-number: number.name for number in signal.Signals}.get(code)
    if ended_by == "SIGXCPU":
        raise _too_long(seconds)
    if ended_by == "SIGKILL":  # by the system, when its memory ends
        raise _too_much(memory_bytes)
    try:
        answer: dict[str, Any] = json.loads(output[len(_READY) :].decode("utf-8", "surrogatepass"))
    except ValueError:
        raise CheckpointError(
            f"the chat template is broken: its process ended with {code}"
        ) from None
    if "memory" in answer:
        raise _too_much(memory_bytes)
    return answer


def _too_long(seconds: float) -> CheckpointError:
    return CheckpointError(f"the chat template takes more than {seconds:g} seconds")


def _too_much(memory_bytes: int) -> CheckpointError:
    size = f"{memory_bytes / 2**20:.0f} MiB"
    return CheckpointError(f"the chat template takes more memory than {size}")
