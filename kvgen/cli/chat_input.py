"""What the user of a chat types: with line editing on a terminal, else line by line from a pipe."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kvgen.cli.output import note
from kvgen.cli.prompt import decoded
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_SIGN, _NEXT_SIGN = ">>> ", "... "


def is_interactive() -> bool:
    """Whether a person types and reads: stdin and stdout are terminals."""
    streams = (sys.stdin, sys.stdout)
    return all(stream is not None and stream.isatty() for stream in streams)


def piped_messages() -> Iterator[str]:
    """Each line of stdin; a backslash at its end joins it with the next one.

    A byte order mark at the beginning is dropped. Raises UsageError for a line that is not UTF-8.
    """
    if sys.stdin is None:
        raise UsageError("there is no standard input to read the messages from")
    parts: list[str] = []
    for number, content in enumerate(iter(sys.stdin.buffer.readline, b"")):
        text = content if number else content.removeprefix(codecs.BOM_UTF8)
        line = decoded(text, "standard input").removesuffix("\n").removesuffix("\r")
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield "\n".join([*parts, line])
        parts = []
    if parts:
        yield "\n".join(parts)


def typed_messages() -> Iterator[str]:
    """Each message that is typed on the terminal, until Ctrl-D.

    Raises KeyboardInterrupt for the second Ctrl-C in a row on an empty line.
    """
    from prompt_toolkit import PromptSession

    keys = _Keys()
    session: PromptSession[str] = PromptSession(
        _SIGN,
        multiline=True,  # of a paste too; Enter is bound anew
        prompt_continuation=_NEXT_SIGN,
        key_bindings=keys.bindings(),
        enable_suspend=True,
    )
    while True:
        keys.interrupted = False
        try:
            yield session.prompt()
        except EOFError:
            return


class _Keys:
    """Enter sends, Alt-Enter begins a new line, Ctrl-C clears the line."""

    def __init__(self) -> None:
        self.interrupted = False

    def bindings(self) -> KeyBindings:
        from prompt_toolkit.key_binding import KeyBindings

        bindings = KeyBindings()
        keys: dict[tuple[str, ...], Callable[[KeyPressEvent], None]] = {
            ("enter",): self._enter,
            ("escape", "enter"): self._new_line,
            ("c-c",): self._interrupt,
        }
        for names, action in keys.items():
            bindings.add(*names)(action)
        return bindings

    def _enter(self, event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    def _new_line(self, event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    def _interrupt(self, event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if self.interrupted and not buffer.text:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")
            return
        self.interrupted = True
        if buffer.text:
            buffer.reset()
        else:
            from prompt_toolkit.application import run_in_terminal

            run_in_terminal(lambda: note("Ctrl-C once more leaves, as Ctrl-D and /exit do"))
