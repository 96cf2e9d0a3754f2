"""What threads of a team do in compiled code: meet, wait for a request, take their own memory."""

from __future__ import annotations

import platform

import numpy as np
from numba import carray, types

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.atomics import atomic_add, atomic_load, atomic_store, pause, ticks
from kvgen.engine.fast.kernels.weight_access import as_pointer
from kvgen.engine.fast.layout import (
    ARRIVED,
    BEGAN,
    BUSY,
    ENDED,
    FIRST_ARRIVAL,
    LEAVE_AT,
    PATIENCE,
    SPINS,
    TICKET,
    TICKS_OF_NO_ACCOUNT,
    TIMELINE,
    TIMES,
    WAITED,
    Own,
    Queries,
    Worker,
)

_YIELDS_BEFORE_SLEEP = 40
_SPINS_OF_NO_ACCOUNT = 100  # what is waited at every barrier
_SIZE_BITS = 16  # of a ticket: its number of threads
_LEFT = 2**30  # the number of a thread that has left a request

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
    if worker.thread < 2 and waited > TICKS_OF_NO_ACCOUNT:
        atomic_add(shared, WAITED, waited)


@kernel
def note_time(worker):
    """Write the time into this thread's timeline (tests/peers/cycles.py)."""
    noinline()
    if has_left(worker):
        return
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
def next_request(thread, n_threads, shared, last_ticket):
    """This thread's place in the next request, and its ticket; thread 0 makes the request.

    `has_left` is true of a worker for which none has come for a while, or not for it.
    """
    if thread == 0:
        return open_request(n_threads, shared), last_ticket
    ticket = await_ticket(shared, last_ticket)
    if ticket == last_ticket:
        return Worker(_LEFT, 1, shared, 0), last_ticket
    return enter_request(thread, shared, ticket), ticket


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
