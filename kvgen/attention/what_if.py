"""A prompt run as it is and with an edit: maps, next token and loss, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kvgen.attention.record import gather
from kvgen.edits import Edit, edited_weights
from kvgen.engine import Engine, KVCache
from kvgen.errors import UsageError
from kvgen.tensors import FloatArray
from kvgen.trace import AttentionTrace, Capture, LayerTrace, Recorder


class EditingEngine(Engine, Protocol):
    """What a what-if asks of an engine: the reference engine's forward takes edits."""

    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        capture: Recorder | None = None,
        all_logits: bool = False,
        edit: Edit | None = None,
    ) -> FloatArray:
        """See `kvgen.engine.Engine.forward`; `edit` is for a whole sequence at once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """What an edit does to a prompt of T tokens, when all later layers are run with it."""

    edit: Edit
    base: tuple[LayerTrace, ...]
    edited: tuple[LayerTrace, ...]
    distances: FloatArray  # [L, H] mean over rows of half the sum of |w - w'|
    base_losses: FloatArray  # [T - 1] -ln p(next token), in nats
    edited_losses: FloatArray
    base_next: FloatArray  # [V] probabilities of the token to come
    edited_next: FloatArray
    kept_rows_change: float  # greatest change of an older row of K or V when one token is added

    @property
    def divergence(self) -> float:
        """KL(base || edited) of the next token, in nats."""
        p, q = self.base_next.astype(np.float64), self.edited_next.astype(np.float64)
        return float(np.sum(p * (np.log(p + 1e-30) - np.log(q + 1e-30))))


def what_if(engine: EditingEngine, ids: Sequence[int], edit: Edit) -> WhatIf:
    """Run the ids as they are, edited, and edited without the last one.

    Raises UsageError for fewer than two, which have nothing to compare.
    """
    if len(ids) < 2:
        raise UsageError("a what-if needs a prompt of at least two tokens")
    base_logits, base = _run(engine, ids, None)
    logits, edited = _run(engine, ids, edit)
    _, shorter = _run(engine, ids[:-1], edit)
    distances = []
    for one, other in zip(base, edited, strict=True):
        difference = np.abs(local_weights(one, None) - local_weights(other, edit)).sum(axis=2) / 2
        distances.append(difference.mean(axis=1))
    T = len(ids)
    return WhatIf(
        edit=edit,
        base=base,
        edited=edited,
        distances=np.array(distances, np.float32),
        base_losses=-_log_softmax(base_logits[:-1])[np.arange(T - 1), list(ids[1:])],
        edited_losses=-_log_softmax(logits[:-1])[np.arange(T - 1), list(ids[1:])],
        base_next=np.exp(_log_softmax(base_logits[-1:])[0]),
        edited_next=np.exp(_log_softmax(logits[-1:])[0]),
        kept_rows_change=max(
            float(np.abs(getattr(new, name)[:-1] - getattr(old, name)).max())
            for new, old in zip(edited, shorter, strict=True)
            for name in ("k", "v")
        ),
    )


def local_weights(trace: LayerTrace, edit: Edit | None) -> FloatArray:
    """The maps of a layer [H, T, T] with an edit in it, its inputs as they are."""
    return edited_weights(
        edit, trace.layer, trace.q, trace.k, scale=trace.scale, window=trace.window,
        softcap=trace.softcap,
    )  # fmt: skip


def _run(
    engine: EditingEngine, ids: Sequence[int], edit: Edit | None
) -> tuple[FloatArray, tuple[LayerTrace, ...]]:
    """All logits [T, V], and what each layer's attention was made of."""
    cache = engine.new_cache(len(ids))
    capture = Capture(engine.config, range(engine.config.n_layers), len(ids))
    logits = engine.forward(ids, cache, capture=capture, all_logits=True, edit=edit)
    trace: AttentionTrace = gather(engine, ids, cache, capture, n_prompt=len(ids))
    return logits, trace.layers


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    sums: FloatArray = np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64))
    result: FloatArray = (shifted - sums).astype(np.float32)
    return result
