"""A prompt run as it is and with an edit: maps, next token and loss, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kvgen.attention.diagnostics import row_entropy
from kvgen.attention.steps import attention_weights
from kvgen.engine.contract import Engine, KVCache
from kvgen.engine.edits import Edit, edited_weights
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Capture, LayerTrace, Recorder, Start
from kvgen.errors import UsageError
from kvgen.session import Session


class EditingEngine(Engine, Protocol):
    """What a what-if asks of an engine: the reference engine's forward takes edits."""

    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        capture: Recorder | None = None,
        all_logits: bool = False,
        rope_length: int | None = None,
        chunk: int | None = None,
        on_progress: Callable[[int], None] | None = None,
        start: Start | None = None,
        edit: Edit | None = None,
    ) -> FloatArray:
        """See `kvgen.engine.contract.Engine.forward`; `edit` is for a whole sequence at once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """What an edit does to a prompt of T tokens, when all later layers are run with it."""

    edit: Edit
    base: tuple[LayerTrace, ...]
    edited: tuple[LayerTrace, ...]
    distances: FloatArray  # [L, H] mean over rows of half the sum of |w - w'|
    entropies: FloatArray  # [L, H] mean over rows of -sum w ln w, in nats
    edited_entropies: FloatArray
    base_losses: FloatArray  # [T - 1] -ln p(next token), in nats
    edited_losses: FloatArray
    base_next: FloatArray  # [V] probabilities of the token to come
    edited_next: FloatArray
    # Unmasked: the greatest change of an older row of K or V when one token is added.
    kept_rows_change: float | None

    @property
    def divergence(self) -> float:
        """KL(base || edited) of the next token, in nats."""
        p, q = self.base_next.astype(np.float64), self.edited_next.astype(np.float64)
        return float(np.sum(p * (np.log(p + 1e-30) - np.log(q + 1e-30))))


def what_ifs(engine: EditingEngine, ids: Sequence[int], edits: Sequence[Edit]) -> Iterator[WhatIf]:
    """Run the ids as they are, and once for each edit.

    Raises UsageError for fewer than two ids, which have nothing to compare.
    """
    base_logits, base = _run(engine, _several(ids), None)
    for edit in edits:
        logits, edited = _run(engine, ids, edit)
        distances, entropies = [], []
        for one, other in zip(base, edited, strict=True):
            weights, changed = attention_weights(one), local_weights(other, edit)
            entropies.append([row_entropy(each).mean(axis=1) for each in (weights, changed)])
            distances.append(np.abs(weights - changed).sum(axis=2).mean(axis=1) / 2)
        entropy = np.array(entropies, np.float32)  # [L, 2, H]
        kept_rows_change = None
        if edit.kind == "unmasked":
            _, shorter = _run(engine, ids[:-1], edit, rope_length=len(ids))
            kept_rows_change = max(
                float(np.abs(getattr(new, name)[:-1] - getattr(old, name)).max())
                for new, old in zip(edited, shorter, strict=True)
                for name in ("k", "v")
            )
        yield WhatIf(
            edit=edit,
            base=base,
            edited=edited,
            distances=np.array(distances, np.float32),
            entropies=entropy[:, 0],
            edited_entropies=entropy[:, 1],
            base_losses=_losses(base_logits, ids),
            edited_losses=_losses(logits, ids),
            base_next=np.exp(_log_softmax(base_logits[-1:])[0]),
            edited_next=np.exp(_log_softmax(logits[-1:])[0]),
            kept_rows_change=kept_rows_change,
        )


def ablation_losses(
    engine: EditingEngine,
    ids: Sequence[int],
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    on_progress: Callable[[int], None],
) -> tuple[float, FloatArray]:
    """The mean loss on the ids as they are, and without each of the heads [layers, heads], in nats.

    One run for each head (Michel et al., arXiv:1905.10650, who look at BLEU and accuracy).
    `on_progress` is told of every head. Raises UsageError for fewer than two ids.
    """

    def loss(edit: Edit | None) -> float:
        cache = engine.new_cache(len(ids))
        logits = engine.forward(_several(ids), cache, all_logits=True, edit=edit)
        return float(_losses(logits, ids).mean())

    without = np.zeros((len(layers), len(heads)), np.float32)
    for row, layer in enumerate(layers):
        for column, head in enumerate(heads):
            without[row, column] = loss(Edit(kind="ablate", layer=layer, heads=(head,)))
            on_progress(1)
    return loss(None), without


def _several(ids: Sequence[int]) -> Sequence[int]:
    if len(ids) < 2:
        raise UsageError("a what-if needs a prompt of at least two tokens")
    return ids


def _losses(logits: FloatArray, ids: Sequence[int]) -> FloatArray:
    """-ln p of each next token [T - 1]."""
    return -_log_softmax(logits[:-1])[np.arange(len(ids) - 1), list(ids[1:])]


def local_weights(trace: LayerTrace, edit: Edit) -> FloatArray:
    """The maps of a layer [H, T, T] with an edit in it, its inputs as they are."""
    return edited_weights(
        edit, trace.layer, trace.q, trace.k, scale=trace.scale, window=trace.window,
        softcap=trace.softcap,
    )  # fmt: skip


def _run(
    engine: EditingEngine,
    ids: Sequence[int],
    edit: Edit | None,
    *,
    rope_length: int | None = None,
) -> tuple[FloatArray, tuple[LayerTrace, ...]]:
    """All logits [T, V], and what each layer's attention was made of."""
    capture = Capture(engine.config, range(engine.config.n_layers), len(ids))
    session = Session(engine, len(ids), capture=capture)
    logits = engine.forward(
        ids, session.cache, capture=capture, all_logits=True, rope_length=rope_length, edit=edit
    )
    return logits, session.recording().layers


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    sums: FloatArray = np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64))
    result: FloatArray = (shifted - sums).astype(np.float32)
    return result
