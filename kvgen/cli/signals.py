"""Ctrl-C and SIGTERM as exceptions, at moments where an exception gets through."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kvgen.errors import TerminatedError


class _Inbox:
    """A signal that arrived while an exception would have been lost."""

    deferring = False
    arrived: int | None = None


def install() -> None:
    """Let SIGINT raise KeyboardInterrupt and SIGTERM raise TerminatedError in this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _receive)


def ignore() -> None:
    """Ignore signals while this process ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def deferred() -> Iterator[None]:
    """Hold the first signal back until the block is left; a second one is raised at once.

    While kernels are compiled, the compiler calls back into Python from foreign code, and an
    exception raised there is printed and forgotten.
    """
    _Inbox.deferring = True
    try:
        yield
    finally:
        _Inbox.deferring = False
    if _Inbox.arrived is not None:
        number, _Inbox.arrived = _Inbox.arrived, None
        _raise(number)


def _receive(number: int, _: FrameType | None) -> None:
    if _Inbox.deferring and _Inbox.arrived is None:
        _Inbox.arrived = number
        return
    _raise(number)


def _raise(number: int) -> None:
    if number == signal.SIGTERM:
        raise TerminatedError
    raise KeyboardInterrupt
