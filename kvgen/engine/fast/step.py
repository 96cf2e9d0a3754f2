"""One token through all layers, as one compiled function that a team of threads runs together.

The twin of `kvgen.engine.reference.decoder`, which says what is computed; here the rows of every
matrix are shared out between the threads, and five barriers a layer make each part visible to all:

    own x -> norm -> | q k v | attention by pieces | o | norm -> up, gate | down | -> own x

Every thread keeps the residual stream to itself and adds to it what all have computed, which is
cheaper than to wait for one another once more.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.attention import BLOCK, LOWEST, SEGMENT, attend
from kvgen.engine.fast.kernels.elementwise import activate, cap_logits, normalise, rotate
from kvgen.engine.fast.kernels.kv_access import (
    angles,
    captured_rows,
    keep_key_and_value,
    layer_of_cache,
)
from kvgen.engine.fast.kernels.products import ROWS, dot_rows, share
from kvgen.engine.fast.kernels.simd import LANES, fma, load, mul, splat, store, zeros
from kvgen.engine.fast.kernels.weight_access import as_pointer, row_scale, widen
from kvgen.engine.fast.layout import (
    ATTN_NORM,
    CAPACITY,
    CAPTURED_Q,
    CAPTURED_Z,
    DOWN,
    EACH_HEAD,
    GATE,
    LOGITS,
    MLP_NORM,
    N_ANGLES,
    OVERFLOW,
    POST_ATTN_NORM,
    POST_MLP_NORM,
    UP,
    WHOLE,
    K,
    O,
    Q,
    V,
)
from kvgen.engine.fast.team import barrier

PIECES = 16  # at most so many parts of the context are attended to separately


@kernel
def norm_or_copy(x, n, norm, wanted, shape, y):
    """y = the norm of x [n], or x itself where the model has no such norm."""
    noinline()
    if wanted:
        normalise(x, n, norm[0], norm[1], shape.rms, shape.norm_eps, y)
    else:
        for i in range(n):
            y[i] = x[i]


@kernel
def normalise_head(x, start, head, norm, shape):
    """Normalise one head of queries or keys at x[start:] in place, where each is by itself."""
    noinline()
    if shape.qk_norm == EACH_HEAD:
        D = shape.head_dim
        own = x[start : start + D]
        scale, shift = norm[0, head * D : (head + 1) * D], norm[1, head * D : (head + 1) * D]
        normalise(own, D, scale, shift, shape.rms, shape.norm_eps, own)


@kernel
def embed(token, position, shape, weights, x):
    """x [C] = the token's embedding, and the position's where it is learned."""
    noinline()
    C = shape.d_model
    table = carray(as_pointer(weights.embed[0]), ((token + 1) * C,), weights.like.dtype)
    scale = row_scale(weights.like, weights.embed[1], token) * shape.embed_scale
    for i in range(C):
        x[i] = widen(table[token * C + i]) * scale
    if weights.positions.size:
        for i in range(C):
            x[i] += weights.positions[position, i]


@kernel
def attend_to_piece(
    thread, group, piece, first, stop, layer, keys, values, shape, weights, request, work
):
    """The query heads of one key/value head over the positions first:stop."""
    noinline()
    H, G, D, pitch = shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.pitch
    position, cache = request.positions[0], request.caches[request.slots[0]]
    q, scores, out = work.own_q[thread], work.own_scores[thread], work.own_out[thread]
    peaks, totals = work.own_peaks[thread], work.own_totals[thread]
    firsts, ends = work.own_firsts[thread], work.own_ends[thread]
    table, scale = weights.tables[layer], weights.scales[layer]
    key_start, value_start = group * cache[CAPACITY] * D, group * cache[CAPACITY] * pitch
    head, after = group * (H // G), (group + 1) * (H // G)
    if group == 0:
        work.own_reads[thread, layer] += stop - first
    while head < after:
        n_rows = min(ROWS, after - head)
        for r in range(n_rows):
            firsts[r], ends[r] = first, stop
            for i in range(D):
                q[r * D + i] = work.qkv[(head + r) * D + i]
            normalise_head(q, r * D, head + r, weights.head_norms[layer, 0], shape)
            if table >= 0:
                cos, sin, angle = angles(cache, table, position)
                rotate(q, r * D, cos, sin, angle, cache[N_ANGLES])
            row = weights.captured[layer, head + r]
            if row >= 0 and piece == 0:
                target = captured_rows(cache[CAPTURED_Q], cache, row, shape)
                for i in range(D):
                    target[position * D + i] = q[r * D + i]
            for i in range(D):
                q[r * D + i] *= scale
        attend(
            n_rows, q, keys, key_start, values, value_start, D, pitch, first, stop, firsts, ends,
            shape.attn_softcap, scores, out, peaks, totals,
        )  # fmt: skip
        for r in range(n_rows):
            part = (head + r) * PIECES + piece
            work.peaks[part], work.totals[part] = peaks[r], totals[r]
            for i in range(0, pitch, LANES):
                store(work.parts, part * pitch + i, load(out, r * pitch + i))
        head += n_rows


@kernel
def keep_outputs(hidden, layer, position, cache, shape, weights):
    """The captured heads' outputs of this position."""
    noinline()
    D = shape.head_dim
    for head in range(shape.n_heads):
        row = weights.captured[layer, head]
        if row >= 0:
            target = captured_rows(cache[CAPTURED_Z], cache, row, shape)
            for i in range(D):
                target[position * D + i] = hidden[head * D + i]


@kernel
def join_pieces(n_pieces, shape, work, spare, z):
    """z [H * D] = each head's attention, its pieces weighed by their sums (as in FlashDecoding)."""
    noinline()
    D, pitch = shape.head_dim, shape.pitch
    for head in range(shape.n_heads):
        start, highest, total = head * PIECES, LOWEST, np.float32(0)
        for piece in range(n_pieces):
            highest = max(highest, work.peaks[start + piece])
        for piece in range(n_pieces):
            part = start + piece
            total += work.totals[part] * np.float32(np.exp(work.peaks[part] - highest))
        for i in range(0, D, LANES):
            mixed = zeros()
            for piece in range(n_pieces):
                part = start + piece
                factor = np.float32(np.exp(work.peaks[part] - highest)) / total
                mixed = fma(load(work.parts, part * pitch + i), splat(factor), mixed)
            if i + LANES <= D:
                store(z, head * D + i, mixed)
            else:  # z has no gaps between heads
                store(spare, 0, mixed)
                for j in range(i, D):
                    z[head * D + j] = spare[j - i]


@kernel
def times(x, start, other_start, n):
    """x[start:] *= x[other_start:] for n numbers in whole vectors."""
    noinline()
    for i in range(0, n, LANES):
        store(x, start + i, mul(load(x, start + i), load(x, other_start + i)))


@kernel
def step(thread, n_threads, shared, shape, weights, request, work):
    """Run request row 0 through all layers; its logits [V] go where the request says."""
    noinline()
    H, G, D, C, F = shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.d_model, shape.d_ff
    like, streamed, H_D, G_D = weights.like, shape.streamed, H * D, G * D
    position, cache = request.positions[0], request.caches[request.slots[0]]
    x, added, hidden = work.own_x[thread], work.own_added[thread], work.own_hidden[thread]
    inner, branch, spare = work.inner, work.branch, work.own_bytes[thread]
    gate_start = (F + LANES - 1) // LANES * LANES

    embed(request.tokens[0], position, shape, weights, x)
    for layer in range(shape.n_layers):
        matrices, bias = weights.layers[layer], weights.biases[layer]
        norms = weights.norms[4 * layer : 4 * layer + 4]
        keys, values = layer_of_cache(cache, request.like, layer, shape)

        norm_or_copy(x, C, norms[ATTN_NORM], shape.pre_norm, shape, hidden)
        q, k, v = work.qkv[:H_D], work.qkv[H_D : H_D + G_D], work.qkv[H_D + G_D :]
        begin, end = share(H_D, thread, n_threads, 4)
        dot_rows(matrices[Q], like, hidden, C, bias[Q], streamed, q, begin, end, spare)
        begin, end = share(G_D, thread, n_threads, 4)
        dot_rows(matrices[K], like, hidden, C, bias[K], streamed, k, begin, end, spare)
        dot_rows(matrices[V], like, hidden, C, bias[V], streamed, v, begin, end, spare)
        barrier(shared, n_threads)
        if shape.qk_norm == WHOLE:
            # One thread: the others would read what it has normalised already.
            if thread == 0:
                norm = weights.head_norms[layer]
                normalise(q, H_D, norm[0, 0], norm[0, 1], shape.rms, shape.norm_eps, q)
                normalise(k, G_D, norm[1, 0], norm[1, 1], shape.rms, shape.norm_eps, k)
            barrier(shared, n_threads)

        first = max(0, position + 1 - weights.windows[layer])
        visible = position + 1 - first // BLOCK * BLOCK
        n_pieces = min(PIECES, (visible + SEGMENT - 1) // SEGMENT)
        length = ((visible + n_pieces - 1) // n_pieces + BLOCK - 1) // BLOCK * BLOCK
        n_pieces = (visible + length - 1) // length
        table = weights.tables[layer]
        for item in range(thread, G * n_pieces, n_threads):
            group, piece = item // n_pieces, item % n_pieces
            start = first // BLOCK * BLOCK + piece * length
            if piece == n_pieces - 1:  # the piece that ends with the new position
                normalise_head(k, group * D, group, weights.head_norms[layer, 1], shape)
                if table >= 0:
                    cos, sin, angle = angles(cache, table, position)
                    rotate(k, group * D, cos, sin, angle, cache[N_ANGLES])
                fits = keep_key_and_value(
                    k, v, group * D, D, keys, values, cache, group, position, shape.pitch
                )
                if not fits:
                    request.numbers[OVERFLOW] = layer + 1
            attend_to_piece(
                thread, group, piece, max(first, start), min(position + 1, start + length), layer,
                keys, values, shape, weights, request, work,
            )  # fmt: skip
        barrier(shared, n_threads)

        join_pieces(n_pieces, shape, work, work.own_out[thread], hidden)
        if thread == 0:
            keep_outputs(hidden, layer, position, cache, shape, weights)
        begin, end = share(C, thread, n_threads, 4)
        dot_rows(matrices[O], like, hidden, H_D, bias[O], streamed, branch, begin, end, spare)
        barrier(shared, n_threads)

        norm_or_copy(branch, C, norms[POST_ATTN_NORM], shape.post_attn_norm, shape, added)
        if shape.parallel:  # the MLP reads what attention has read
            source = MLP_NORM if shape.mlp_norm else ATTN_NORM
            norm_or_copy(x, C, norms[source], shape.mlp_norm or shape.pre_norm, shape, hidden)
        for i in range(C):
            x[i] += shape.residual_scale * added[i]
        if not shape.parallel:
            norm_or_copy(x, C, norms[MLP_NORM], shape.mlp_norm, shape, hidden)
        begin, end = share(F, thread, n_threads, LANES)
        dot_rows(matrices[UP], like, hidden, C, bias[UP], streamed, inner, begin, end, spare)
        if shape.gated:
            gate = inner[gate_start:]
            dot_rows(matrices[GATE], like, hidden, C, bias[GATE], streamed, gate, begin, end, spare)
            activate(inner, gate_start + begin, end - begin, shape.activation)
            times(inner, begin, gate_start + begin, end - begin)
        else:
            activate(inner, begin, end - begin, shape.activation)
        barrier(shared, n_threads)

        begin, end = share(C, thread, n_threads, 4)
        dot_rows(matrices[DOWN], like, inner, F, bias[DOWN], streamed, branch, begin, end, spare)
        barrier(shared, n_threads)
        norm_or_copy(branch, C, norms[POST_MLP_NORM], shape.post_mlp_norm, shape, added)
        for i in range(C):
            x[i] += shape.residual_scale * added[i]

    norm = weights.norms[4 * shape.n_layers]
    normalise(x, C, norm[0], norm[1], shape.rms, shape.norm_eps, hidden)
    logits = carray(as_pointer(request.numbers[LOGITS]), (shape.vocab_size,), np.float32)
    begin, end = share(shape.vocab_size, thread, n_threads, 4)
    dot_rows(weights.head, like, hidden, C, weights.head_bias, streamed, logits, begin, end, spare)
    cap_logits(logits, begin, end, shape.logit_scale, shape.logit_softcap)
    barrier(shared, n_threads)
