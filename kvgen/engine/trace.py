"""What is kept of a run so that its attention can be looked at: inference keeps K and V only.

`Capture` is the store of Q that an engine fills while it runs. `AttentionTrace` is what is left
when the run is over: q, k, v and z of some layers, from which every map can be recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from kvgen.engine.config import ModelConfig
from kvgen.engine.tensors import FloatArray


class Start(NamedTuple):
    """Where the positions of a pass begin: in a layer, with these states [T, C], float32.

    The states are the residual stream. Layer L, behind the last one, is the final norm.
    """

    layer: int
    states: FloatArray

    def rows_from(self, first: int) -> Start:
        """Without the positions before `first`."""
        return Start(self.layer, self.states[first:])


class Recorder(Protocol):
    """Who is told of a pass over positions from `first` on, layer by layer."""

    def write(self, layer: int, first: int, q: FloatArray, z: FloatArray) -> None:
        """Hear of the queries and the outputs of attention [T, H, D] of a layer."""
        ...

    def write_states(self, layer: int, first: int, x: FloatArray) -> None:
        """Hear of the states [T, C] that enter a layer, or leave the last one (layer L)."""
        ...


class Capture:
    """q (after RoPE) and z (the attention output before W_O) of chosen layers and heads.

    With `states` also the residual stream [L + 1, capacity, C]: what enters each layer of the
    model, and what leaves the last one. Rows are positions; feeding a position again overwrites
    its row. Each head's rows lie together,
    `q_of_heads` and `z_of_heads` [N, H', capacity, D], where a compiled engine writes them.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: Sequence[int],
        capacity: int,
        *,
        heads: Sequence[int] | None = None,
        states: bool = False,
    ) -> None:
        self.layers = tuple(layers)
        self.heads = tuple(range(config.n_heads) if heads is None else heads)
        shape = (len(self.layers), len(self.heads), capacity, config.head_dim)
        self.q_of_heads: FloatArray = np.zeros(shape, np.float32)
        self.z_of_heads: FloatArray = np.zeros(shape, np.float32)
        stream = (config.n_layers + 1, capacity, config.d_model)
        self.states: FloatArray | None = np.zeros(stream, np.float32) if states else None

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        states = 0 if self.states is None else self.states.nbytes
        return self.q_of_heads.nbytes + self.z_of_heads.nbytes + states

    @property
    def q(self) -> FloatArray:
        """The queries by position, [N, capacity, H', D]."""
        return self.q_of_heads.swapaxes(1, 2)

    @property
    def z(self) -> FloatArray:
        """The outputs by position, [N, capacity, H', D]."""
        return self.z_of_heads.swapaxes(1, 2)

    def write(self, layer: int, first: int, q: FloatArray, z: FloatArray) -> None:
        """Keep what was chosen of q and z [T, H, D], of the positions from `first` on."""
        if layer in self.layers:
            row, chosen = self.layers.index(layer), list(self.heads)
            self.q[row, first : first + len(q)] = q[:, chosen]
            self.z[row, first : first + len(z)] = z[:, chosen]

    def write_states(self, layer: int, first: int, x: FloatArray) -> None:
        """Keep the states [T, C] that enter a layer, where they are wanted."""
        if self.states is not None:
            self.states[layer, first : first + len(x)] = x


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTrace:
    """One layer's attention, as tensors: q and z [T, H', D], k and v [T, G, D], float32."""

    layer: int
    heads: tuple[int, ...]  # the H' query heads that q and z are of, ascending
    group_size: int  # query heads that read one key/value head
    scale: float  # factor of the scores
    softcap: float | None = None  # scores then become c tanh(score / c)
    window: int | None = None  # keys that a query sees, itself included; None: all before it
    q: FloatArray
    k: FloatArray
    v: FloatArray
    z: FloatArray

    def kv_head(self, head: int) -> int:
        """The key/value head that a query head reads."""
        return head // self.group_size

    @property
    def kv_heads(self) -> list[int]:
        """The key/value head that each of the heads reads [H']."""
        return [self.kv_head(head) for head in self.heads]

    def only(self, *heads: int) -> LayerTrace:
        """Some of the heads alone."""
        columns = [self.heads.index(head) for head in heads]
        return replace(self, heads=heads, q=self.q[:, columns], z=self.z[:, columns])

    def groups(self) -> list[LayerTrace]:
        """The heads of one key/value head after another."""
        return [
            self.only(*(head for head in self.heads if self.kv_head(head) == kv_head))
            for kv_head in sorted(set(self.kv_heads))
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTrace:
    """The attention of a whole run over T positions.

    The first `n_prompt` rows come from the prefill, the others from one decode step each.
    """

    token_ids: tuple[int, ...]  # T ids that went through the model
    n_prompt: int
    layers: tuple[LayerTrace, ...]

    @property
    def length(self) -> int:
        """Positions T."""
        return len(self.token_ids)

    def row_of(self, layer: int) -> int:
        """Where a captured layer stands in `layers`."""
        return [trace.layer for trace in self.layers].index(layer)

    @property
    def heads(self) -> tuple[int, ...]:
        """The captured query heads, the same in every layer."""
        return self.layers[0].heads

    def column_of(self, head: int) -> int:
        """Where a captured head stands in `heads`."""
        return self.heads.index(head)

    def layer(self, number: int) -> LayerTrace:
        """The trace of a captured layer."""
        return self.layers[self.row_of(number)]
