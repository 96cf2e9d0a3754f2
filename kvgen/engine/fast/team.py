"""A team of threads that run one compiled function together, and wait for each other inside it.

Starting a parallel loop costs more than a small layer, so the threads are started once and meet at
barriers that spin. Between requests a worker spins for a moment, because the next token may come
soon, and then sleeps on a lock, where it costs nothing.
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
from kvgen.engine.fast.layout import Own, Queries
from kvgen.engine.machine import usable_cpus

# Offsets in the array that the threads share, far enough apart for a line of the CPU's cache each:
# threads that have reached a barrier, the number of the newest request, whether a request is on its
# way or running, and how long to spin.
ARRIVED, TICKET, BUSY, SPINS, _N_SHARED = range(0, 80, 16)
# Reads of a number before a waiting thread yields the CPU. A thread that spins can keep the thread
# that it waits for off the CPU for a whole time slice: with more threads than CPUs, spin little.
_SPINS, _SPINS_WHERE_CROWDED = 4000, 20
_YIELDS_BEFORE_SLEEP = 40

_yield = types.ExternalFunction(
    "SwitchToThread" if platform.system() == "Windows" else "sched_yield", types.int32()
)


@kernel
def barrier(worker):
    """Wait until all threads are here; what each wrote before, all see afterwards."""
    n_threads, shared = worker.n_threads, worker.shared
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
def await_ticket(shared, last_ticket):
    """Spin until there is a new request; returns its number, or the last one after a while."""
    rounds = 0
    while True:
        for _ in range(shared[SPINS]):
            ticket = atomic_load(shared, TICKET)
            if ticket != last_ticket:
                return ticket
            pause()
        rounds += 1
        if rounds > _YIELDS_BEFORE_SLEEP and atomic_load(shared, BUSY) == 0:
            return last_ticket
        _yield()


@kernel
def open_request(shared):
    """Let the workers begin."""
    atomic_add(shared, TICKET, 1)


@kernel
def own_memory(own, thread):
    """The memory of one thread, from that of all."""
    every = own.queries
    queries = Queries(
        every.q[thread], every.firsts[thread], every.ends[thread], every.scores[thread],
        every.out[thread], every.peaks[thread], every.totals[thread], every.reads[thread],
    )  # fmt: skip
    return Own(
        own.x[thread], own.added[thread], own.hidden[thread], queries, own.digits[thread],
        own.panel[thread], own.product[thread], own.reads[thread],
    )  # fmt: skip


class Team:
    """Threads 1 to n - 1; the caller is thread 0.

    `run(thread, n_threads, shared, last_ticket, *arguments)` is the compiled function: thread 0
    makes one request and takes part in it; a worker takes part in one request after another, until
    none has come for a while, and returns the number of the last one.
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
        """Run one request in the calling thread and all workers; returns when all are done."""
        state = self._state
        if self._n_threads == 1:
            state.enter(0, 0)
            return
        with _pinned(self._pins[0]):
            try:
                state.call(self._pins)
                state.enter(0, 0)
            finally:
                state.shared[BUSY] = 0

    def prepare(self) -> None:
        """Compile the function, or load it, by an empty request without the workers."""
        self._state.enter(0, 0, alone=True)

    def forget(self) -> None:
        """Start again in the child of a fork, which has none of the threads nor their locks."""
        self._end.detach()  # it would wait for a lock that no thread of this process can release
        self._begin()


class _State:
    """What workers refer to. Not the team, so that it can be freed while they sleep."""

    def __init__(self, n_threads: int, run: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        self.n_threads = n_threads
        self.run = run
        self.arguments = arguments
        self.shared = np.zeros(_N_SHARED, np.int64)
        self.shared[SPINS] = _SPINS if n_threads <= usable_cpus() else _SPINS_WHERE_CROWDED
        self._condition = threading.Condition()
        self._workers: list[threading.Thread] = []
        self._n_asleep = 0
        self._closed = False

    def enter(self, thread: int, last_ticket: int, *, alone: bool = False) -> int:
        """Run the compiled function in this thread."""
        n_threads = 1 if alone else self.n_threads
        return self.run(thread, n_threads, self.shared, last_ticket, *self.arguments)

    def call(self, pins: Sequence[int | None]) -> None:
        """Wake or start every worker for the next request."""
        with self._condition:
            self.shared[BUSY] = 1
            if self._n_asleep:
                self._condition.notify_all()
        newest = int(self.shared[TICKET])  # a new worker's first request is the next one
        while len(self._workers) < self.n_threads - 1:
            thread = len(self._workers) + 1
            worker = threading.Thread(
                target=self._work,
                args=(thread, pins[thread], newest),
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

    def _work(self, thread: int, pin: int | None, last_ticket: int) -> None:
        if pin is not None:
            _pin({pin})
        while not self._closed:
            last_ticket = self.enter(thread, last_ticket)
            with self._condition:
                while not (self.shared[BUSY] or self.shared[TICKET] != last_ticket or self._closed):
                    self._n_asleep += 1
                    self._condition.wait()
                    self._n_asleep -= 1


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
