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
    gated: bool
    rotary: bool
    activation: int
    norm_eps: float


class Weights(NamedTuple):
    """What is learned. Large tensors by address, the small ones widened and stacked."""

    like: npt.NDArray[Any]  # an empty array of the stored type: tells the compiler the width
    embed: int  # address of [V, C]
    positions: int  # address of [max_context, C], 0 with RoPE
    head: int  # address of [V, C]
    layers: npt.NDArray[np.int64]  # addresses [L, 7]
    norms: FloatArray  # [2L + 1, 2, C]: scale and shift before attention and MLP; at the end
    biases: FloatArray  # [L, 7, widest]: zeros where a projection has none
    scales: FloatArray  # [L] factor of the scores
    cos: FloatArray  # [max_context, D/2]
    sin: FloatArray


class Memory(NamedTuple):
    """What a run changes: the cache, and q and z where they are captured."""

    k: FloatArray  # [L, G, capacity, D]
    v: FloatArray
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
    """y = LayerNorm or RMSNorm of x, norm [2, C] = scale and shift."""
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
def rotate(x, cos, sin):  # type: ignore[no-untyped-def]
    """RoPE in place on x [heads, D] by the angles of one position, cos and sin [D/2]."""
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
def attend(q, k, v, n_visible, scale, scores, z):  # type: ignore[no-untyped-def]
    """z = softmax(q K^T scale) V for one head: q, z [D], the first n_visible rows of k, v [S, D].

    One pass over K for the scores, one over V for the weighted sum; q is read from registers.
    """
    D = len(q)
    highest = np.float32(-np.inf)
    for j in range(n_visible):
        score = np.float32(0)
        for i in range(D):
            score += q[i] * k[j, i]
        score *= scale
        scores[j] = score
        highest = max(highest, score)
    total = np.float32(0)
    for j in range(n_visible):
        scores[j] = np.exp(scores[j] - highest)
        total += scores[j]
    for i in range(D):
        z[i] = np.float32(0)
    for j in range(n_visible):
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
        x[i] = widen(row[i])
    if not shape.rotary:
        row = carray(as_pointer(weights.positions), (position + 1, C), like.dtype)[position]
        for i in range(C):
            x[i] += widen(row[i])

    for layer in range(shape.n_layers):
        address, bias = weights.layers[layer], weights.biases[layer]
        keys, values = memory.k[layer], memory.v[layer]

        normalise(x, weights.norms[2 * layer], shape, hidden)
        product(address[Q], like, hidden, bias[Q], q.reshape(-1))
        product(address[K], like, hidden, bias[K], kv.reshape(-1))
        if shape.rotary:
            rotate(q, weights.cos[position], weights.sin[position])
            rotate(kv, weights.cos[position], weights.sin[position])
        copy(kv, keys[:, position])
        product(address[V], like, hidden, bias[V], kv.reshape(-1))
        copy(kv, values[:, position])
        for head in range(H):
            group = head // (H // G)
            attend(
                q[head], keys[group], values[group], position + 1, weights.scales[layer], scores,
                z[head],
            )  # fmt: skip
        if memory.captured[layer] >= 0:
            copy(q, memory.q[memory.captured[layer], position])
            copy(z, memory.z[memory.captured[layer], position])
        product(address[O], like, z.reshape(-1), bias[O], out)
        for i in range(C):
            x[i] += out[i]

        normalise(x, weights.norms[2 * layer + 1], shape, hidden)
        product(address[UP], like, hidden, bias[UP], up)
        if shape.gated:
            product(address[GATE], like, hidden, bias[GATE], gate)
            activate(gate, shape.activation)
            for i in range(F):
                up[i] *= gate[i]
        else:
            activate(up, shape.activation)
        product(address[DOWN], like, up, bias[DOWN], out)
        for i in range(C):
            x[i] += out[i]
    for i in range(C):
        hidden[i] = x[i]
    normalise(hidden, weights.norms[2 * shape.n_layers], shape, x)


@kernel
def run(ids, start, shape, weights, memory, logits, n_logits):  # type: ignore[no-untyped-def]
    """Append ids from position `start` on; the last n_logits ones fill logits [n_logits, V]."""
    x = np.empty(shape.d_model, np.float32)
    no_bias = np.zeros(shape.vocab_size, np.float32)
    first = len(ids) - n_logits
    for t in range(len(ids)):
        step(ids[t], start + t, shape, weights, memory, x)
        if t >= first:
            product(weights.head, weights.like, x, no_bias, logits[t - first])
