"""Activations, soft cap, norm and RoPE of one token, on vectors."""

from __future__ import annotations

import math

import numpy as np

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.simd import (
    add,
    div,
    exp,
    fma,
    load,
    magnitude,
    mul,
    splat,
    store,
    sub,
    sum_of,
    where_less,
    zeros,
)
from kvgen.engine.fast.layout import LANES, Activation, Norm

_SQRT_HALF, _SQRT_2_OVER_PI = math.sqrt(0.5), math.sqrt(2 / math.pi)


@kernel
def tanh(x):
    """tanh of each lane, to about 1e-7: (1 - e) / (1 + e) with e = exp(-2 |x|), sign put back."""
    one = splat(np.float32(1))
    small = exp(mul(magnitude(x), splat(np.float32(-2))))
    size = div(sub(one, small), add(one, small))
    return where_less(x, zeros(), sub(zeros(), size), size)


@kernel
def erf(x):
    """The error function of each lane, to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    one, size = splat(np.float32(1)), magnitude(x)
    t = div(one, fma(size, splat(np.float32(0.3275911)), one))
    polynomial = splat(np.float32(1.061405429))
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = fma(polynomial, t, splat(np.float32(coefficient)))
    value = sub(one, mul(mul(polynomial, t), exp(sub(zeros(), mul(size, size)))))
    return where_less(x, zeros(), sub(zeros(), value), value)


@kernel
def silu(x, start, n):
    """x sigmoid(x), in place."""
    noinline()
    one = splat(np.float32(1))
    for i in range(start, start + n, LANES):
        u = load(x, i)
        store(x, i, div(u, add(one, exp(sub(zeros(), u)))))


@kernel
def gelu(x, start, n):
    """x times the normal distribution function of x, in place."""
    noinline()
    for i in range(start, start + n, LANES):
        half = mul(load(x, i), splat(np.float32(0.5)))
        inner = mul(load(x, i), splat(np.float32(_SQRT_HALF)))
        store(x, i, fma(half, erf(inner), half))


@kernel
def gelu_tanh(x, start, n):
    """The approximation of gelu by tanh, in place."""
    noinline()
    for i in range(start, start + n, LANES):
        u = load(x, i)
        half, cube = mul(u, splat(np.float32(0.5))), mul(mul(u, u), u)
        inner = mul(fma(cube, splat(np.float32(0.044715)), u), splat(np.float32(_SQRT_2_OVER_PI)))
        store(x, i, fma(half, tanh(inner), half))


@kernel
def activation_of(number):
    """The Activation that has this value."""
    if number == Activation.SILU.value:
        return Activation.SILU
    if number == Activation.GELU.value:
        return Activation.GELU
    if number == Activation.GELU_TANH.value:
        return Activation.GELU_TANH
    return Activation.RELU


@kernel
def activate(x, start, n, activation):
    """Apply the MLP's activation function to n numbers in whole vectors, in place."""
    noinline()
    if activation == Activation.SILU:
        silu(x, start, n)
    elif activation == Activation.GELU:
        gelu(x, start, n)
    elif activation == Activation.GELU_TANH:
        gelu_tanh(x, start, n)
    else:
        for i in range(start, start + n, LANES):
            u = load(x, i)
            store(x, i, where_less(u, zeros(), zeros(), u))  # NaN stays NaN


@kernel
def soft_cap(x, cap):
    """c tanh(x / c) of each lane."""
    return mul(tanh(div(x, splat(cap))), splat(cap))


@kernel
def cap_logits(logits, begin, end, scale, cap):
    """logits[begin:end] scaled and, where cap is not 0, capped; in place."""
    noinline()
    if scale == 1 and cap == 0:
        return
    for i in range(begin, end):
        number = logits[i] * scale
        logits[i] = number if cap == 0 else cap * np.float32(math.tanh(number / cap))


@kernel
def as_norm(pair, shape):
    """A scale and a shift [2, n] as a norm of the model's kind."""
    return Norm(pair[0], pair[1], shape.rms, shape.norm_eps)


@kernel
def head_norm(pair, head, shape):
    """The part of one head of the scale and the shift of all heads [2, heads * D]."""
    begin, end = head * shape.head_dim, (head + 1) * shape.head_dim
    return Norm(pair[0, begin:end], pair[1, begin:end], shape.rms, shape.norm_eps)


@kernel
def normalise(x, n, norm, y):
    """y = LayerNorm or RMSNorm of x [n]; y may be x."""
    noinline()
    scale, shift = norm.scale, norm.shift
    whole = n // LANES * LANES
    mean = np.float32(0)
    if not norm.rms:
        total = zeros()
        for i in range(0, whole, LANES):
            total = add(total, load(x, i))
        mean = sum_of(total)
        for i in range(whole, n):
            mean += x[i]
        mean /= np.float32(n)
    centre, total = splat(mean), zeros()
    for i in range(0, whole, LANES):
        centred = sub(load(x, i), centre)
        total = fma(centred, centred, total)
    square = sum_of(total)
    for i in range(whole, n):
        square += (x[i] - mean) * (x[i] - mean)
    factor = np.float32(1) / np.sqrt(square / np.float32(n) + norm.eps)
    spread = splat(factor)
    for i in range(0, whole, LANES):
        centred = mul(sub(load(x, i), centre), spread)
        store(y, i, fma(centred, load(scale, i), load(shift, i)))
    for i in range(whole, n):
        y[i] = (x[i] - mean) * factor * scale[i] + shift[i]


@kernel
def rotate(x, start, cos, sin, angle, half):
    """RoPE in place on the head at x[start:], by the angles at cos[angle:] and sin[angle:]."""
    noinline()
    for i in range(half):
        first, second = x[start + i], x[start + i + half]
        x[start + i] = first * cos[angle + i] - second * sin[angle + i]
        x[start + i + half] = second * cos[angle + i] + first * sin[angle + i]
