"""Many tokens through all layers, as one compiled function that a team of threads runs together.

Activations lie feature by feature, [features, pitch] with a token in each lane, so that a weight is
read once for all tokens. Each thread computes some rows of every matrix, and some of the tokens
where each token is computed by itself. The tokens are neighbours in one sequence (layout.Request).
"""

from __future__ import annotations

import numpy as np
from numba import carray

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.chunk_attention import attend_tile, round_context
from kvgen.engine.fast.kernels.chunk_ops import (
    add_tokens,
    multiply,
    norm_or_copy_tokens,
    normalise_tokens,
    rotate_tokens,
    rows_from,
)
from kvgen.engine.fast.kernels.elementwise import activation_of, as_norm, cap_logits, head_norm
from kvgen.engine.fast.kernels.kv_access import (
    captured_rows,
    head_cache,
    is_held,
    kept_queries,
    lay_out_angles,
    store_keys_and_values,
)
from kvgen.engine.fast.kernels.packed import pack_tokens
from kvgen.engine.fast.kernels.products import dot_rows, thread_range, tile_across, widen_rows
from kvgen.engine.fast.kernels.states import capture_tokens, enter
from kvgen.engine.fast.kernels.threads import barrier, has_left, own_memory
from kvgen.engine.fast.kernels.weight_access import as_pointer, head_matrix, layer_matrix
from kvgen.engine.fast.layout import (
    ALL,
    ATTN_NORM,
    CAPTURED_Q,
    DOWN,
    EACH_HEAD,
    FIRST_LAYER,
    FIRST_POSITION,
    GATE,
    LANES,
    LAST,
    LOGITS,
    MLP_NORM,
    N_ANGLES,
    N_NORMS,
    N_TOKENS,
    OVERFLOW,
    POST_ATTN_NORM,
    POST_MLP_NORM,
    QUERIES,
    ROWS,
    UP,
    WHICH_LOGITS,
    WHOLE,
    Epilogue,
    K,
    O,
    Q,
    QueryTile,
    Range,
    Rows,
    Use,
    V,
)


@kernel
def prepare_head(number, layer, qkv, cos_sin, shape, weights, request, own):
    """Finish one head of q or k of all tokens: norm, RoPE, capture; k and v go into the cache."""
    noinline()
    H, G, D = shape.n_heads, shape.n_kv_heads, shape.head_dim
    T, start = request.numbers[N_TOKENS], request.numbers[FIRST_POSITION]
    x, table = rows_from(qkv, number * D), weights.tables[layer]
    is_query = number < H
    head = number if is_query else number - H
    if shape.qk_norm == EACH_HEAD:
        norm = head_norm(weights.head_norms[layer, 0 if is_query else 1], head, shape)
        normalise_tokens(x, D, norm, Range(0, x.pitch), x)
    if table >= 0:
        rotate_tokens(x, table, request.sequence[N_ANGLES], cos_sin)
    if is_query:
        if request.sequence[QUERIES]:
            kept = kept_queries(request.sequence, shape, layer, head)
            for t in range(T):
                if not is_held(request.sequence, layer, start + t):
                    for i in range(D):
                        kept[(start + t) * D + i] = x.numbers[x.start + i * x.pitch + t]
        row = weights.captured[layer, head]
        if row >= 0:
            target = captured_rows(request.sequence[CAPTURED_Q], request.sequence, row, shape)
            for t in range(T):
                for i in range(D):
                    target[(start + t) * D + i] = x.numbers[x.start + i * x.pitch + t]
        return
    v = rows_from(qkv, (H + G + head) * D)
    cache = head_cache(request, shape, layer, head)
    if not store_keys_and_values(x, v, cache, start, T, own.queries.out):
        request.numbers[OVERFLOW] = layer + 1


@kernel
def all_logits(worker, hidden, shape, weights, request, own):
    """The logits of every token, [T, V] where the request says, of the last hidden states."""
    noinline()
    T, pitch, vocab_size = request.numbers[N_TOKENS], hidden.pitch, shape.vocab_size
    matrix, product = head_matrix(weights, shape), Rows(own.product, 0, pitch)
    logits = carray(as_pointer(request.numbers[LOGITS]), (T * vocab_size,), np.float32)
    rows = thread_range(vocab_size, worker, ROWS)
    row = rows.begin
    while row < rows.end:
        some = Range(row, min(row + ROWS, rows.end))
        widen_rows(matrix, some, own.panel)
        tile_across(Rows(own.panel, 0, matrix.n), hidden, product, matrix.n)
        for t in range(T):  # a token's logits of these rows lie side by side
            for r in range(some.end - some.begin):
                number = own.product[r * pitch + t] + weights.head_bias[row + r]
                logits[t * vocab_size + row + r] = number
        row = some.end
    for t in range(T):
        cap_logits(
            logits, t * vocab_size + rows.begin, t * vocab_size + rows.end, shape.logit_scale,
            shape.logit_softcap,
        )  # fmt: skip


@kernel
def chunk(worker, shape, weights, request, work):
    """Run the request's tokens through all layers; the logits of the last or of all of them."""
    noinline()
    H, G, D, C, F = shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.d_model, shape.d_ff
    H_D, G_D = H * D, G * D
    like, packed, own = weights.like, work.packed, own_memory(work.own, worker.thread)
    T = request.numbers[N_TOKENS]
    pitch, n_tiles = (T + LANES - 1) // LANES * LANES, (T + ROWS - 1) // ROWS
    x, hidden, qkv = Rows(work.x, 0, pitch), Rows(work.hidden, 0, pitch), Rows(work.qkv, 0, pitch)
    branch, inner = Rows(work.branch, 0, pitch), Rows(work.inner, 0, pitch)
    k, v = rows_from(qkv, H_D), rows_from(qkv, H_D + G_D)
    epilogue = Epilogue(shape.residual_scale, activation_of(shape.activation))

    tokens = thread_range(pitch, worker, LANES)  # this thread's tokens
    for t in range(tokens.begin, tokens.end):
        if t < T:
            enter(t, shape, weights, request, own.x)
        for i in range(C):
            work.x[i * pitch + t] = own.x[i] if t < T else np.float32(0)

    lay_out_angles(tokens, pitch, request, work.cos_sin)

    for layer in range(request.numbers[FIRST_LAYER], shape.n_layers):
        if has_left(worker):
            return
        capture_tokens(layer, x, thread_range(pitch, worker, LANES), shape, request)
        norms = weights.norms[N_NORMS * layer : N_NORMS * (layer + 1)]
        tokens = thread_range(pitch, worker, LANES)
        norm = as_norm(norms[ATTN_NORM], shape)
        norm_or_copy_tokens(x, C, norm, shape.pre_norm, tokens, hidden)
        pack_tokens(hidden, C, tokens, like, packed)
        worker = barrier(worker)

        query_rows, key_rows = thread_range(H_D, worker, ROWS), thread_range(G_D, worker, ROWS)
        matrix = layer_matrix(weights, shape, layer, Q, C)
        multiply(matrix, hidden, query_rows, Use.SET, qkv, epilogue, packed, own)
        matrix = layer_matrix(weights, shape, layer, K, C)
        multiply(matrix, hidden, key_rows, Use.SET, k, epilogue, packed, own)
        matrix = layer_matrix(weights, shape, layer, V, C)
        multiply(matrix, hidden, key_rows, Use.SET, v, epilogue, packed, own)
        worker = barrier(worker)
        if shape.qk_norm == WHOLE:
            tokens = thread_range(pitch, worker, LANES)
            norm = as_norm(weights.head_norms[layer, 0], shape)
            normalise_tokens(qkv, H_D, norm, tokens, qkv)
            norm = as_norm(weights.head_norms[layer, 1], shape)
            normalise_tokens(k, G_D, norm, tokens, k)
            worker = barrier(worker)
        for number in range(worker.thread, H + G, worker.n_threads):
            prepare_head(number, layer, qkv, work.cos_sin, shape, weights, request, own)
        worker = barrier(worker)

        if round_context(worker, layer, shape, weights, request, packed, own):
            worker = barrier(worker)
        for item in range(worker.thread, H * n_tiles, worker.n_threads):  # the longest rows first
            first = ROWS * (n_tiles - 1 - item // H)
            tile = QueryTile(layer, item % H, first, min(ROWS, T - first))
            attend_tile(tile, (qkv, hidden), shape, weights, request, packed, own)
        worker = barrier(worker)

        tokens = thread_range(pitch, worker, LANES)
        if pack_tokens(hidden, H_D, tokens, like, packed):
            worker = barrier(worker)
        apart = shape.parallel or shape.post_attn_norm  # not added to x at once
        use, target = (Use.SET, branch) if apart else (Use.ADD, x)
        matrix = layer_matrix(weights, shape, layer, O, H_D)
        model_rows = thread_range(C, worker, ROWS)
        multiply(matrix, hidden, model_rows, use, target, epilogue, packed, own)
        worker = barrier(worker)

        tokens = thread_range(pitch, worker, LANES)
        if shape.parallel:  # the MLP reads what attention has read
            norm = as_norm(norms[MLP_NORM if shape.mlp_norm else ATTN_NORM], shape)
            norm_or_copy_tokens(x, C, norm, shape.mlp_norm or shape.pre_norm, tokens, hidden)
        if apart:
            norm = as_norm(norms[POST_ATTN_NORM], shape)
            norm_or_copy_tokens(branch, C, norm, shape.post_attn_norm, tokens, branch)
            add_tokens(x, branch, C, shape.residual_scale, tokens)
        if not shape.parallel:
            norm = as_norm(norms[MLP_NORM], shape)
            norm_or_copy_tokens(x, C, norm, shape.mlp_norm, tokens, hidden)
        pack_tokens(hidden, C, tokens, like, packed)
        worker = barrier(worker)

        inner_rows = thread_range(F, worker, ROWS)
        if shape.gated:
            matrix = layer_matrix(weights, shape, layer, GATE, C)
            multiply(matrix, hidden, inner_rows, Use.ACTIVATE, inner, epilogue, packed, own)
        use = Use.TIMES if shape.gated else Use.ACTIVATE
        matrix = layer_matrix(weights, shape, layer, UP, C)
        multiply(matrix, hidden, inner_rows, use, inner, epilogue, packed, own)
        worker = barrier(worker)

        tokens = thread_range(pitch, worker, LANES)
        if pack_tokens(inner, F, tokens, like, packed):
            worker = barrier(worker)
        use, target = (Use.SET, branch) if shape.post_mlp_norm else (Use.ADD, x)
        matrix = layer_matrix(weights, shape, layer, DOWN, F)
        model_rows = thread_range(C, worker, ROWS)
        multiply(matrix, inner, model_rows, use, target, epilogue, packed, own)
        worker = barrier(worker)
        tokens = thread_range(pitch, worker, LANES)
        if shape.post_mlp_norm:
            norm = as_norm(norms[POST_MLP_NORM], shape)
            norm_or_copy_tokens(branch, C, norm, shape.post_mlp_norm, tokens, branch)
            add_tokens(x, branch, C, shape.residual_scale, tokens)

    capture_tokens(shape.n_layers, x, thread_range(pitch, worker, LANES), shape, request)
    norm = as_norm(weights.norms[N_NORMS * shape.n_layers], shape)
    normalise_tokens(x, C, norm, thread_range(pitch, worker, LANES), hidden)
    worker = barrier(worker)
    which = request.numbers[WHICH_LOGITS]
    if which == ALL:
        all_logits(worker, hidden, shape, weights, request, own)
    elif which == LAST:
        rows = thread_range(shape.vocab_size, worker, 4)
        for i in range(C):
            own.hidden[i] = work.hidden[i * pitch + T - 1]
        logits = carray(as_pointer(request.numbers[LOGITS]), (shape.vocab_size,), np.float32)
        dot_rows(head_matrix(weights, shape), own.hidden, logits, rows, own.digits)
        cap_logits(logits, rows.begin, rows.end, shape.logit_scale, shape.logit_softcap)
    barrier(worker)
