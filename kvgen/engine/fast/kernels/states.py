"""The residual stream: the states with which a token enters a layer, given or captured."""

from __future__ import annotations

import numpy as np
from numba import carray

from kvgen.engine.fast.compiler import kernel, noinline
from kvgen.engine.fast.kernels.kv_access import captured_states
from kvgen.engine.fast.kernels.weight_access import as_pointer, row_scale, widen
from kvgen.engine.fast.layout import CAPTURED_STATES, FIRST_POSITION, N_TOKENS, STATES


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
def enter(t, shape, weights, request, x):
    """x [C] = the states with which token t enters the request's first layer."""
    noinline()
    C = shape.d_model
    if request.numbers[STATES]:
        states = carray(as_pointer(request.numbers[STATES]), ((t + 1) * C,), np.float32)
        for i in range(C):
            x[i] = states[t * C + i]
    else:
        embed(request.tokens[t], request.numbers[FIRST_POSITION] + t, shape, weights, x)


@kernel
def capture_token(layer, x, shape, request):
    """Write the token's states where it enters a layer, if they are captured."""
    noinline()
    if request.sequence[CAPTURED_STATES]:
        C, position = shape.d_model, request.numbers[FIRST_POSITION]
        target = captured_states(request.sequence, layer, shape)
        for i in range(C):
            target[position * C + i] = x[i]


@kernel
def capture_tokens(layer, x, tokens, shape, request):
    """Write the states of some tokens where they enter a layer, if they are captured."""
    noinline()
    if request.sequence[CAPTURED_STATES]:
        C, start = shape.d_model, request.numbers[FIRST_POSITION]
        target = captured_states(request.sequence, layer, shape)
        for t in range(tokens.begin, min(tokens.end, request.numbers[N_TOKENS])):
            for i in range(C):
                target[(start + t) * C + i] = x.numbers[x.start + i * x.pitch + t]
