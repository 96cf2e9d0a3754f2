"""Work in foreign code that may never end or fail in its own way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives. Raises TimeoutError where it takes longer, and what it raises itself.

    It runs in a thread that is left to itself then, and that keeps no process from ending; so it
    has to release Python's lock, or nobody can look at the clock. What is no Exception (the
    panic of a Rust library) comes as a RuntimeError, since nobody else would catch it.
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
    raise RuntimeError(str(errors[0])) from None


def is_panic(error: BaseException) -> bool:
    """Whether a Rust library has given up: no Exception, and of a type that cannot be imported."""
    return type(error).__name__ == "PanicException"
