"""Where output goes: results to stdout or a file; progress, timings and notes to stderr."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.choices import Color
from kvgen.cli.command import did_you_mean
from kvgen.errors import UsageError
from kvgen.visible import one_line, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvgen.render.canvas import Canvas
    from kvgen.render.words import Paint, PaintedWrap, WordWrap

_PIPE_WIDTH, _NARROWEST = 100, 60
_LONGEST_NOTE = 2000  # characters; the keys of a large config.json go into it
_REMARK_INDENT = " " * 8  # behind the names that begin the lines of a timing block
_SHAPES = "▁▂▃▄▅▆▇█▀░▒▓·│◂…␣⏎⇥"  # the characters of views that are not in ASCII


def write_text(text: str) -> None:
    """A piece of the result to stdout at once.

    To a pipe or a file as UTF-8, byte for byte; on a terminal with control characters written as
    escapes.
    """
    if sys.stdout is None:
        return
    if sys.stdout.isatty():
        _write_encodable(visible(text))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
        sys.stdout.flush()


def write_line(text: str, *, good: bool | None = None) -> None:
    """Print a line of the result; on a terminal in green where `good`, red where not."""
    line = one_line(text)
    if sys.stdout is None or not sys.stdout.isatty():
        write_text(line + "\n")
        return
    line = in_lines(line)
    if good is not None and "NO_COLOR" not in os.environ:
        line = click.style(line, fg="green" if good else "red")
    _write_encodable(line + "\n")


class Prose:
    """A generated text on stdout, piece by piece: as `write_text`, on a terminal by words.

    The last word of a piece is held back until it is whole; `end` writes what is left.
    """

    def __init__(self) -> None:
        self._wrap: WordWrap | None = None
        if sys.stdout is not None and sys.stdout.isatty():
            from kvgen.render.words import WordWrap

            self._wrap = WordWrap()

    def write(self, text: str) -> None:
        """The next piece."""
        if self._wrap is None:
            write_text(text)
        else:
            _write_encodable(self._wrap.feed(visible(text), _columns()))

    def end(self) -> None:
        """No more pieces come, or none for now."""
        if self._wrap is not None:
            _write_encodable(self._wrap.end(_columns()))


class PaintedProse:
    """As `Prose`, but for pieces in colours: every line is visible text, on a pipe too."""

    def __init__(self) -> None:
        self._wrap: PaintedWrap | None = None
        if sys.stdout is not None and sys.stdout.isatty():
            from kvgen.render.words import PaintedWrap

            self._wrap = PaintedWrap()

    def write(self, text: str, paint: Paint | None = None) -> None:
        """The next piece; without a paint in no colour."""
        text = visible(text)
        if self._wrap is not None:
            _write_encodable(self._wrap.feed(text, _columns(), paint))
        else:
            lines = text.split("\n")
            write_text("\n".join(paint(line) if paint and line else line for line in lines))

    def end(self) -> None:
        """No more pieces come, or none for now."""
        if self._wrap is not None:
            _write_encodable(self._wrap.end(_columns()))


def in_lines(text: str) -> str:
    """The text in lines that the terminal has room for; a remark in brackets begins one first."""
    from kvgen.render.words import WordWrap

    if len(text) > _columns():
        text = text.replace("   (", f"\n{_REMARK_INDENT}(")
    wrap = WordWrap()
    return wrap.feed(text, _columns()) + wrap.end(_columns())


def _columns() -> int:
    return max(1, shutil.get_terminal_size().columns)


def _write_encodable(text: str) -> None:
    """Text to stdout as its encoding has it, with ? for the rest."""
    if sys.stdout is not None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()


class Destination(NamedTuple):
    """Where a result goes, and in which format."""

    kind: str  # a format's name, which is the ending of such a file without its dot
    path: str | None  # None: stdout


def destination(value: str, *, formats: Sequence[str], endings: Sequence[str]) -> Destination:
    """The destination that `-o` names: one of `formats` on stdout, or a file by its ending.

    Raises UsageError for anything else, and for a file that could not be written.
    """
    if value in formats:
        return Destination(value, None)
    ending = Path(value).suffix
    if not ending and formats and "/" not in value:
        near = did_you_mean(value, formats)
        raise UsageError(
            f"-o {value} is neither a format ({', '.join(formats)}) nor a file that ends in "
            f"{', '.join(endings)}{near}"
        )
    check_writable(value)
    if ending not in endings:
        raise UsageError(f"{value}: the file's name must end in {', '.join(endings)}")
    return Destination(ending[1:], value)


def check_writable(path: str) -> None:
    """Raise UsageError for a path that could not be written, before the work for it is done."""
    target = Path(path).resolve()
    if not path:
        raise UsageError("'' is not the name of a file")
    if target.is_dir():
        raise UsageError(f"{path}: is a folder: name a file")
    if not target.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {Path(path).parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UsageError(f"{path}: cannot be written")


def note(text: str) -> None:
    """Print a line on stderr; where stderr is closed the run goes on."""
    with suppress(OSError):
        line = one_line(text, most=_LONGEST_NOTE)
        click.echo(in_lines(line) if stderr_is_terminal() else line, err=True)


def make_canvas(*, color: Color, width: int | None, ascii_only: bool) -> Canvas:
    """How to draw on this stdout: its width, and colours, block characters or ASCII."""
    from rich.console import Console

    from kvgen.render.canvas import Canvas, Mode

    console = Console(file=sys.stdout)
    if width is None:
        environment = os.environ.get("COLUMNS", "")
        on_pipe = int(environment) if re.fullmatch("[0-9]{1,5}", environment) else _PIPE_WIDTH
        width = max(_NARROWEST, console.width if console.is_terminal else on_pipe)
    mode: Mode = "glyphs"
    # 16 colours would mislead: a map needs a ramp.
    if color == "always" or (
        color == "auto" and not console.no_color and console.color_system in ("256", "truecolor")
    ):
        mode = "color"
    if ascii_only or not _can_encode(_SHAPES):
        mode = "ascii"
    # Of a pipe, or a terminal that names 16 colours, --color always asks for all of them.
    full = console.color_system in (None, "standard", "truecolor")
    return Canvas(width, mode, "truecolor" if full else "256")


def show(view: RenderableType, canvas: Canvas) -> None:
    """Draw a view on stdout."""
    from kvgen.render.draw import draw

    _write_encodable(draw(view, canvas))


def _can_encode(characters: str) -> bool:
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def stderr_is_terminal() -> bool:
    """Whether notes and progress reach a person."""
    return sys.stderr is not None and sys.stderr.isatty()
