"""One token through all layers, as one compiled function: plain loops, one thread.

The twin of `kvgen.reference.decoder`, which says what is computed; here it is written so that the
compiler can keep everything in registers and vector units. Weights are read where the checkpoint
is mapped, through a table of addresses (layer x slot).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import carray

from kvgen.fast.compiler import kernel
from kvgen.fast.stored import as_pointer, widen
from kvgen.tensors import FloatArray

# Columns of the table of addresses.
Q, K, V, O, GATE, UP, DOWN = range(7)  # noqa: E741
RELU, SILU, GELU, GELU_TANH = range(4)
NO_QK_NORM, EACH_HEAD, WHOLE = range(3)
# A layer's rows in the table of norms.
ATTN_NORM, POST_ATTN_NORM, MLP_NORM, POST_MLP_NORM = range(4)


class Shape(NamedTuple):
    """The numbers and switches of ModelConfig that the kernel reads."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    vocab_size: int
    rms: bool
    norm_eps: float
    gated: bool
    activation: int
    parallel: bool
    pre_norm: bool  # which norms a layer has
    post_attn_norm: bool
    mlp_norm: bool
    post_mlp_norm: bool
    qk_norm: int
    attn_softcap: float  # 0: none
    logit_softcap: float
    embed_scale: float
    residual_scale: float
    logit_scale: float


class Weights(NamedTuple):
    """What is learned. Large tensors by address, the small ones widened and stacked."""

    like: npt.NDArray[Any]  # an empty array of the stored type: tells the compiler the width
    embed: int  # address of [V, C]
    positions: int  # address of [max_context, C], 0 where there are none
    head: int  # address of [V, C]
    layers: npt.NDArray[np.int64]  # addresses [L, 7]
    norms: FloatArray  # [4L + 1, 2, C]: scale and shift, four a layer and one at the end
    head_norms: FloatArray  # [L, 2, 2, H * D]: of queries and of keys
    biases: FloatArray  # [L, 7, widest]: zeros where a projection has none
    head_bias: FloatArray  # [V]
    scales: FloatArray  # [L] factor of the scores
    windows: npt.NDArray[np.int64]  # [L] keys that a query sees


class Memory(NamedTuple):
    """What a run changes: the cache, and q and z where they are captured."""

    k: FloatArray  # [L, G, capacity, D]
    v: FloatArray
    cos: FloatArray  # [tables, capacity, n] of the pairs that RoPE turns
    sin: FloatArray
    table: npt.NDArray[np.int64]  # [L] a layer's table, -1 where nothing is turned
    captured: npt.NDArray[np.int64]  # [L] row of q and z to write, -1 for none
    q: FloatArray  # [N, capacity, H, D]
    z: FloatArray


@kernel
def product(address, like, x, bias, y):  # type: ignore[no-untyped-def]
    """y = W x + bias for W [len(y), len(x)] at an address."""
    n = len(x)
    weight = carray(as_pointer(address), (len(y) * n,), like.dtype)
    for row in range(len(y)):
        total = np.float32(0)
        for column in range(n):
            total += widen(weight[row * n + column]) * x[column]
        y[row] = total + bias[row]


@kernel
def normalise(x, norm, shape, y):  # type: ignore[no-untyped-def]
    """y = LayerNorm or RMSNorm of x, norm [2, C] = scale and shift; y may be x."""
    n = len(x)
    mean = np.float32(0)
    if not shape.rms:
        for i in range(n):
            mean += x[i]
        mean /= np.float32(n)
    square = np.float32(0)
    for i in range(n):
        square += (x[i] - mean) * (x[i] - mean)
    factor = np.float32(1) / np.sqrt(square / np.float32(n) + np.float32(shape.norm_eps))
    for i in range(n):
        y[i] = (x[i] - mean) * factor * norm[0, i] + norm[1, i]


@kernel
def norm_or_copy(x, norm, wanted, shape, y):  # type: ignore[no-untyped-def]
    """y = the norm of x, or x itself where the model has no such norm."""
    if wanted:
        normalise(x, norm, shape, y)
    else:
        for i in range(len(x)):
            y[i] = x[i]


@kernel
def add(x, out, scale):  # type: ignore[no-untyped-def]
    """x += scale * out."""
    for i in range(len(x)):
        x[i] += np.float32(scale) * out[i]


@kernel
def normalise_heads(x, norm, shape):  # type: ignore[no-untyped-def]
    """Normalise queries or keys [heads, D] in place, each head or all of them as one."""
    n_heads, D = x.shape
    if shape.qk_norm == WHOLE:
        flat = x.reshape(-1)
        normalise(flat, norm[:, : n_heads * D], shape, flat)
    elif shape.qk_norm == EACH_HEAD:
        for head in range(n_heads):
            normalise(x[head], norm[:, head * D : (head + 1) * D], shape, x[head])


@kernel
def rotate(x, cos, sin):  # type: ignore[no-untyped-def]
    """RoPE in place on x [heads, D] by the angles of one position, cos and sin [pairs]."""
    half = len(cos)
    for head in range(x.shape[0]):
        for i in range(half):
            first, second = x[head, i], x[head, i + half]
            x[head, i] = first * cos[i] - second * sin[i]
            x[head, i + half] = second * cos[i] + first * sin[i]


@kernel
def copy(rows, destination):  # type: ignore[no-untyped-def]
    """destination = rows [heads, D]; a slice assignment would compile NumPy's error texts too."""
    for head in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            destination[head, i] = rows[head, i]


@kernel
def soft_cap(number, cap):  # type: ignore[no-untyped-def]
    """c tanh(number / c), or the number itself where the cap is 0."""
    return number if cap == 0 else np.float32(cap) * np.tanh(number / np.float32(cap))


@kernel
def attend(q, k, v, first, end, scale, cap, scores, z):  # type: ignore[no-untyped-def]
    """z = softmax(q K^T scale) V for one head: q, z [D], the visible rows first:end of k, v [S, D].

    One pass over K for the scores, one over V for the weighted sum; q is read from registers.
    """
    D = len(q)
    highest = np.float32(-np.inf)
    for j in range(first, end):
        score = np.float32(0)
        for i in range(D):
            score += q[i] * k[j, i]
        score = soft_cap(score * scale, cap)
        scores[j] = score
        highest = max(highest, score)
    total = np.float32(0)
    for j in range(first, end):
        scores[j] = np.exp(scores[j] - highest)
        total += scores[j]
    for i in range(D):
        z[i] = np.float32(0)
    for j in range(first, end):
        weight = scores[j] / total
        for i in range(D):
            z[i] += weight * v[j, i]


@kernel
def activate(x, activation):  # type: ignore[no-untyped-def]
    """The MLP's activation function, in place."""
    half, one = np.float32(0.5), np.float32(1)
    for i in range(len(x)):
        u = x[i]
        if activation == RELU:
            x[i] = max(u, np.float32(0))
        elif activation == SILU:
            x[i] = u / (one + np.exp(-u))
        elif activation == GELU:
            x[i] = half * u * (one + math.erf(u * np.float32(math.sqrt(0.5))))
        else:
            inner = np.float32(math.sqrt(2 / math.pi)) * (u + np.float32(0.044715) * u * u * u)
            x[i] = half * u * (one + np.tanh(inner))


@kernel
def step(token, position, shape, weights, memory, x):  # type: ignore[no-untyped-def]
    """Run one token through all layers; x [C] receives the normalised final hidden state."""
    H, G, D, C, F = shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.d_model, shape.d_ff
    like = weights.like
    hidden, out = np.empty(C, np.float32), np.empty(C, np.float32)
    q, z = np.empty((H, D), np.float32), np.empty((H, D), np.float32)
    gate, up = np.empty(F, np.float32), np.empty(F, np.float32)
    scores = np.empty(position + 1, np.float32)
    kv = np.empty((G, D), np.float32)

    row = carray(as_pointer(weights.embed), (shape.vocab_size, C), like.dtype)[token]
    for i in range(C):
        x[i] = widen(row[i]) * np.float32(shape.embed_scale)
    if weights.positions:
        row = carray(as_pointer(weights.positions), (position + 1, C), like.dtype)[position]
        for i in range(C):
            x[i] += widen(row[i])

    for layer in range(shape.n_layers):
        address, bias = weights.layers[layer], weights.biases[layer]
        keys, values = memory.k[layer], memory.v[layer]
        norms = weights.norms[4 * layer : 4 * layer + 4]

        norm_or_copy(x, norms[ATTN_NORM], shape.pre_norm, shape, hidden)
        product(address[Q], like, hidden, bias[Q], q.reshape(-1))
        product(address[K], like, hidden, bias[K], kv.reshape(-1))
        normalise_heads(q, weights.head_norms[layer, 0], shape)
        normalise_heads(kv, weights.head_norms[layer, 1], shape)
        table = memory.table[layer]
        if table >= 0:
            rotate(q, memory.cos[table, position], memory.sin[table, position])
            rotate(kv, memory.cos[table, position], memory.sin[table, position])
        copy(kv, keys[:, position])
        product(address[V], like, hidden, bias[V], kv.reshape(-1))
        copy(kv, values[:, position])
        first = max(0, position + 1 - weights.windows[layer])
        for head in range(H):
            group = head // (H // G)
            attend(
                q[head], keys[group], values[group], first, position + 1, weights.scales[layer],
                shape.attn_softcap, scores, z[head],
            )  # fmt: skip
        if memory.captured[layer] >= 0:
            copy(q, memory.q[memory.captured[layer], position])
            copy(z, memory.z[memory.captured[layer], position])
        product(address[O], like, z.reshape(-1), bias[O], out)
        if shape.post_attn_norm:
            normalise(out, norms[POST_ATTN_NORM], shape, out)

        if not shape.parallel:
            add(x, out, shape.residual_scale)
        if not shape.parallel or shape.mlp_norm:  # else the attention's norm serves both
            norm_or_copy(x, norms[MLP_NORM], shape.mlp_norm, shape, hidden)
        if shape.parallel:
            add(x, out, shape.residual_scale)
        product(address[UP], like, hidden, bias[UP], up)
        if shape.gated:
            product(address[GATE], like, hidden, bias[GATE], gate)
            activate(gate, shape.activation)
            for i in range(F):
                up[i] *= gate[i]
        else:
            activate(up, shape.activation)
        product(address[DOWN], like, up, bias[DOWN], out)
        if shape.post_mlp_norm:
            normalise(out, norms[POST_MLP_NORM], shape, out)
        add(x, out, shape.residual_scale)
    normalise(x, weights.norms[4 * shape.n_layers], shape, x)


@kernel
def run(ids, start, shape, weights, memory, logits, n_logits):  # type: ignore[no-untyped-def]
    """Append ids from position `start` on; the last n_logits ones fill logits [n_logits, V]."""
    x = np.empty(shape.d_model, np.float32)
    first = len(ids) - n_logits
    for t in range(len(ids)):
        step(ids[t], start + t, shape, weights, memory, x)
        if t >= first:
            row = logits[t - first]
            product(weights.head, weights.like, x, weights.head_bias, row)
            for i in range(len(row)):
                row[i] = soft_cap(row[i] * np.float32(shape.logit_scale), shape.logit_softcap)
