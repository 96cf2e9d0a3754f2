"""Work in foreign code that may never end or fail in its own way."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from kvgen.forks import wait_before_fork

T = TypeVar("T")
_STDERR = 2
_MUTE = threading.RLock()  # there is one stderr for all threads
wait_before_fork(_MUTE)


class PanicError(Exception):
    """A Rust library has given up."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives. Raises TimeoutError where it takes longer, and what it raises itself.

    It runs in a thread that is left to itself then, and that keeps no process from ending; so it
    has to release Python's lock, or nobody can look at the clock. What is no Exception (the
    panic of a Rust library) comes as a PanicError, since nobody else would catch it.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, name="kvgen-patience", daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if not errors:
        raise TimeoutError
    if isinstance(errors[0], Exception):
        raise errors[0]
    raise PanicError(str(errors[0])) from None


def is_panic(error: BaseException) -> bool:
    """Whether a Rust library has given up: no Exception, and of a type that cannot be imported."""
    return type(error).__name__ == "PanicException"


@contextmanager
def panics_muted() -> Iterator[None]:
    """Keep off stderr what a Rust library prints there when it gives up, besides raising.

    What others write to stderr meanwhile is written at the end.
    """
    with _MUTE, ExitStack() as stack:
        try:
            kept = stack.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(_STDERR)
        except OSError:  # there is no stderr, or no room for a file
            yield
            return
        os.dup2(kept.fileno(), _STDERR)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = isinstance(error, PanicError) or is_panic(error)
            raise
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            kept.seek(0)
            if not panicked and (written := kept.read()):
                os.write(_STDERR, written)
