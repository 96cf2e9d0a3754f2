"""What each head of a layer adds to the attention output of one query.

H query heads, D the size of a value, C the width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvgen.engine.params import Params
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import LayerTrace
from kvgen.errors import UsageError


class OutputProjection(NamedTuple):
    """W_O of a layer, and what a model does to the sum of the heads after it."""

    weights: FloatArray  # [C, H * D]
    bias: FloatArray | None  # [C]
    norm_follows: bool = False  # the sum is normalised before it is added to the residual stream
    residual_scale: float = 1.0  # factor of the sum in the residual stream


def output_projection(params: Params, layer: int) -> OutputProjection:
    """W_O of a layer, and what the model does to the sum of the heads after it."""
    weights = params.layers[layer]
    return OutputProjection(
        weights.o.weight.dequantize(),
        weights.o.bias,
        norm_follows=weights.post_attn_norm is not None,
        residual_scale=params.config.residual_scale,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSum:
    """One query's attention output as a sum over heads, and as one product.

    A share is <part, output> / |output|^2, signed; those of the heads and of the bias sum to 1.
    """

    z: FloatArray  # each head's output, [H, D]
    written: FloatArray  # z_h W_O^h, [H, C]
    shares: FloatArray  # [H]
    bias: FloatArray | None  # [C]
    bias_share: float  # 0 without a bias
    total: FloatArray  # the sum of `written`, with the bias, [C]
    output: FloatArray  # concat(z) W_O + b, [C]
    difference: float  # greatest |total - output|


def sum_heads(layer: LayerTrace, query: int, projection: OutputProjection) -> HeadSum:
    """MultiHead(Q, K, V) = concat(z_0, ..) W_O + b of one query, and the same head by head.

    z is what the kernel wrote (Vaswani et al., arXiv:1706.03762, section 3.2.2; head by head as in
    Elhage et al., A Mathematical Framework for Transformer Circuits). Raises UsageError where not
    every head of the layer was recorded.
    """
    z = layer.z[query]
    H, D = z.shape
    if projection.weights.shape[1] != H * D:
        raise UsageError("the sum over heads needs every head: record without -H")
    matrix = projection.weights.T.reshape(H, D, -1)  # W_O^h [D, C] of each head
    written = (z[:, None] @ matrix)[:, 0]
    parts = written if projection.bias is None else np.vstack([written, projection.bias])
    output = projection.weights @ z.ravel()
    if projection.bias is not None:
        output = output + projection.bias
    along, energy = parts @ output, output @ output
    shares = np.divide(along, energy, out=np.zeros_like(along), where=energy > 0)
    total = parts.sum(axis=0)
    return HeadSum(
        z=z,
        written=written,
        shares=shares[:H],
        bias=projection.bias,
        bias_share=float(shares[H:].sum()),
        total=total,
        output=output,
        difference=float(np.abs(total - output).max()),
    )
