"""What the threads of a team are sent into: one request, or one after another."""

from __future__ import annotations

from kvgen.engine.fast.chunk import chunk
from kvgen.engine.fast.compiler import jit_entry
from kvgen.engine.fast.layout import N_TOKENS
from kvgen.engine.fast.step import step
from kvgen.engine.fast.team import await_ticket, open_request


@jit_entry
def worker_loop(thread, n_threads, shared, seen, shape, weights, request, work):
    """Thread 0 makes one request and takes part in it; the others serve one after another.

    They stay until none has come for a while, and give the last one's number. One function for
    both, because each would hold all the code.
    """
    while True:
        if thread == 0:
            open_request(shared)
        else:
            ticket = await_ticket(shared, seen)
            if ticket == seen:
                return seen
            seen = ticket
        if request.numbers[N_TOKENS] == 1:
            step(thread, n_threads, shared, shape, weights, request, work)
        elif request.numbers[N_TOKENS] > 1:
            chunk(thread, n_threads, shared, shape, weights, request, work)
        if thread == 0:
            return seen
