"""Params: a model's weights in canonical slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from kvgen.choices import DTypeName
from kvgen.engine.config import ModelConfig
from kvgen.engine.tensors import FloatArray, Tensor


class Linear(NamedTuple):
    """y = x W^T + b with W [out, in] and b float32 [out] or None."""

    weight: Tensor
    bias: FloatArray | None


class Norm(NamedTuple):
    """The scale and shift of a normalisation, float32 [C]; RMSNorm has no shift."""

    weight: FloatArray
    bias: FloatArray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParams:
    """One decoder layer; None is a part that the model does not have."""

    attn_norm: Norm | None
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Norm | None  # [H * D], whatever the checkpoint repeats
    k_norm: Norm | None  # [G * D]
    post_attn_norm: Norm | None
    mlp_norm: Norm | None
    gate: Linear | None  # None where the MLP is plain
    up: Linear
    down: Linear
    post_mlp_norm: Norm | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """A whole model: what is learned, and the width it is stored in."""

    config: ModelConfig
    dtype: DTypeName
    embed: Tensor  # [V, C]
    positions: Tensor | None  # [max_context, C], None with RoPE
    layers: tuple[LayerParams, ...]
    final_norm: Norm
    head: Linear  # the embedding again where it is tied
    n_parameters: int  # each number of the checkpoint once, a tied head with the embedding
    notes: tuple[str, ...] = ()  # what a user should know about this checkpoint
    ignored_keys: tuple[str, ...] = ()  # keys of config.json that play no part

    def embedded(self, ids: Sequence[int]) -> FloatArray:  # T ids -> [T, C]
        """The embeddings of some tokens, as they enter the first layer but for their positions."""
        return self.embed.rows(np.asarray(ids, np.int64)) * np.float32(self.config.embed_scale)

    @property
    def weights(self) -> list[Tensor]:
        """Every large tensor once, a tied head counted with the embedding."""
        tensors = [self.embed] if self.head.weight is self.embed else [self.embed, self.head.weight]
        if self.positions is not None:
            tensors.append(self.positions)
        for layer in self.layers:
            linears = (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
            tensors += [linear.weight for linear in linears if linear is not None]
        return tensors

    def replaced(self, by: Callable[[Tensor], Tensor]) -> Params:
        """The same model with another tensor for each of `weights`."""

        def linear(one: Linear) -> Linear:
            return one._replace(weight=by(one.weight))

        embed = by(self.embed)
        tied = self.head.weight is self.embed
        layers = tuple(
            replace(
                layer,
                q=linear(layer.q),
                k=linear(layer.k),
                v=linear(layer.v),
                o=linear(layer.o),
                gate=None if layer.gate is None else linear(layer.gate),
                up=linear(layer.up),
                down=linear(layer.down),
            )
            for layer in self.layers
        )
        return replace(
            self,
            embed=embed,
            positions=None if self.positions is None else by(self.positions),
            layers=layers,
            head=self.head._replace(weight=embed) if tied else linear(self.head),
        )

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the matrices that every token is multiplied with: layers and head."""
        tables = [self.embed, self.positions]
        tied = self.head.weight is self.embed
        apart = [t for t in tables if t is not None and not (tied and t is self.embed)]
        return self.nbytes - sum(tensor.nbytes for tensor in apart)

    @property
    def nbytes(self) -> int:
        """Bytes of the large tensors in the form they are used."""
        return sum(tensor.nbytes for tensor in self.weights)
