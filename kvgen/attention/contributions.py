"""Direct logit attribution: what each part of a model adds to the logit of the next token.

The residual stream is a sum: the embedding, every head's z W_O, every MLP's output, and biases
(Elhage et al., 2021, "A Mathematical Framework for Transformer Circuits"). Behind it there is only
the final norm, which is linear once its scale (the standard deviation or the root mean square) is
taken as it is; then the logit is the sum of what each part adds. A norm behind attention or behind
the MLP is frozen in the same way. Limits: a part is counted for what it writes itself, not for what
later parts make of it, and a changed part would change the scales as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.attention.record import RecordedRun
from kvgen.attention.steps import attention_weights
from kvgen.attention.stream import OutputHead, states_of
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import Engine
from kvgen.engine.formula import soft_cap
from kvgen.engine.params import Norm, Params
from kvgen.engine.reference.block import Block, widened_block
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import LayerTrace
from kvgen.errors import UsageError

Exact = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributions:
    """What each part adds to a token's logit at one position, or to the difference of two logits.

    All parts together are the logit; before its soft cap, where a model has one.
    """

    query: int  # the position whose next token is meant
    token: int
    against: int | None  # the other token of a difference
    embedding: float
    position: float | None  # of a learned position; None with RoPE
    heads: Exact  # [L, H]
    attention_biases: Exact  # [L] of W_O, and of a norm behind it
    mlps: Exact  # [L]
    bias: float  # of the final norm and the head
    logit: float  # the model's own, or the difference of its two
    softcap: float | None
    error: float  # greatest |sum of the parts, capped - the model's own logit| of the tokens
    read: npt.NDArray[np.int64]  # [L, H] the position that each head reads most
    read_weights: FloatArray  # [L, H] its weight
    copies: Exact  # [L, H] what the head adds to the logit of the token at that position

    @property
    def total(self) -> float:
        """The sum of all parts."""
        outside = self.embedding + (self.position or 0.0) + self.bias
        return float(outside + self.heads.sum() + self.attention_biases.sum() + self.mlps.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """One head's contribution, taken apart by the S keys that its query reads."""

    layer: int
    head: int
    weights: FloatArray  # [S]
    parts: Exact  # [S] what w_j v_j W_O adds to the token's logit, or to the difference
    copies: Exact  # [S] what it adds to the logit of the token at j itself


class Readout(NamedTuple):
    """Numbers that depend on the residual stream x by rows: directions . x + constants."""

    directions: Exact  # [R, C]
    constants: Exact  # [R]

    def of(self, addends: npt.ArrayLike) -> Exact:  # [C] -> [R], or [N, C] -> [N, R]
        """What addends of the stream add, without the constants."""
        return np.asarray(np.asarray(addends, np.float64) @ self.directions.T)

    def before(self, config: ModelConfig, norm: Norm | None, x: npt.ArrayLike) -> Readout:
        """The same of what goes into a norm, whose scale at x [C] is kept as it is."""
        if norm is None:
            return self
        x = np.asarray(x, np.float64)
        centred = x - x.mean() if config.norm == "layer" else x
        scale = np.sqrt(np.square(centred).mean() + config.norm_eps)
        directions = self.directions * norm.weight / scale
        if config.norm == "layer":  # the mean of an addend is taken away from it
            directions = directions - directions.mean(axis=1, keepdims=True)
        bias = np.zeros(len(x)) if norm.bias is None else norm.bias
        return Readout(directions, self.constants + self.directions @ bias)


def contributions(
    engine: Engine,
    params: Params,
    run: RecordedRun,
    *,
    query: int = -1,
    token: int | None = None,
    against: int | None = None,
) -> Contributions:
    """Take apart the logit of a token (None: the likeliest) at a position, less another token's.

    Raises UsageError where both are the same, and where the run has no states, or not every layer
    and head.
    """
    config, trace = params.config, run.trace
    states = _everything(params, run)
    query = range(trace.length)[query]
    logits = OutputHead(engine).logits(states[-1:, query])[0]
    token = int(logits.argmax()) if token is None else token
    if token == against:
        raise UsageError(f"token and against are both id {token}: contributions need two tokens")
    wanted = [token] if against is None else [token, against]
    readout = _readout(params, wanted, states[-1, query])

    heads, biases, mlps, read, read_weights, copies = [], [], [], [], [], []
    for trace_of_layer, weights, x in zip(trace.layers, params.layers, states, strict=False):
        layer = _Layer.at(widened_block(config, weights), trace_of_layer.z[query], x[query])
        inside = layer.inside(readout)
        heads.append(config.residual_scale * inside.of(layer.heads))  # [H, tokens]
        shift = inside.constants - readout.constants  # of a norm behind attention
        biases.append(config.residual_scale * (inside.of(layer.bias) + shift))
        mlps.append(config.residual_scale * readout.of(layer.mlp))
        rows = query_weights(trace_of_layer, query)
        read.append(rows.argmax(axis=1))
        read_weights.append(rows.max(axis=1))
        there = [trace.token_ids[position] for position in read[-1]]
        copying = layer.inside(_readout(params, there, states[-1, query]))  # a token for each head
        added = np.einsum("hc,hc->h", copying.directions, layer.heads.astype(np.float64))
        copies.append(config.residual_scale * added)
    embedding = readout.of(params.embedded([trace.token_ids[query]])[0])
    position = None
    if params.positions is not None:
        position = readout.of(params.positions.rows(np.array([query]))[0])

    totals = embedding + (0 if position is None else position) + readout.constants
    totals += np.sum(heads, axis=(0, 1)) + np.sum(biases, axis=0) + np.sum(mlps, axis=0)
    capped = soft_cap(totals.astype(np.float32), config.logit_softcap)
    return Contributions(
        query=query,
        token=token,
        against=against,
        embedding=float(_less_the_other(embedding)),
        position=None if position is None else float(_less_the_other(position)),
        heads=_less_the_other(heads),
        attention_biases=_less_the_other(biases),
        mlps=_less_the_other(mlps),
        bias=float(_less_the_other(readout.constants)),
        logit=float(_less_the_other(logits[wanted])),
        softcap=config.logit_softcap,
        error=float(np.abs(capped - logits[wanted]).max()),
        read=np.array(read),
        read_weights=np.array(read_weights),
        copies=np.array(copies),
    )


def sources(
    params: Params, run: RecordedRun, whole: Contributions, *, layer: int, head: int
) -> Sources:
    """Take one head's contribution apart by the keys that it reads."""
    config, trace, query = params.config, run.trace, whole.query
    states = _everything(params, run)
    one = trace.layer(layer)
    block = widened_block(config, params.layers[layer])
    at_query = _Layer.at(block, one.z[query], states[layer, query])
    weights = query_weights(one.only(head), query)[0]
    values = one.v[: query + 1, one.kv_head(head)] * weights[:, None]  # [S, D]
    written = values @ block.head_output(head).T  # [S, C]
    wanted = [whole.token] if whole.against is None else [whole.token, whole.against]
    parts = at_query.inside(_readout(params, wanted, states[-1, query])).of(written)
    own = at_query.inside(_readout(params, trace.token_ids[: query + 1], states[-1, query]))
    copies = np.einsum("sc,sc->s", own.directions, written.astype(np.float64))
    return Sources(
        layer=layer,
        head=head,
        weights=weights,
        parts=config.residual_scale * _less_the_other(parts),
        copies=config.residual_scale * copies,
    )


class _Layer(NamedTuple):
    """What one layer adds at one position, but for the residual scale."""

    block: Block
    heads: FloatArray  # [H, C] z_h W_O^h
    bias: FloatArray  # [C] of W_O
    mlp: FloatArray  # [C]

    @classmethod
    def at(cls, block: Block, z: FloatArray, x: FloatArray) -> _Layer:  # z [H, D], x [C]
        """By what the kernel has captured: the heads' outputs, and the stream before the layer."""
        heads = np.stack([block.head_output(head) @ one for head, one in enumerate(z)])
        bias = np.zeros_like(x) if block.o.bias is None else block.o.bias
        attended = block.attention_output(z[None])
        return cls(block, heads, bias, block.mlp_output(x[None], attended)[0])

    def inside(self, readout: Readout) -> Readout:
        """What a readout makes of attention's addends before the norm behind them."""
        written = self.heads.sum(axis=0) + self.bias
        return readout.before(self.block.config, self.block.post_attn_norm, written)


def _less_the_other(rows: npt.ArrayLike) -> Exact:  # [..., tokens] -> [...]
    """The column of the token, less that of the other where there is one."""
    rows = np.asarray(rows, np.float64)
    return rows[..., 0] - rows[..., 1] if rows.shape[-1] > 1 else rows[..., 0]


def query_weights(trace: LayerTrace, query: int) -> FloatArray:
    """The weights of one query on the keys up to its own, [H, query + 1]."""
    up_to = replace(trace, q=trace.q[: query + 1], k=trace.k[: query + 1])
    return attention_weights(up_to, first=query)[:, 0]


def _everything(params: Params, run: RecordedRun) -> FloatArray:
    """The states [L + 1, T, C], of a run of every layer and head."""
    states, config = states_of(run, "a contribution"), params.config
    if len(run.trace.layers) < config.n_layers or len(run.trace.heads) < config.n_heads:
        raise UsageError(
            "contributions need every layer and head: record all of them, without -l and -H"
        )
    return states


def _readout(params: Params, tokens: Sequence[int], x: FloatArray) -> Readout:
    """The tokens' logits of the stream behind the last layer, the final norm's scale that of x."""
    head, scale = params.head, params.config.logit_scale
    rows = head.weight.rows(np.asarray(tokens, np.int64)).astype(np.float64)
    bias = np.zeros(len(rows)) if head.bias is None else head.bias[list(tokens)].astype(np.float64)
    return Readout(scale * rows, scale * bias).before(params.config, params.final_norm, x)
