"""The compiled function that measures what kernels can do on this machine; probe.py calls it."""

from __future__ import annotations

import numpy as np

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.attention import attend
from kvgen.engine.fast.kernels.products import dot_rows, thread_range, tile_across, widen_rows
from kvgen.engine.fast.kernels.threads import barrier, has_left, next_request, own_memory
from kvgen.engine.fast.layout import ROWS, Range, Rows
from kvgen.engine.fast.probe import ATTEND, KEYS, MULTIPLIED_ROWS, MULTIPLY, READ, TILES


@kernel
def multiply_rows(matrix, rows, tokens, own):
    """Multiply some rows of a matrix with a whole chunk of tokens."""
    noinline()
    row = rows.begin
    while row < rows.end:
        widen_rows(matrix, Range(row, min(row + ROWS, rows.end)), own.panel)
        tile_across(
            Rows(own.panel, 0, matrix.n), tokens, Rows(own.product, 0, tokens.pitch), matrix.n
        )
        row += ROWS


@kernel
def probe_loop(thread, n_threads, shared, last_ticket, probe):
    """Run one measurement after another, as `worker_loop` runs requests."""
    own = own_memory(probe.own, thread)
    while True:
        worker, last_ticket = next_request(thread, n_threads, shared, last_ticket)
        if has_left(worker):
            return last_ticket
        if probe.what[0] == READ:
            rows = thread_range(probe.n_rows, worker, 4)
            dot_rows(probe.matrix, probe.x, probe.y, rows, own.digits)
        elif probe.what[0] == MULTIPLY:
            rows = thread_range(MULTIPLIED_ROWS, worker, ROWS)
            multiply_rows(probe.matrix, rows, probe.tokens, own)
        elif probe.what[0] == ATTEND:
            for _ in range(thread, TILES, worker.n_threads):
                attend(ROWS, own.queries, probe.head, Range(0, KEYS), np.float32(0))
        barrier(worker)
        if thread == 0:
            return last_ticket
