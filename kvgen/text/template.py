"""A chat template at work, in the process that `kvgen.text.sandbox` starts for it.

A template is a Jinja program from the internet, so it runs in Jinja's sandbox, with the settings,
filters and functions that transformers gives it (utils/chat_template_utils.py), and in a process
that may only take so much memory. jinja2 is imported here only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MOST_CHARACTERS = 2**24  # of a text; no model reads as many
_LONGEST_REASON = 1000


def main(*, seconds: float, memory_bytes: int) -> None:
    """Answer the request on stdin on stdout, both JSON, within so much time and memory.

    The answer holds `text`, or `refused` or `broken` with the reason, or `memory`.
    """
    _bound(seconds, memory_bytes)
    try:
        answer = _answer()
    except MemoryError:
        answer = b""
    # What took the memory is gone where the error has been left behind.
    sys.stdout.buffer.write(answer or b'{"memory": true}')


def _answer() -> bytes:
    request = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))
    now = datetime.fromisoformat(request.pop("now"))
    answer: dict[str, str]
    try:
        answer = {"text": fill(**request, now=now)}
    except TurnedDownError as refusal:
        answer = {"refused": _line(refusal)}
    except MemoryError:
        raise
    except Exception as error:  # a program from elsewhere may raise anything
        answer = {"broken": _line(error)}
    if len(answer.get("text", "")) > _MOST_CHARACTERS:
        answer = {"broken": f"its text has more than {_MOST_CHARACTERS:,} characters"}
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _bound(seconds: float, memory_bytes: int) -> None:
    """Let the system end this process, too, where nobody is left to do so."""
    try:
        import resource
    except ImportError:  # Windows
        return
    wanted = {
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: memory_bytes,
    }
    with contextlib.suppress(OSError, ValueError):  # a system that does not count pages so
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        wanted[resource.RLIMIT_AS] = pages * os.sysconf("SC_PAGE_SIZE") + memory_bytes
    for which, most in wanted.items():
        _, hard = resource.getrlimit(which)
        if hard == resource.RLIM_INFINITY or most < hard:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(which, (most, most))


def _line(error: Exception) -> str:
    return " ".join(str(error)[:_LONGEST_REASON].split()) or type(error).__name__


class TurnedDownError(Exception):
    """What a template says when it does not take the messages."""


def fill(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    *,
    now: datetime,
) -> str:
    """The text that a template makes of messages; it may raise anything.

    Raises TurnedDownError where it calls `raise_exception`.
    """

    class Generation(Extension):
        """`{% generation %}` marks what to train on; the text itself is kept."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(inside, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["dict"] = _Dict()
    environment.globals["raise_exception"] = _turn_down
    environment.globals["strftime_now"] = lambda pattern: now.strftime(pattern)
    return environment.from_string(template).render(
        messages=messages,
        tools=None,
        documents=None,
        add_generation_prompt=True,
        **tokens,
    )


def _turn_down(reason: str) -> NoReturn:
    raise TurnedDownError(reason)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Dict:
    """What a template knows as `dict`: the type's own methods would change any dictionary."""

    fromkeys = staticmethod(dict.fromkeys)

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)
