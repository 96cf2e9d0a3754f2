"""One decoder layer around its attention: everything that looks at one position at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvgen.engine.config import ModelConfig
from kvgen.engine.params import LayerParams, Linear, Norm
from kvgen.engine.reference.ops import Projection, activate, layer_norm, linear, rms_norm
from kvgen.engine.tensors import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer's weights, widened to float32; a norm that a model does not have changes nothing.

    sequential                                  parallel
    x - norm - attention - norm - (+) -+        x -+- norm -- attention ----+
    +---------------- x -----------+   |           +- norm* - mlp -------- (+) -
      - norm - mlp ------- norm - (+) -+-          +---------- x ----------(+)
    norms before a block, after it, or both     * the attention's where the MLP has none
    """

    config: ModelConfig
    attn_norm: Norm | None
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    q_norm: Norm | None
    k_norm: Norm | None
    post_attn_norm: Norm | None
    mlp_norm: Norm | None
    gate: Projection | None
    up: Projection
    down: Projection
    post_mlp_norm: Norm | None

    def attention_input(self, x: FloatArray) -> FloatArray:  # [T, C] -> same
        """What queries, keys and values are made of."""
        return normalise(self.config, x, self.attn_norm)

    def attention_output(self, z: FloatArray) -> FloatArray:  # [T, H, D] -> [T, C]
        """What the heads' outputs add to x, but for the residual scale."""
        return normalise(self.config, linear(z.reshape(len(z), -1), self.o), self.post_attn_norm)

    def head_output(self, head: int) -> FloatArray:
        """The slice of W_O that takes one head's output to the stream [C, D]."""
        D = self.config.head_dim
        return self.o.weight[:, head * D : (head + 1) * D]

    def mlp_output(self, x: FloatArray, attended: FloatArray) -> FloatArray:  # [T, C] -> same
        """What the MLP adds to x, but for the residual scale, beside or behind attention."""
        if not self.config.parallel_residual:
            attended = np.float32(self.config.residual_scale) * attended
            normed = normalise(self.config, x + attended, self.mlp_norm)
        else:
            normed = normalise(self.config, x, self.mlp_norm or self.attn_norm)
        return normalise(self.config, self._mlp(normed), self.post_mlp_norm)

    def output(self, x: FloatArray, attended: FloatArray) -> FloatArray:  # [T, C] -> same
        """The states that leave the layer."""
        scale = np.float32(self.config.residual_scale)
        y: FloatArray = x + scale * attended + scale * self.mlp_output(x, attended)
        return y

    def _mlp(self, x: FloatArray) -> FloatArray:  # [T, C] -> same
        inner = linear(x, self.up)  # [T, F]
        if self.gate is None:
            inner = activate(inner, self.config.activation)
        else:
            inner = activate(linear(x, self.gate), self.config.activation) * inner
        return linear(inner, self.down)


def widened_block(config: ModelConfig, layer: LayerParams) -> Block:
    """A layer with its weights as float32."""
    return Block(
        config=config,
        attn_norm=layer.attn_norm,
        q=widened(layer.q),
        k=widened(layer.k),
        v=widened(layer.v),
        o=widened(layer.o),
        q_norm=layer.q_norm,
        k_norm=layer.k_norm,
        post_attn_norm=layer.post_attn_norm,
        mlp_norm=layer.mlp_norm,
        gate=widened(layer.gate) if layer.gate is not None else None,
        up=widened(layer.up),
        down=widened(layer.down),
        post_mlp_norm=layer.post_mlp_norm,
    )


def widened(one: Linear) -> Projection:
    """A product with its weight as float32."""
    return Projection(one.weight.dequantize(), one.bias)


def normalise(
    config: ModelConfig, x: FloatArray, norm: Norm | None
) -> FloatArray:  # [..., C] -> same
    """The model's kind of norm; x itself where there is none."""
    if norm is None:
        return x
    kind = layer_norm if config.norm == "layer" else rms_norm
    return kind(x, norm, config.norm_eps)
