"""Spinners and progress bars on stderr, where it is a terminal and work takes long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvgen.cli.output import stderr_is_terminal
from kvgen.visible import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.status import Status

_PATIENCE_SECONDS = 0.5  # shorter work shows neither


@contextmanager
def working(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Show a spinner on a terminal while something takes longer than half a second."""
    if quiet or not stderr_is_terminal():
        yield
        return
    shown: list[Status] = []

    def show() -> None:
        from rich.console import Console
        from rich.text import Text

        status = Console(stderr=True).status(Text(one_line(what)))
        status.start()
        shown.append(status)

    try:
        with _unless_soon_done(show):
            yield
    finally:
        for status in shown:
            status.stop()


@contextmanager
def counting(what: str, total: float, *, quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """Show a progress bar on a terminal while something countable takes long.

    Gives the function to call with each amount done.
    """
    with counting_phases(what, total, quiet=quiet) as advance:
        yield lambda amount: advance(what, amount)


@contextmanager
def counting_phases(
    what: str, total: float, *, quiet: bool = False
) -> Iterator[Callable[[str, float], None]]:
    """The same for work of several phases: the function is told a phase's name and an amount.

    The bar stays below its end until the block is left, however wrong the total was.
    """
    if quiet or not stderr_is_terminal():
        yield lambda *_: None
        return
    shown: list[tuple[Progress, TaskID]] = []
    done = 0.0

    def show() -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        task = bar.add_task(one_line(what), total=total, completed=int(min(done, 0.99 * total)))
        bar.start()
        shown.append((bar, task))

    def advance(phase: str, amount: float) -> None:
        nonlocal done, what
        done, what = done + amount, phase
        for bar, task in shown:
            bar.update(task, description=one_line(phase), completed=min(done, 0.99 * total))

    try:
        with _unless_soon_done(show):
            yield advance
    finally:
        for bar, _ in shown:
            bar.stop()


@contextmanager
def _unless_soon_done(show: Callable[[], None]) -> Iterator[None]:
    """Call something in another thread where the block takes longer than half a second.

    rich is imported there, and not by those who wait for nothing.
    """
    timer = threading.Timer(_PATIENCE_SECONDS, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
