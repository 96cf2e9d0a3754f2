"""Ctrl-C and SIGTERM as exceptions, at moments where an exception gets through."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kvgen.errors import TerminatedError

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # the file of its frames
_SECONDS_BETWEEN_LOOKS = 0.002


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


def send_again(lost: BaseException | None) -> bool:
    """Send the signal of an exception that Python could not pass on; False for other exceptions."""
    if not isinstance(lost, KeyboardInterrupt | TerminatedError):
        return False
    _Inbox.arrived = signal.SIGINT if isinstance(lost, KeyboardInterrupt) else signal.SIGTERM
    _thread.start_new_thread(_send_later, ())
    return True


def _receive(number: int, frame: FrameType | None) -> None:
    """Raise a signal's exception, or hold the first one back where it would be lost.

    So it would in an import: modules in C, NumPy's above all, make an ImportError of it.
    """
    if _Inbox.arrived is None and (_Inbox.deferring or _in_import(frame)):
        _Inbox.arrived = number
        if not _Inbox.deferring:
            # Not a Thread: its start takes a lock that the interrupted code may hold.
            _thread.start_new_thread(_send_later, ())
        return
    _raise(number)


def _in_import(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _IMPORT_SYSTEM:
        frame = frame.f_back
    return frame is not None


def _send_later() -> None:
    """Send the signal that was held back as soon as the main thread imports nothing."""
    main = threading.main_thread().ident
    assert main is not None
    time.sleep(_SECONDS_BETWEEN_LOOKS)
    while _in_import(sys._current_frames().get(main)):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    number, _Inbox.arrived = _Inbox.arrived, None
    if number is None:
        return
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(main, number)


def _raise(number: int) -> None:
    if number == signal.SIGTERM:
        raise TerminatedError
    raise KeyboardInterrupt
