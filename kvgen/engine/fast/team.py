"""A team of threads that run one compiled function together, and wait for each other inside it.

Starting a parallel loop costs more than a small layer, so the threads are started once and meet at
barriers that spin. Between requests a worker spins for a moment, since the next token is near, and
then parks on a lock, where it costs nothing.
"""

from __future__ import annotations

import os
import platform
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import types

from kvgen.engine.fast.compiler import kernel
from kvgen.engine.fast.kernels.atomics import atomic_add, atomic_load, pause
from kvgen.engine.machine import usable_cpus

# Places in the array that the threads share, each on a cache line of its own.
ARRIVED, TICKET, WANTED, SPINS = 0, 16, 32, 48
_SHARED = 64
# Looks at a number before the CPU is given away: a thread that spins keeps others from what it
# waits for, for a whole time slice, so where there are more threads than CPUs it hardly spins.
_SPINS, _SPINS_WHERE_CROWDED = 4000, 20
_YIELDS_BEFORE_PARKING = 40

_yield = types.ExternalFunction(
    "SwitchToThread" if platform.system() == "Windows" else "sched_yield", types.int32()
)


@kernel
def barrier(shared, n_threads):
    """Wait until all threads have come here; what each wrote before, all see afterwards."""
    if n_threads == 1:
        return
    arrived = atomic_add(shared, ARRIVED, 1)
    complete = (arrived // n_threads + 1) * n_threads
    spins, limit = 0, shared[SPINS]
    while atomic_load(shared, ARRIVED) < complete:
        pause()
        spins += 1
        if spins > limit:
            _yield()


@kernel
def await_ticket(shared, seen):
    """Spin until there is a new request; gives its number, or `seen` where none came in a while."""
    rounds = 0
    while True:
        for _ in range(shared[SPINS]):
            ticket = atomic_load(shared, TICKET)
            if ticket != seen:
                return ticket
            pause()
        rounds += 1
        if rounds > _YIELDS_BEFORE_PARKING and atomic_load(shared, WANTED) == 0:
            return seen
        _yield()


@kernel
def open_request(shared):
    """Send the workers off."""
    atomic_add(shared, TICKET, 1)


class Team:
    """Threads 1 to n - 1; the caller is thread 0.

    `run(thread, n_threads, shared, seen, *arguments)` is the compiled function: thread 0 makes one
    request and takes part in it; a worker takes part in one after another, until none has come for
    a while, and gives the last one's number.
    """

    def __init__(self, n_threads: int, run: Callable[..., int], arguments: Sequence[Any]) -> None:
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
        """One request, in the calling thread and all workers; back when all are done."""
        state = self._state
        if self._n_threads == 1:
            state.enter(0, 0)
            return
        with _pinned(self._pins[0]):
            try:
                state.call(self._pins)
                state.enter(0, 0)
            finally:
                state.shared[WANTED] = 0

    def prepare(self) -> None:
        """Compile the function, or load it, by an empty request that no worker takes part in."""
        self._state.enter(0, 0, alone=True)

    def forget(self) -> None:
        """Start over, in the child of a fork: without the threads, and what they held is free."""
        self._end.detach()  # it would wait for a lock that nobody gives back
        self._begin()


class _State:
    """What workers hold on to: not the team, so that it can go while they are parked."""

    def __init__(self, n_threads: int, run: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        self.n_threads = n_threads
        self.run = run
        self.arguments = arguments
        self.shared = np.zeros(_SHARED, np.int64)
        self.shared[SPINS] = _SPINS if n_threads <= usable_cpus() else _SPINS_WHERE_CROWDED
        self._condition = threading.Condition()
        self._workers: list[threading.Thread] = []
        self._n_parked = 0
        self._closed = False

    def enter(self, thread: int, seen: int, *, alone: bool = False) -> int:
        """The compiled function, for one thread."""
        n_threads = 1 if alone else self.n_threads
        return self.run(thread, n_threads, self.shared, seen, *self.arguments)

    def call(self, pins: Sequence[int | None]) -> None:
        """See to it that every worker is on its way to the next request."""
        with self._condition:
            self.shared[WANTED] = 1
            if self._n_parked:
                self._condition.notify_all()
        seen = int(self.shared[TICKET])  # a worker's first request is the one to come
        while len(self._workers) < self.n_threads - 1:
            thread = len(self._workers) + 1
            worker = threading.Thread(
                target=self._work,
                args=(thread, pins[thread], seen),
                name=f"kvgen-{thread}",
                daemon=True,
            )
            self._workers.append(worker)
            worker.start()

    def close(self) -> None:
        """Let the workers end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _work(self, thread: int, pin: int | None, seen: int) -> None:
        if pin is not None:
            _pin({pin})
        while not self._closed:
            seen = self.enter(thread, seen)
            with self._condition:
                while not self.shared[WANTED] and self.shared[TICKET] == seen and not self._closed:
                    self._n_parked += 1
                    self._condition.wait()
                    self._n_parked -= 1


_TEAMS: weakref.WeakSet[Team] = weakref.WeakSet()


def _forget_all() -> None:
    for team in list(_TEAMS):
        team.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _pins(n_threads: int) -> list[int | None]:
    """A CPU for each thread where the system lets us choose and there are enough of them.

    A thread that the system moves onto another's CPU makes all of them wait; where there are more
    threads than CPUs, or only one thread, the system decides.
    """
    if not hasattr(os, "sched_setaffinity"):
        return [None] * n_threads
    cpus = sorted(os.sched_getaffinity(0))
    if n_threads == 1 or len(cpus) < n_threads:
        return [None] * n_threads
    return list(cpus[:n_threads])


@contextmanager
def _pinned(cpu: int | None) -> Iterator[None]:
    """The calling thread on one CPU, and afterwards wherever it may be."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    _pin({cpu})
    try:
        yield
    finally:
        _pin(before)


def _pin(cpus: set[int]) -> None:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:  # the CPU is gone, or this is not allowed: the system decides
        return
