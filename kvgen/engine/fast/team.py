"""A team of threads that run one compiled function together, and wait for each other inside it.

Starting a parallel loop costs more than a small layer, so the threads are started once and meet at
barriers that spin. Between requests a worker spins for a moment, because the next token may come
soon, and then sleeps on a lock, where it costs nothing.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import carray, types

from kvgen.engine.fast.company import TeamSize
from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.atomics import atomic_add, atomic_load, atomic_store, pause, ticks
from kvgen.engine.fast.kernels.weight_access import as_pointer
from kvgen.engine.fast.layout import Own, Queries, Worker
from kvgen.engine.machine import usable_cpus

# Offsets in the array that the threads share, far enough apart for a line of the CPU's cache each.
(
    ARRIVED,  # threads that have reached a barrier, of all requests together
    FIRST_ARRIVAL,  # how many had when this request began
    LEAVE_AT,  # after so many, all threads but thread 0 leave their request
    TICKET,  # the newest request of more than one thread: its number, and its number of threads
    BUSY,  # for how many threads a request is on its way or running, 0 for none
    SPINS,  # how long to spin before yielding the CPU
    WAITED,  # ticks that threads 0 and 1 have waited for one that did not run
    PATIENCE,  # how many of them are borne
    BEGAN,  # ticks when the request began
    ENDED,  # and when it ended
    TIMELINE,  # address of the times at which barriers are reached and passed, 0 for none
    _N_SHARED,
) = range(0, 192, 16)
TIMES = 2**12  # of each thread: how many there are, and then ticks
_SIZE_BITS = 16  # of a ticket: its number of threads
# Reads of a number before a waiting thread yields the CPU. A thread that spins can keep the thread
# that it waits for off the CPU for a whole time slice: with more threads than CPUs, spin little.
_SPINS, _SPINS_WHERE_CROWDED = 4000, 20
_YIELDS_BEFORE_SLEEP = 40
_SPINS_OF_NO_ACCOUNT = 100  # what is waited at every barrier
_TICKS_OF_NO_ACCOUNT = 60_000  # some 20 microseconds on x86: no time slice is so short
_LEFT = 2**30  # the number of a thread that has left a request
_ENDLESS = 2**62  # ticks
_PATIENCE_SECONDS = 150e-6

_yield = types.ExternalFunction(
    "SwitchToThread" if platform.system() == "Windows" else "sched_yield", types.int32()
)


@kernel
def await_arrivals(worker, goal):
    """Wait longer at a barrier, yielding the CPU at times; counts what no thread should wait."""
    noinline()
    shared, began, spins = worker.shared, ticks(), 0
    while atomic_load(shared, ARRIVED) < goal:
        pause()
        spins += 1
        if spins > shared[SPINS]:
            _yield()
    waited = ticks() - began
    if worker.thread < 2 and waited > _TICKS_OF_NO_ACCOUNT:
        atomic_add(shared, WAITED, waited)


@kernel
def note_time(worker):
    """Write the time into this thread's timeline (tests/peers/cycles.py)."""
    noinline()
    times = carray(as_pointer(worker.shared[TIMELINE]), ((worker.thread + 1) * TIMES,), np.int64)
    first = worker.thread * TIMES
    n = times[first] + 1
    if n < TIMES:
        times[first], times[first + n] = n, ticks()


@kernel
def barrier(worker):
    """Wait until all threads are here; what each wrote before, all see afterwards.

    Returns the worker from here on. Where threads have waited for one that does not run, all but
    thread 0 leave at the next barrier: there is no work for them in any range from then on.
    """
    if worker.shared[TIMELINE]:
        note_time(worker)
    if worker.n_threads == 1:
        if worker.shared[TIMELINE]:
            note_time(worker)
        return worker
    thread, n_threads, shared = worker.thread, worker.n_threads, worker.shared
    goal = worker.arrivals + n_threads
    if thread == 0:
        waited = atomic_load(shared, WAITED) - shared[PATIENCE]
        if waited > 0 and waited > (ticks() - shared[BEGAN]) // 4:
            atomic_store(shared, LEAVE_AT, goal)
    atomic_add(shared, ARRIVED, 1)
    spins = 0
    while atomic_load(shared, ARRIVED) < goal:
        pause()
        spins += 1
        if spins > _SPINS_OF_NO_ACCOUNT:
            await_arrivals(worker, goal)
    # A thread that comes late to this line may find that thread 0 has begun another request.
    if atomic_load(shared, LEAVE_AT) == goal or atomic_load(shared, FIRST_ARRIVAL) >= goal:
        thread, n_threads = 0 if thread == 0 else _LEFT, 1
    if shared[TIMELINE]:
        note_time(worker)
    return Worker(thread, n_threads, shared, goal)


@kernel
def has_left(worker):
    """Whether this thread takes no part in the request any more."""
    return worker.thread >= worker.n_threads


@kernel
def await_ticket(shared, last_ticket):
    """Spin until there is a new request; returns its ticket, or the last one after a while."""
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
def open_request(n_threads, shared):
    """Let the workers of this request begin; returns thread 0's own place in it."""
    # Not from 0 again: a worker may still look whether the last request's threads have arrived.
    atomic_store(shared, FIRST_ARRIVAL, atomic_load(shared, ARRIVED))
    atomic_store(shared, WAITED, 0)
    shared[BEGAN] = ticks()
    if n_threads > 1:
        number = (shared[TICKET] >> _SIZE_BITS) + 1
        atomic_store(shared, TICKET, (number << _SIZE_BITS) + n_threads)
    return Worker(0, n_threads, shared, shared[FIRST_ARRIVAL])


@kernel
def enter_request(thread, shared, ticket):
    """A worker's place in the request with this ticket; it may have none: see `has_left`."""
    return Worker(thread, ticket & ((1 << _SIZE_BITS) - 1), shared, shared[FIRST_ARRIVAL])


@kernel
def close_request(shared):
    """Note when thread 0 was done with the request."""
    shared[ENDED] = ticks()


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

    def run_in_company(self, n_tokens: int) -> None:
        """Run a request of so many tokens with as many threads as are of use: see company.py."""
        shared, began = self._state.shared, time.perf_counter()
        n_threads = self.size.choose(n_tokens, began)
        if shared[PATIENCE] in (0, _ENDLESS):
            shared[PATIENCE] = 10 * _TICKS_OF_NO_ACCOUNT
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
        self.shared = np.zeros(_N_SHARED, np.int64)
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
