"""Many tokens through all layers, as one compiled function that a team of threads runs together.

Activations lie feature by feature, [features, P] with a token in each lane, so that a weight is
read once for all tokens; a row of the chunk carries its own position and its own cache. The rows of
every matrix are shared out between the threads, and so are the tokens where each is by itself.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.attention import attend
from kvgen.engine.fast.kernels.chunk_ops import (
    ACTIVATE,
    ADD,
    SET,
    START,
    TIMES,
    add_tokens,
    multiply,
    norm_or_copy_tokens,
    normalise_tokens,
    rotate_tokens,
)
from kvgen.engine.fast.kernels.elementwise import cap_logits
from kvgen.engine.fast.kernels.kv_access import (
    captured_rows,
    keep_keys_and_values,
    lay_out_angles,
    layer_of_cache,
)
from kvgen.engine.fast.kernels.packed import pack_tokens
from kvgen.engine.fast.kernels.products import ROWS, dot_rows, share, tile_across, widen_rows
from kvgen.engine.fast.kernels.simd import (
    LANES,
)
from kvgen.engine.fast.kernels.weight_access import as_pointer
from kvgen.engine.fast.layout import (
    ALL,
    ATTN_NORM,
    CAPACITY,
    CAPTURED_Q,
    CAPTURED_Z,
    DOWN,
    EACH_HEAD,
    GATE,
    LAST,
    LOGITS,
    MLP_NORM,
    N_ANGLES,
    N_TILES,
    N_TOKENS,
    OVERFLOW,
    POST_ATTN_NORM,
    POST_MLP_NORM,
    UP,
    WHICH_LOGITS,
    WHOLE,
    K,
    O,
    Q,
    V,
)
from kvgen.engine.fast.step import embed
from kvgen.engine.fast.team import barrier


@kernel
def prepare_head(number, layer, T, pitch, shape, weights, request, work):
    """One head of q, k or v of all tokens: norm, RoPE, capture; k and v go into the cache."""
    noinline()
    H, G, D = shape.n_heads, shape.n_kv_heads, shape.head_dim
    start, table = number * D * pitch, weights.tables[layer]
    is_query = number < H
    head = number if is_query else number - H
    if shape.qk_norm == EACH_HEAD:
        norm = weights.head_norms[layer, 0 if is_query else 1]
        normalise_tokens(
            work.qkv, start, D, norm, head * D, shape.rms, shape.norm_eps, pitch, START, pitch,
            work.qkv, start,
        )  # fmt: skip
    if table >= 0:
        half = request.caches[0, N_ANGLES]
        rotate_tokens(work.qkv, start, table, half, pitch, work.turns)
    if is_query:
        row = weights.captured[layer, head]
        if row >= 0:
            for t in range(T):
                cache = request.caches[request.slots[t]]
                target = captured_rows(cache[CAPTURED_Q], cache, row, shape)
                for i in range(D):
                    target[request.positions[t] * D + i] = work.qkv[start + i * pitch + t]
        return
    begin = 0
    while begin < T:  # the rows of one cache after the other
        slot, end = request.slots[begin], begin + 1
        while end < T and request.slots[end] == slot:
            end += 1
        keys, values = layer_of_cache(request.caches[slot], request.like, layer, shape)
        fits = keep_keys_and_values(
            work.qkv, start, (H + G + head) * D * pitch, pitch, begin, end, D, keys, values,
            request.caches[slot], head, request.positions, shape.pitch,
        )  # fmt: skip
        if not fits:
            request.numbers[OVERFLOW] = layer + 1
        begin = end


@kernel
def attend_tile(thread, head, first_row, n_rows, layer, pitch, shape, weights, request, work):
    """One head of neighbouring tokens of one sequence; `work.hidden` gets the result."""
    noinline()
    H, G, D = shape.n_heads, shape.n_kv_heads, shape.head_dim
    cache = request.caches[request.slots[first_row]]
    keys, values = layer_of_cache(cache, request.like, layer, shape)
    q, scores, out = work.own_q[thread], work.own_scores[thread], work.own_out[thread]
    peaks, totals = work.own_peaks[thread], work.own_totals[thread]
    firsts, ends = work.own_firsts[thread], work.own_ends[thread]
    scale, window = weights.scales[layer], weights.windows[layer]
    for r in range(n_rows):
        position = request.positions[first_row + r]
        firsts[r], ends[r] = max(0, position + 1 - window), position + 1
        if head == 0:
            work.own_reads[thread, layer] += ends[r] - firsts[r]
    for i in range(D):
        for r in range(n_rows):
            q[r * D + i] = work.qkv[(head * D + i) * pitch + first_row + r] * scale
    group = head // (H // G)
    attend(
        n_rows, q, keys, group * cache[CAPACITY] * D, values, group * cache[CAPACITY] * shape.pitch,
        D, shape.pitch, firsts[0], ends[n_rows - 1], firsts, ends, shape.attn_softcap, scores, out,
        peaks, totals,
    )  # fmt: skip
    for r in range(n_rows):
        totals[r] = np.float32(1) / totals[r]
    for i in range(D):
        for r in range(n_rows):
            z = out[r * shape.pitch + i] * totals[r]
            work.hidden[(head * D + i) * pitch + first_row + r] = z
    row = weights.captured[layer, head]
    if row >= 0:
        captured = captured_rows(cache[CAPTURED_Z], cache, row, shape)
        for r in range(n_rows):
            place = request.positions[first_row + r] * D
            for i in range(D):
                captured[place + i] = out[r * shape.pitch + i] * totals[r]


@kernel
def all_logits(thread, n_threads, address, T, pitch, shape, weights, work):
    """The logits of every token, [T, V] at an address, of hidden states in `work.hidden`."""
    noinline()
    C, vocab_size = shape.d_model, shape.vocab_size
    panel, product = work.own_panel[thread], work.own_product[thread]
    logits = carray(as_pointer(address), (T * vocab_size,), np.float32)
    row, end = share(vocab_size, thread, n_threads, ROWS)
    while row < end:
        n_rows = min(ROWS, end - row)
        widen_rows(weights.head, weights.like, row, n_rows, C, panel)
        tile_across(panel, 0, C, work.hidden, pitch, product, pitch)
        for r in range(n_rows):
            shift = weights.head_bias[row + r]
            for t in range(T):
                logits[t * vocab_size + row + r] = product[r * pitch + t] + shift
        row += n_rows
    begin, end = share(vocab_size, thread, n_threads, ROWS)
    for t in range(T):
        cap_logits(
            logits, t * vocab_size + begin, t * vocab_size + end, shape.logit_scale,
            shape.logit_softcap,
        )  # fmt: skip


@kernel
def chunk(thread, n_threads, shared, shape, weights, request, work):
    """Run the request's rows through all layers; the logits of the last or of all of them."""
    noinline()
    H, G, D, C, F = shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.d_model, shape.d_ff
    like, activation, H_D = weights.like, shape.activation, H * D
    T, n_tiles = request.numbers[N_TOKENS], request.numbers[N_TILES]
    pitch = (T + LANES - 1) // LANES * LANES
    x, hidden, branch, inner = work.x, work.hidden, work.branch, work.inner
    packed = work.packed
    begin, end = share(pitch, thread, n_threads, LANES)  # this thread's tokens
    one = np.float32(1)

    own = work.own_x[thread]
    for t in range(begin, end):
        if t < T:
            embed(request.tokens[t], request.positions[t], shape, weights, own)
        for i in range(C):
            x[i * pitch + t] = own[i] if t < T else np.float32(0)

    lay_out_angles(T, pitch, begin, end, request, work.turns)

    for layer in range(shape.n_layers):
        matrices, bias = weights.layers[layer], weights.biases[layer]
        norms = weights.norms[4 * layer : 4 * layer + 4]
        norm_or_copy_tokens(
            x, C, norms[ATTN_NORM], shape.pre_norm, shape, pitch, begin, end, hidden
        )
        pack_tokens(hidden, C, pitch, begin, end, like, packed)
        barrier(shared, n_threads)

        start = START
        for slot, n_rows in ((Q, H_D), (K, G * D), (V, G * D)):
            first, last = share(n_rows, thread, n_threads, ROWS)
            multiply(
                matrices[slot], like, hidden, C, bias[slot], SET, one, START, pitch, work, thread,
                work.qkv, start, first, last,
            )  # fmt: skip
            start += n_rows * pitch
        barrier(shared, n_threads)
        if shape.qk_norm == WHOLE:
            norm = weights.head_norms[layer]
            normalise_tokens(
                work.qkv, START, H_D, norm[0], START, shape.rms, shape.norm_eps, pitch, begin, end,
                work.qkv, START,
            )  # fmt: skip
            normalise_tokens(
                work.qkv, H_D * pitch, G * D, norm[1], START, shape.rms, shape.norm_eps, pitch,
                begin, end, work.qkv, H_D * pitch,
            )  # fmt: skip
            barrier(shared, n_threads)
        for number in range(thread, H + G, n_threads):
            prepare_head(number, layer, T, pitch, shape, weights, request, work)
        barrier(shared, n_threads)

        for item in range(thread, H * n_tiles, n_threads):  # the longest rows first
            number = n_tiles - 1 - item // H
            attend_tile(
                thread, item % H, request.tiles[number, 0], request.tiles[number, 1], layer, pitch,
                shape, weights, request, work,
            )  # fmt: skip
        barrier(shared, n_threads)

        if pack_tokens(hidden, H_D, pitch, begin, end, like, packed):
            barrier(shared, n_threads)
        first, last = share(C, thread, n_threads, ROWS)
        aside = shape.parallel or shape.post_attn_norm  # not added to x at once
        use, target = (SET, branch) if aside else (ADD, x)
        multiply(
            matrices[O], like, hidden, H_D, bias[O], use, shape.residual_scale, START, pitch, work,
            thread, target, START, first, last,
        )  # fmt: skip
        barrier(shared, n_threads)

        if shape.parallel:  # the MLP reads what attention has read
            source = MLP_NORM if shape.mlp_norm else ATTN_NORM
            norm_or_copy_tokens(
                x, C, norms[source], shape.mlp_norm or shape.pre_norm, shape, pitch, begin, end,
                hidden,
            )  # fmt: skip
        if aside:
            norm_or_copy_tokens(
                branch, C, norms[POST_ATTN_NORM], shape.post_attn_norm, shape, pitch, begin, end,
                branch,
            )  # fmt: skip
            add_tokens(x, branch, C, shape.residual_scale, pitch, begin, end)
        if not shape.parallel:
            norm_or_copy_tokens(
                x, C, norms[MLP_NORM], shape.mlp_norm, shape, pitch, begin, end, hidden
            )
        pack_tokens(hidden, C, pitch, begin, end, like, packed)
        barrier(shared, n_threads)

        first, last = share(F, thread, n_threads, ROWS)
        if shape.gated:
            multiply(
                matrices[GATE], like, hidden, C, bias[GATE], ACTIVATE, one, activation, pitch,
                work, thread, inner, START, first, last,
            )  # fmt: skip
        multiply(
            matrices[UP], like, hidden, C, bias[UP], TIMES if shape.gated else ACTIVATE, one,
            activation, pitch, work, thread, inner, START, first, last,
        )  # fmt: skip
        barrier(shared, n_threads)

        if pack_tokens(inner, F, pitch, begin, end, like, packed):
            barrier(shared, n_threads)
        first, last = share(C, thread, n_threads, ROWS)
        use, target = (SET, branch) if shape.post_mlp_norm else (ADD, x)
        multiply(
            matrices[DOWN], like, inner, F, bias[DOWN], use, shape.residual_scale, START, pitch,
            work, thread, target, START, first, last,
        )  # fmt: skip
        barrier(shared, n_threads)
        if shape.post_mlp_norm:
            norm_or_copy_tokens(
                branch, C, norms[POST_MLP_NORM], shape.post_mlp_norm, shape, pitch, begin, end,
                branch,
            )  # fmt: skip
            add_tokens(x, branch, C, shape.residual_scale, pitch, begin, end)

    norm = weights.norms[4 * shape.n_layers]
    normalise_tokens(
        x, START, C, norm, START, shape.rms, shape.norm_eps, pitch, begin, end, hidden, START
    )
    barrier(shared, n_threads)
    address, which = request.numbers[LOGITS], request.numbers[WHICH_LOGITS]
    if which == ALL:
        all_logits(thread, n_threads, address, T, pitch, shape, weights, work)
    elif which == LAST:
        begin, end = share(shape.vocab_size, thread, n_threads, 4)
        own = work.own_hidden[thread]
        for i in range(C):
            own[i] = hidden[i * pitch + T - 1]
        logits = carray(as_pointer(address), (shape.vocab_size,), np.float32)
        bias, spare = weights.head_bias, work.own_bytes[thread]
        dot_rows(weights.head, like, own, C, bias, shape.streamed, logits, begin, end, spare)
        cap_logits(logits, begin, end, shape.logit_scale, shape.logit_softcap)
    barrier(shared, n_threads)
