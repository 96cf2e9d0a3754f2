"""What is kept of a run so that its attention can be looked at: inference keeps K and V only.

`Capture` is the store of Q that an engine fills while it runs. `AttentionTrace` is what is left
when the run is over: q, k, v and z of some layers, from which every map can be recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from kvgen.config import ModelConfig
from kvgen.tensors import FloatArray


class Recorder(Protocol):
    """Who is told of q and z [T, H, D] of a layer's positions from `start`, when they are made."""

    def write(self, layer: int, start: int, q: FloatArray, z: FloatArray) -> None: ...


class Capture:
    """q (after RoPE) and z (the attention output before W_O) of chosen layers, [N, capacity, H, D].

    Rows are positions; feeding a position again overwrites its row.
    """

    def __init__(self, config: ModelConfig, layers: Sequence[int], capacity: int) -> None:
        shape = (len(layers), capacity, config.n_heads, config.head_dim)
        self.layers = tuple(layers)
        self.q: FloatArray = np.zeros(shape, np.float32)
        self.z: FloatArray = np.zeros(shape, np.float32)

    def write(self, layer: int, start: int, q: FloatArray, z: FloatArray) -> None:
        """Keep q and z [T, H, D] of the positions from `start`, if this layer was chosen."""
        if layer in self.layers:
            row = self.layers.index(layer)
            self.q[row, start : start + len(q)] = q
            self.z[row, start : start + len(z)] = z


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTrace:
    """One layer's attention, as tensors: q and z [T, H, D], k and v [T, G, D], float32."""

    layer: int
    scale: float  # factor of the scores
    softcap: float | None = None  # scores then become c tanh(score / c)
    window: int | None = None  # keys that a query sees, itself included; None: all before it
    q: FloatArray
    k: FloatArray
    v: FloatArray
    z: FloatArray

    @property
    def n_heads(self) -> int:
        """Query heads H."""
        return int(self.q.shape[1])

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads G."""
        return int(self.k.shape[1])

    def kv_head(self, head: int) -> int:
        """The key/value head that a query head reads."""
        return head // (self.n_heads // self.n_kv_heads)

    def group(self, kv_head: int) -> LayerTrace:
        """The query heads of one key/value head alone, as views."""
        share = self.n_heads // self.n_kv_heads
        return self._only(slice(kv_head * share, (kv_head + 1) * share), kv_head)

    def alone(self, head: int) -> LayerTrace:
        """One query head with the key/value head that it reads, as views."""
        return self._only(slice(head, head + 1), self.kv_head(head))

    def _only(self, heads: slice, kv_head: int) -> LayerTrace:
        one = slice(kv_head, kv_head + 1)
        return replace(
            self, q=self.q[:, heads], z=self.z[:, heads], k=self.k[:, one], v=self.v[:, one]
        )


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

    def layer(self, number: int) -> LayerTrace:
        """The trace of a captured layer."""
        return self.layers[self.row_of(number)]
