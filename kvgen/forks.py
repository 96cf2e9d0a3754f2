"""Forks while another thread is at work: the child has only the thread that forked."""

from __future__ import annotations

import os
from typing import Any, Protocol


class _Lock(Protocol):
    def acquire(self) -> Any: ...
    def release(self) -> Any: ...


def wait_before_fork(lock: _Lock) -> None:
    """Let every fork of this process wait until no other thread holds `lock`.

    For libraries that a fork may not interrupt: what the other thread has begun, nobody would end
    in the child. A thread that holds the lock may fork itself, so it has to be re-entrant.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
