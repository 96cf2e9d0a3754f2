"""The reference engine: every model that kvgen runs, as one screen of NumPy per block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from kvgen.cache import DenseCache
from kvgen.config import ModelConfig
from kvgen.engine import KVCache, check_request
from kvgen.params import LayerParams, Linear, Norm, Params
from kvgen.reference.ops import (
    Projection,
    activate,
    attend,
    layer_norm,
    linear,
    rms_norm,
    rotate,
)
from kvgen.rope import cos_sin
from kvgen.tensors import DTypeName, FloatArray
from kvgen.trace import Capture


class _Layer(NamedTuple):
    """One layer's weights, widened to float32."""

    attn_norm: Norm
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    mlp_norm: Norm
    gate: Projection | None
    up: Projection
    down: Projection


class ReferenceEngine:
    """Plain NumPy. Weights stored narrower are widened once, when the engine is opened."""

    backend: Literal["numpy"] = "numpy"
    compile_seconds = 0.0

    def __init__(self, params: Params, *, threads: int | None = None) -> None:
        self.config: ModelConfig = params.config
        self.dtype: DTypeName = params.dtype
        self._blas = ThreadpoolController().select(user_api="blas")
        self.threads = threads or max(
            (pool["num_threads"] for pool in self._blas.info()), default=1
        )
        self._params = params
        self._layers = [_widen(layer) for layer in params.layers]
        self._head = _project(params.head)
        self._cos, self._sin = cos_sin(
            params.config.rope, params.config.head_dim, params.config.max_context
        )

    def new_cache(self, capacity: int) -> DenseCache:
        """An empty cache for `capacity` positions."""
        return DenseCache(self.config, capacity)

    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        capture: Capture | None = None,
        all_logits: bool = False,
    ) -> FloatArray:  # T ids -> logits [V] or [T, V]
        """Run T new positions through the model; see `kvgen.engine.Engine.forward`."""
        assert isinstance(cache, DenseCache)
        check_request(self.config, ids, cache)
        # A model that has lost its way may overflow: the caller checks the logits.
        with self._blas.limit(limits=self.threads), np.errstate(all="ignore"):
            x = self._embed(np.asarray(ids, np.int64), cache.length)
            for layer in range(self.config.n_layers):
                x = self._block(x, layer, cache, capture)
            cache.extend(len(ids))
            x = x if all_logits else x[-1:]
            logits = linear(self._norm(x, self._params.final_norm), self._head)
        return logits if all_logits else logits[0]

    def _embed(self, ids: np.ndarray, start: int) -> FloatArray:  # [T] -> [T, C]
        x = self._params.embed.rows(ids)
        if self._params.positions is not None:
            x = x + self._params.positions.rows(np.arange(start, start + len(ids)))
        return x

    def _block(
        self, x: FloatArray, layer: int, cache: DenseCache, capture: Capture | None
    ) -> FloatArray:  # [T, C] -> [T, C]
        """One decoder layer.

        x - attn_norm - attention - (+) - mlp_norm - mlp - (+) -
        +------------- x ------------+ +---------- x -------+
        """
        weights = self._layers[layer]
        attended = self._attention(self._norm(x, weights.attn_norm), layer, cache, capture)
        x = x + attended
        return x + self._mlp(self._norm(x, weights.mlp_norm), weights)

    def _attention(
        self, x: FloatArray, layer: int, cache: DenseCache, capture: Capture | None
    ) -> FloatArray:  # [T, C] -> [T, C]
        T, H, G, D = len(x), self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        weights = self._layers[layer]
        start, end = cache.length, cache.length + T
        q = linear(x, weights.q).reshape(T, H, D)
        k = linear(x, weights.k).reshape(T, G, D)
        v = linear(x, weights.v).reshape(T, G, D)
        if self.config.rope is not None:
            cos, sin = self._cos[start:end], self._sin[start:end]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # K and V of these positions are kept for every later step; q is used here and dropped.
        cache.k[layer, :, start:end] = k.swapaxes(0, 1)
        cache.v[layer, :, start:end] = v.swapaxes(0, 1)
        scale = self.config.attn_scales[layer]
        z = attend(q, cache.k[layer, :, :end], cache.v[layer, :, :end], scale)
        if capture is not None:
            capture.write(layer, start, q, z)
        return linear(z.reshape(T, H * D), weights.o)

    def _mlp(self, x: FloatArray, weights: _Layer) -> FloatArray:  # [T, C] -> [T, C]
        inner = linear(x, weights.up)  # [T, F]
        if weights.gate is None:
            inner = activate(inner, self.config.activation)
        else:
            inner = activate(linear(x, weights.gate), self.config.activation) * inner
        return linear(inner, weights.down)

    def _norm(self, x: FloatArray, norm: Norm) -> FloatArray:  # [T, C] -> [T, C]
        normalise = layer_norm if self.config.norm == "layer" else rms_norm
        return normalise(x, norm, self.config.norm_eps)


def _project(linear_params: Linear) -> Projection:
    return Projection(linear_params.weight.dequantize(), linear_params.bias)


def _widen(layer: LayerParams) -> _Layer:
    return _Layer(
        attn_norm=layer.attn_norm,
        q=_project(layer.q),
        k=_project(layer.k),
        v=_project(layer.v),
        o=_project(layer.o),
        mlp_norm=layer.mlp_norm,
        gate=_project(layer.gate) if layer.gate is not None else None,
        up=_project(layer.up),
        down=_project(layer.down),
    )
