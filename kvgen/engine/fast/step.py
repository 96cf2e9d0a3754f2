"""One token through all layers, as one compiled function that a team of threads runs together.

The twin of `kvgen.engine.reference.decoder`, which says what is computed. Here each thread computes
some rows of every matrix, and five barriers a layer make each part visible to all:

    own x -> norm -> | q k v | attention by pieces | o | norm -> up, gate | down | -> own x

Every thread keeps a residual stream of its own and adds to it what all threads have computed, which
is cheaper than one more barrier.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.attention import attend
from kvgen.engine.fast.kernels.elementwise import (
    activate,
    activation_of,
    as_norm,
    cap_logits,
    head_norm,
    normalise,
    rotate,
)
from kvgen.engine.fast.kernels.int8_rows import transform_query
from kvgen.engine.fast.kernels.kv_access import (
    angles,
    captured_rows,
    head_cache,
    is_held,
    kept_queries,
    read_query,
    store_key_and_value,
)
from kvgen.engine.fast.kernels.pieces import fetch, fetch_pieces, join_pieces
from kvgen.engine.fast.kernels.products import dot_rows, thread_range
from kvgen.engine.fast.kernels.simd import load, mul, store
from kvgen.engine.fast.kernels.states import capture_token, enter
from kvgen.engine.fast.kernels.threads import barrier, has_left, own_memory
from kvgen.engine.fast.kernels.weight_access import (
    as_pointer,
    head_matrix,
    layer_matrix,
)
from kvgen.engine.fast.layout import (
    ATTN_NORM,
    BLOCK,
    CAPTURED_Q,
    CAPTURED_Z,
    DOWN,
    EACH_HEAD,
    FIRST_LAYER,
    FIRST_POSITION,
    GATE,
    LANES,
    LOGITS,
    MLP_NORM,
    N_ANGLES,
    N_NORMS,
    OVERFLOW,
    PIECES,
    POST_ATTN_NORM,
    POST_MLP_NORM,
    QUERIES,
    READ_K,
    READ_V,
    ROWS,
    SEGMENT,
    UP,
    WHOLE,
    K,
    O,
    Piece,
    Q,
    Range,
    V,
)


@kernel
def norm_or_copy(x, n, norm, wanted, y):
    """y = the norm of x [n], or x itself where the model has no such norm."""
    noinline()
    if wanted:
        normalise(x, n, norm, y)
    else:
        for i in range(n):
            y[i] = x[i]


@kernel
def normalise_head(x, start, head, pair, shape):
    """Normalise one head of q or k at x[start:] in place, where the norm is of each head."""
    noinline()
    if shape.qk_norm == EACH_HEAD:
        own = x[start : start + shape.head_dim]
        normalise(own, shape.head_dim, head_norm(pair, head, shape), own)


@kernel
def attend_to_piece(piece, head, qkv, pieces, shape, weights, request, own):
    """Let the query heads of one key/value head attend to a piece of the context."""
    noinline()
    H, G, D, pitch = shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.pitch
    layer, position, sequence = piece.layer, request.numbers[FIRST_POSITION], request.sequence
    queries = own.queries
    q, out = queries.q, queries.out
    table, scale = weights.tables[layer], weights.scales[layer]
    query_head, after = piece.group * (H // G), (piece.group + 1) * (H // G)
    reads = own.reads[layer]
    while query_head < after:
        n_rows = min(ROWS, after - query_head)
        for r in range(n_rows):
            queries.firsts[r], queries.ends[r] = piece.positions.begin, piece.positions.end
            for i in range(D):
                q[r * D + i] = qkv[(query_head + r) * D + i]
            normalise_head(q, r * D, query_head + r, weights.head_norms[layer, 0], shape)
            if table >= 0:
                cos, sin, angle = angles(sequence, table, position)
                rotate(q, r * D, cos, sin, angle, sequence[N_ANGLES])
            if sequence[QUERIES]:
                # Each piece of the context writes the same numbers, and reads them back.
                kept = kept_queries(sequence, shape, layer, query_head + r)
                if not is_held(sequence, layer, position):
                    for i in range(D):
                        kept[position * D + i] = q[r * D + i]
                read_query(kept, position, request, reads, q, r * D, D)
            row = weights.captured[layer, query_head + r]
            if row >= 0 and piece.number == 0:
                target = captured_rows(sequence[CAPTURED_Q], sequence, row, shape)
                for i in range(D):
                    target[position * D + i] = q[r * D + i]
            transform_query(q, r * D, D, request.like)
            for i in range(D):
                q[r * D + i] *= scale
        attend(n_rows, queries, head, piece.positions, shape.attn_softcap)
        reads[READ_K] += queries.reads[0]
        reads[READ_V] += queries.reads[1]
        for r in range(n_rows):
            part = (query_head + r) * PIECES + piece.number
            pieces.peaks[part], pieces.totals[part] = queries.peaks[r], queries.totals[r]
            for i in range(0, pitch, LANES):
                store(pieces.out, part * pitch + i, load(out, r * pitch + i))
        query_head += n_rows


@kernel
def capture_outputs(hidden, layer, shape, weights, request):
    """Write the captured heads' outputs of this position."""
    noinline()
    D, position = shape.head_dim, request.numbers[FIRST_POSITION]
    for head in range(shape.n_heads):
        row = weights.captured[layer, head]
        if row >= 0:
            target = captured_rows(request.sequence[CAPTURED_Z], request.sequence, row, shape)
            for i in range(D):
                target[position * D + i] = hidden[head * D + i]


@kernel
def times(x, start, other_start, n):
    """x[start:] *= x[other_start:] for n numbers in whole vectors."""
    noinline()
    for i in range(0, n, LANES):
        store(x, start + i, mul(load(x, start + i), load(x, other_start + i)))


@kernel
def step(worker, shape, weights, request, work):
    """Run the request's token through all layers; its logits [V] go where the request says."""
    noinline()
    H, G, D, C, F = shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.d_model, shape.d_ff
    H_D, G_D, thread = H * D, G * D, worker.thread
    position, sequence = request.numbers[FIRST_POSITION], request.sequence
    own = own_memory(work.own, thread)
    x, added, hidden, digits = own.x, own.added, own.hidden, own.digits
    qkv, inner, branch, pieces = work.qkv, work.inner, work.branch, work.pieces
    q, k, v = qkv[:H_D], qkv[H_D : H_D + G_D], qkv[H_D + G_D :]
    gate_start = (F + LANES - 1) // LANES * LANES
    activation = activation_of(shape.activation)

    enter(0, shape, weights, request, x)
    for layer in range(request.numbers[FIRST_LAYER], shape.n_layers):
        if has_left(worker):
            return
        if thread == 0:
            capture_token(layer, x, shape, request)
        norms = weights.norms[N_NORMS * layer : N_NORMS * (layer + 1)]

        norm_or_copy(x, C, as_norm(norms[ATTN_NORM], shape), shape.pre_norm, hidden)
        query_rows, key_rows = thread_range(H_D, worker, LANES), thread_range(G_D, worker, LANES)
        dot_rows(layer_matrix(weights, shape, layer, Q, C), hidden, q, query_rows, digits)
        dot_rows(layer_matrix(weights, shape, layer, K, C), hidden, k, key_rows, digits)
        dot_rows(layer_matrix(weights, shape, layer, V, C), hidden, v, key_rows, digits)
        worker = barrier(worker)
        fetch(qkv, 0, H_D + 2 * G_D)
        if shape.qk_norm == WHOLE:
            # One thread: the others would read what it has normalised already.
            if thread == 0:
                normalise(q, H_D, as_norm(weights.head_norms[layer, 0], shape), q)
                normalise(k, G_D, as_norm(weights.head_norms[layer, 1], shape), k)
            worker = barrier(worker)

        first = max(0, position + 1 - weights.windows[layer])
        visible = position + 1 - first // BLOCK * BLOCK
        n_pieces = min(PIECES, (visible + SEGMENT - 1) // SEGMENT)
        length = ((visible + n_pieces - 1) // n_pieces + BLOCK - 1) // BLOCK * BLOCK
        n_pieces = (visible + length - 1) // length
        table = weights.tables[layer]
        for item in range(worker.thread, G * n_pieces, worker.n_threads):
            group, number = item // n_pieces, item % n_pieces
            head = head_cache(request, shape, layer, group)
            start = first // BLOCK * BLOCK + number * length
            if number == n_pieces - 1:  # the piece that ends with the new position
                normalise_head(k, group * D, group, weights.head_norms[layer, 1], shape)
                if table >= 0:
                    cos, sin, angle = angles(sequence, table, position)
                    rotate(k, group * D, cos, sin, angle, sequence[N_ANGLES])
                if not store_key_and_value(k, v, group * D, head, position):
                    request.numbers[OVERFLOW] = layer + 1
            seen = Range(max(first, start), min(position + 1, start + length))
            piece = Piece(layer, group, number, seen)
            attend_to_piece(piece, head, qkv, pieces, shape, weights, request, own)
        worker = barrier(worker)

        fetch_pieces(n_pieces, pieces, shape)
        join_pieces(n_pieces, pieces, shape, own.queries.out, hidden)
        if thread == 0:
            capture_outputs(hidden, layer, shape, weights, request)
        dot_rows(
            layer_matrix(weights, shape, layer, O, H_D),
            hidden,
            branch,
            thread_range(C, worker, LANES),
            digits,
        )
        worker = barrier(worker)

        fetch(branch, 0, C)
        norm = as_norm(norms[POST_ATTN_NORM], shape)
        norm_or_copy(branch, C, norm, shape.post_attn_norm, added)
        if shape.parallel:  # the MLP reads what attention has read
            norm = as_norm(norms[MLP_NORM if shape.mlp_norm else ATTN_NORM], shape)
            norm_or_copy(x, C, norm, shape.mlp_norm or shape.pre_norm, hidden)
        for i in range(C):
            x[i] += shape.residual_scale * added[i]
        if not shape.parallel:
            norm_or_copy(x, C, as_norm(norms[MLP_NORM], shape), shape.mlp_norm, hidden)
        inner_rows = thread_range(F, worker, LANES)
        dot_rows(layer_matrix(weights, shape, layer, UP, C), hidden, inner, inner_rows, digits)
        begin, n = inner_rows.begin, inner_rows.end - inner_rows.begin
        if shape.gated:
            gate = layer_matrix(weights, shape, layer, GATE, C)
            dot_rows(gate, hidden, inner[gate_start:], inner_rows, digits)
            activate(inner, gate_start + begin, n, activation)
            times(inner, begin, gate_start + begin, n)
        else:
            activate(inner, begin, n, activation)
        worker = barrier(worker)

        dot_rows(
            layer_matrix(weights, shape, layer, DOWN, F),
            inner,
            branch,
            thread_range(C, worker, LANES),
            digits,
        )
        worker = barrier(worker)
        fetch(branch, 0, C)
        norm = as_norm(norms[POST_MLP_NORM], shape)
        norm_or_copy(branch, C, norm, shape.post_mlp_norm, added)
        for i in range(C):
            x[i] += shape.residual_scale * added[i]

    if thread == 0:
        capture_token(shape.n_layers, x, shape, request)
    normalise(x, C, as_norm(weights.norms[N_NORMS * shape.n_layers], shape), hidden)
    logits = carray(as_pointer(request.numbers[LOGITS]), (shape.vocab_size,), np.float32)
    rows = thread_range(shape.vocab_size, worker, LANES)
    dot_rows(head_matrix(weights, shape), hidden, logits, rows, digits)
    cap_logits(logits, rows.begin, rows.end, shape.logit_scale, shape.logit_softcap)
    barrier(worker)
