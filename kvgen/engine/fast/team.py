"""A team of threads that run one compiled function together, and wait for each other inside it.

Starting a parallel loop costs more than a small layer, so the threads are started once and meet at
barriers that spin. Between requests a worker spins for a moment, because the next token may come
soon, and then sleeps on a lock, where it costs nothing.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from kvgen.engine.fast.layout import (
    BEGAN,
    BUSY,
    ENDED,
    N_SHARED,
    PATIENCE,
    SPINS,
    TICKET,
    TICKS_OF_NO_ACCOUNT,
    WAITED,
)
from kvgen.engine.fast.team_size import TeamSize
from kvgen.engine.machine import usable_cpus

# Reads of a number before a waiting thread yields the CPU. A thread that spins can keep the thread
# that it waits for off the CPU for a whole time slice: with more threads than CPUs, spin little.
_SPINS, _SPINS_WHERE_CROWDED = 4000, 20
_PATIENCE_SECONDS = 150e-6
_ENDLESS = 2**62  # ticks


class Team:
    """Threads 1 to n - 1; the caller is thread 0.

    `run(thread, n_threads, shared, last_ticket, *arguments)` is the compiled function: thread 0
    makes one request of so many threads and takes part in it; a worker takes part in one request
    after another, until none has come for a while, and returns the ticket of the last one.
    """

    def __init__(self, n_threads: int, run: Callable[..., int], arguments: Sequence[Any]) -> None:
        self.size = TeamSize(n_threads)
        self._n_threads = n_threads
        self._run = run
        self._arguments = tuple(arguments)
        self._pins = _pins(n_threads)
        self._begin()
        _TEAMS.add(self)

    def _begin(self) -> None:
        self.lock = threading.Lock()  # for callers: a request is one thread's until it is done
        self._state = _State(self._n_threads, self._run, self._arguments)
        self._end = weakref.finalize(self, self._state.close)

    def run(self) -> None:
        """Run one request in the calling thread and all workers; returns when all are done."""
        self._state.shared[PATIENCE] = _ENDLESS
        self._run_with(self._n_threads)

    def run_tokens(self, n_tokens: int) -> None:
        """Run a request of so many tokens with as many threads as are of use: see team_size.py."""
        shared, began = self._state.shared, time.perf_counter()
        n_threads = self.size.choose(n_tokens, began)
        if shared[PATIENCE] in (0, _ENDLESS):
            shared[PATIENCE] = 10 * TICKS_OF_NO_ACCOUNT
        self._run_with(n_threads)
        now = time.perf_counter()
        seconds, n_ticks = now - began, int(shared[ENDED] - shared[BEGAN])
        if n_ticks:
            tick = seconds / n_ticks
            if seconds > 10 * _PATIENCE_SECONDS:
                shared[PATIENCE] = round(_PATIENCE_SECONDS / tick)
            self.size.note(n_tokens, seconds, int(shared[WAITED]) * tick, now)

    def _run_with(self, n_threads: int) -> None:
        state = self._state
        if n_threads == 1:
            state.enter(0, 0)
            return
        pins = self._pins if n_threads == self._n_threads else [None] * n_threads
        with _pinned(pins[0]):
            try:
                state.call(pins)
                state.enter(0, 0, n_threads)
            finally:
                state.shared[BUSY] = 0

    def prepare(self) -> None:
        """Compile the function, or load it, by an empty request without the workers."""
        self._state.enter(0, 0)

    def forget(self) -> None:
        """Start again in the child of a fork, which has none of the threads nor their locks."""
        self._end.detach()  # it would wait for a lock that no thread of this process can release
        self._begin()


class _State:
    """What workers refer to. Not the team, so that it can be freed while they sleep."""

    def __init__(self, n_threads: int, run: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        self.run = run
        self.arguments = arguments
        self.shared = np.zeros(N_SHARED, np.int64)
        self.shared[SPINS] = _SPINS if n_threads <= usable_cpus() else _SPINS_WHERE_CROWDED
        self._condition = threading.Condition()
        self._workers: list[threading.Thread] = []
        self._pins: list[int | None] = []  # where each worker is kept, None for thread 0
        self._asleep: set[int] = set()
        self._closed = False

    def enter(self, thread: int, last_ticket: int, n_threads: int = 1) -> int:
        """Run the compiled function in this thread; a worker's request says how many threads."""
        return self.run(thread, n_threads, self.shared, last_ticket, *self.arguments)

    def call(self, pins: Sequence[int | None]) -> None:
        """Wake or start the workers of the next request, each on a CPU of its own if it has one."""
        n_threads = len(pins)
        with self._condition:
            self.shared[BUSY] = n_threads
            if self._asleep and min(self._asleep) < n_threads:
                self._condition.notify_all()
        newest = int(self.shared[TICKET])  # a new worker's first request is the next one
        while len(self._workers) < n_threads - 1:
            thread = len(self._workers) + 1
            worker = threading.Thread(
                target=self._work, args=(thread, newest), name=f"kvgen-{thread}", daemon=True
            )
            self._workers.append(worker)
            worker.start()
        if self._pins != pins:
            for worker, pin in zip(self._workers, pins[1:], strict=False):
                _pin(pin, worker.native_id)
            self._pins = list(pins)

    def close(self) -> None:
        """Let the workers end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _work(self, thread: int, last_ticket: int) -> None:
        while not self._closed:
            last_ticket = self.enter(thread, last_ticket)
            with self._condition:
                while not (self.shared[BUSY] > thread or self._closed):
                    self._asleep.add(thread)
                    self._condition.wait()
                    self._asleep.discard(thread)


_TEAMS: weakref.WeakSet[Team] = weakref.WeakSet()


def _forget_all() -> None:
    for team in list(_TEAMS):
        team.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _pins(n_threads: int) -> list[int | None]:
    """A CPU for each thread where the system lets us choose and there are enough of them.

    All wait for a thread that the system moves onto the CPU of another one. With more threads than
    CPUs, or a single thread, the system decides.
    """
    if not hasattr(os, "sched_setaffinity"):
        return [None] * n_threads
    cpus = sorted(os.sched_getaffinity(0))
    if n_threads == 1 or len(cpus) < n_threads:
        return [None] * n_threads
    return list(cpus[:n_threads])


@contextmanager
def _pinned(cpu: int | None) -> Iterator[None]:
    """Keep the calling thread on one CPU, and afterwards let it run where it could before."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    _set_affinity(0, {cpu})
    try:
        yield
    finally:
        _set_affinity(0, before)


def _pin(cpu: int | None, thread_id: int | None) -> None:
    """Keep a thread of this process on one CPU, or let it run wherever the process may."""
    if hasattr(os, "sched_getaffinity") and thread_id is not None:
        _set_affinity(thread_id, os.sched_getaffinity(os.getpid()) if cpu is None else {cpu})


def _set_affinity(thread_id: int, cpus: set[int]) -> None:
    try:
        os.sched_setaffinity(thread_id, cpus)
    except OSError:  # the CPU is gone, or this is not allowed: the system decides
        return
