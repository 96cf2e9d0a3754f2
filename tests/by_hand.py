"""A decoder by hand in float64: one head after another, from a model's weights and configuration.

It shares no arithmetic with either engine, but for the frequencies of RoPE. Whatever enters a layer
or leaves its heads may be changed on the way, so that a patched run is a whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.attention.record import RecordedRun, record
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import Engine
from kvgen.engine.params import LayerParams, Linear, Norm, Params
from kvgen.engine.rope import inverse_frequencies
from kvgen.sampling import Sampler
from tests.configs import CONFIGS
from tests.sequences import GREEDY

Exact = npt.NDArray[np.float64]
Change = Callable[[Literal["residual", "z"], int, Exact], Exact]
# Every tiny model on the reference engine; on the compiled one grouped heads, learned positions,
# parallel blocks, windows, norms behind blocks, soft caps, scales, biases.
COMPILED = ("llama_gqa", "gpt2", "gpt_neox", "mistral", "gemma2", "gemma3", "granite", "olmo2",
            "cohere", "phi_qk_norm", "stablelm_parallel", "opt")  # fmt: skip
CASES = [*((name, "numpy") for name in CONFIGS), *((name, "numba") for name in COMPILED)]
# The engines add up in float32, the run by hand in float64; logits are of order one.
TOLERANCE = 1e-4


class ByHand(NamedTuple):
    """A whole run: what its layers have made of T positions."""

    states: Exact  # [L + 1, T, C]
    embedded: Exact  # [T, C] without learned positions
    weights: Exact  # [L, H, T, T]
    v: Exact  # [L, T, G, D]
    z: Exact  # [L, T, H, D]
    attended: Exact  # [L, T, C] what attention adds, but for the residual scale
    mlps: Exact  # [L, T, C] the same of the MLP
    logits: Exact  # [T, V]


def run_by_hand(params: Params, ids: Sequence[int], change: Change | None = None) -> ByHand:
    """All positions in one pass; `change` may give other states [T, C] and other z [T, H, D]."""
    config = params.config
    embedded = params.embed.dequantize()[list(ids)].astype(np.float64)
    embedded *= np.float32(config.embed_scale)
    x = embedded
    if params.positions is not None:
        x = x + params.positions.dequantize()[: len(ids)]
    states, layers = [], []
    for number, layer in enumerate(params.layers):
        if change is not None:
            x = change("residual", number, x)
        states.append(x)
        weights, v, z = _heads(config, layer, number, norm(config, x, layer.attn_norm))
        if change is not None:
            z = change("z", number, z)
        attended = attention_adds(config, layer, z)
        scale = config.residual_scale
        if config.parallel_residual:
            inner = norm(config, x, layer.mlp_norm or layer.attn_norm)
        else:
            inner = norm(config, x + scale * attended, layer.mlp_norm)
        mlp = norm(config, _mlp(config, layer, inner), layer.post_mlp_norm)
        x = x + scale * attended + scale * mlp
        layers.append((weights, v, z, attended, mlp))
    states.append(x)
    columns = [np.stack(column) for column in zip(*layers, strict=True)]
    return ByHand(np.stack(states), embedded, *columns, logits_by_hand(params, x))


def attention_adds(config: ModelConfig, layer: LayerParams, z: Exact) -> Exact:
    """What z [..., H, D] adds to the stream, but for the residual scale."""
    flat = z.reshape(*z.shape[:-2], -1)
    return norm(config, linear(flat, layer.o), layer.post_attn_norm)


def logits_by_hand(params: Params, x: Exact) -> Exact:  # [..., C] -> [..., V]
    """The final norm, the head, the scale and the soft cap."""
    config = params.config
    logits = config.logit_scale * linear(norm(config, x, params.final_norm), params.head)
    return capped(logits, config.logit_softcap)


def capped(numbers: Exact, cap: float | None) -> Exact:
    return numbers if cap is None else cap * np.tanh(numbers / cap)


def norm(config: ModelConfig, x: Exact, one: Norm | None, *, like: Exact | None = None) -> Exact:
    """LayerNorm or RMSNorm of the last axis; with `like` its scale is that of another vector."""
    if one is None:
        return x
    like = x if like is None else like
    if config.norm == "layer":
        x, like = x - x.mean(-1, keepdims=True), like - like.mean(-1, keepdims=True)
    y = x / np.sqrt((like**2).mean(-1, keepdims=True) + config.norm_eps) * one.weight
    return np.asarray(y if one.bias is None else y + one.bias)


def linear(x: Exact, one: Linear) -> Exact:
    y = np.einsum("...i,oi->...o", x, one.weight.dequantize().astype(np.float64), optimize=True)
    return np.asarray(y if one.bias is None else y + one.bias)


def probabilities(logits: Exact) -> Exact:
    """The softmax of the last axis."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def record_states(
    engine: Engine, ids: Sequence[int], *, max_new_tokens: int = 0, stop_ids: Sequence[int] = ()
) -> RecordedRun:
    """A greedy run of all layers and heads that keeps the residual stream."""
    return record(
        engine,
        ids,
        layers=range(engine.config.n_layers),
        sampler=Sampler(GREEDY),
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        states=True,
    )


def _heads(
    config: ModelConfig, layer: LayerParams, number: int, x: Exact
) -> tuple[Exact, Exact, Exact]:  # [T, C] -> [H, T, T], [T, G, D], [T, H, D]
    T, H, G, D = len(x), config.n_heads, config.n_kv_heads, config.head_dim
    q = _norm_heads(config, linear(x, layer.q).reshape(T, H, D), layer.q_norm)
    k = _norm_heads(config, linear(x, layer.k).reshape(T, G, D), layer.k_norm)
    v = linear(x, layer.v).reshape(T, G, D)
    rope = config.rope[number] if config.rope else None
    if rope is not None:
        angles = np.arange(T)[:, None] * inverse_frequencies(rope, T)[None].astype(np.float64)
        q, k = _turned(q, angles, rope.magnitude), _turned(k, angles, rope.magnitude)
    weights, z = np.zeros((H, T, T)), np.zeros((T, H, D))
    window = config.window(number)
    for head in range(H):
        for query in range(T):
            first = 0 if window is None else max(0, query - window + 1)
            keys = slice(first, query + 1)
            scores = k[keys, head // (H // G)] @ q[query, head] * config.attn_scales[number]
            weights[head, query, keys] = probabilities(capped(scores, config.attn_softcap))
        z[:, head] = weights[head] @ v[:, head // (H // G)]
    return weights, v, z


def _norm_heads(config: ModelConfig, x: Exact, one: Norm | None) -> Exact:  # [T, H, D] -> same
    if one is None:
        return x
    if config.qk_norm == "whole":
        return norm(config, x.reshape(len(x), -1), one).reshape(x.shape)
    rows = [
        Norm(weight, None if one.bias is None else one.bias.reshape(x.shape[1:])[head])
        for head, weight in enumerate(one.weight.reshape(x.shape[1:]))
    ]
    return np.stack([norm(config, x[:, head], row) for head, row in enumerate(rows)], axis=1)


def _turned(x: Exact, angles: Exact, magnitude: float) -> Exact:  # [T, H, D], [T, n] -> same
    """Numbers i and i + n of a head as one complex number, turned by an angle."""
    n = angles.shape[1]
    pairs = (x[..., :n] + 1j * x[..., n : 2 * n]) * (magnitude * np.exp(1j * angles))[:, None]
    return np.concatenate([pairs.real, pairs.imag, x[..., 2 * n :]], axis=-1)


def _mlp(config: ModelConfig, layer: LayerParams, x: Exact) -> Exact:  # [T, C] -> same
    inner = linear(x, layer.up if layer.gate is None else layer.gate)
    match config.activation:
        case "relu":
            inner = np.maximum(inner, 0)
        case "silu":
            inner = inner / (1 + np.exp(-inner))
        case "gelu":
            inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        case "gelu_tanh":
            cubic = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
            inner = inner * 0.5 * (1 + np.tanh(cubic))
    if layer.gate is not None:
        inner = inner * linear(x, layer.up)
    return linear(inner, layer.down)
