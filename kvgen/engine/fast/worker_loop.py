"""The compiled function that each thread of a team runs: one request, or one after another."""

from __future__ import annotations

from kvgen.engine.fast.chunk import chunk
from kvgen.engine.fast.compiler import kernel
from kvgen.engine.fast.kernels.threads import close_request, has_left, next_request
from kvgen.engine.fast.layout import N_TOKENS
from kvgen.engine.fast.step import step


@kernel
def worker_loop(thread, n_threads, shared, last_ticket, shape, weights, request, work):
    """Thread 0 makes one request and takes part in it; the others serve one after another.

    They return when none has come for a while, with the number of the last one. One function for
    both kinds of thread, because each would hold all the code.
    """
    while True:
        worker, last_ticket = next_request(thread, n_threads, shared, last_ticket)
        if has_left(worker):
            return last_ticket
        if request.numbers[N_TOKENS] == 1:
            step(worker, shape, weights, request, work)
        elif request.numbers[N_TOKENS] > 1:
            chunk(worker, shape, weights, request, work)
        if thread == 0:
            close_request(shared)
            return last_ticket
