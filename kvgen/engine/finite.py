"""Logits must be finite, and where they are not: the place in the model that first went bad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvgen.engine.contract import Engine
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Capture
from kvgen.errors import KvgenError, NonFiniteError

_AT_ONCE = 64  # positions whose states and logits are in memory together


def require_finite(
    logits: FloatArray, engine: Engine | None = None, ids: Sequence[int] = ()
) -> None:
    """Raise NonFiniteError where logits hold NaN or infinity.

    With the engine and all ids that led to them, these run once more after the failure, and the
    message says where NaN or infinity first appears.
    """
    if np.isfinite(logits).all():
        return
    remedy = "its weights are damaged, or their stored type is too narrow (try --dtype f32)"
    if engine is not None and engine.dtype == "f32":
        remedy = "its weights are damaged, or too large for float32"
    try:
        place = None if engine is None else first_non_finite(engine, ids)
    except (KvgenError, MemoryError):  # the failure itself is still to be told
        place = None
    if place is None:
        raise NonFiniteError(f"the model's logits are not finite (NaN or infinity): {remedy}")
    raise NonFiniteError(f"the model's logits are not finite: {place}; {remedy}")


def first_non_finite(engine: Engine, ids: Sequence[int]) -> str | None:
    """Where NaN or infinity first appears when the ids run, in words; None where it does not.

    Of the first chunk of positions that holds one: the first layer, and in it the first position.
    Memory for the states of a chunk is all that it takes besides a KV cache.
    """
    n_layers = engine.config.n_layers
    cache = engine.new_cache(len(ids))
    for begin in range(0, len(ids), _AT_ONCE):
        part = list(ids[begin : begin + _AT_ONCE])
        # Only the rows of this chunk are written to, and only they take up memory.
        capture = Capture(engine.config, (), len(ids), states=True)
        logits = engine.forward(part, cache, capture=capture, all_logits=True, rope_length=len(ids))
        assert capture.states is not None
        for layer in range(n_layers + 2):
            entering = layer <= n_layers
            rows = capture.states[layer, begin : begin + len(part)] if entering else logits
            bad = ~np.isfinite(rows).all(axis=-1)  # [T]
            if bad.any():
                row = int(bad.argmax())
                kind = "NaN" if np.isnan(rows[row]).any() else "infinity"
                place = _output(layer, n_layers)
                return f"{kind} first appears in {place} (position {begin + row})"
    return None


def _output(layer: int, n_layers: int) -> str:
    """What gives the states that enter a layer; L enters the final norm, L + 1 are the logits."""
    if layer == 0:
        return "the embedding"
    if layer <= n_layers:
        return f"the output of layer {layer - 1}"
    return "the final norm or the head"
