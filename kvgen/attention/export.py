"""A recording as a NumPy archive: format `kvgen.attention`, version 1.

weights        f32 [L, H, T, T]   chosen layers and heads; 0 above the diagonal
layer_index    i32 [L]            head_index  i32 [H]
token_ids      i32 [T]            the tokens that went through the model
token_bytes    u8  [..]           their bytes, one after another
token_offsets  i32 [T + 1]        where each one's bytes begin
step_of_row    i32 [T]            0 = prefill, n = decode step n
metrics        f32 [L, H, 6]      sink mass, previous token, induction, duplicate, entropy, distance
meta           JSON text          what else there is to know
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

import kvgen
from kvgen.attention.diagnostics import Diagnostics
from kvgen.attention.record import Recording
from kvgen.attention.steps import attention_weights

FORMAT, VERSION = "kvgen.attention", 1
METRICS = ("sink", "previous", "induction", "duplicate", "entropy", "distance")


def to_npz(
    recording: Recording,
    found: Diagnostics,
    tokens: Sequence[bytes],
    *,
    heads: Sequence[int],
    facts: dict[str, Any],
) -> bytes:
    """The archive's bytes, for `numpy.load(..., allow_pickle=False)`; `facts` go into meta."""
    trace = recording.trace
    layers = [layer.layer for layer in trace.layers]
    chosen = list(heads)
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "kvgen": kvgen.__version__,
        "prompt_len": trace.n_prompt,
        "attn_scale": [layer.scale for layer in trace.layers],
        "softcap": [layer.softcap for layer in trace.layers],
        "window": [layer.window for layer in trace.layers],
        "kv_group": trace.layers[0].n_heads // trace.layers[0].n_kv_heads,
        "metrics": METRICS,
        "sampled_last": recording.sampled_last,
        "verify_max_abs": recording.recomputed,
        "verify_decode_rows_max_abs": recording.decode_rows,
        **facts,
    }
    metrics = np.stack([getattr(found, name)[:, chosen] for name in METRICS], axis=-1)
    offsets = np.cumsum([0, *map(len, tokens)])
    buffer = io.BytesIO()
    np.savez(
        buffer,
        weights=np.stack([attention_weights(layer)[chosen] for layer in trace.layers]),
        layer_index=np.array(layers, np.int32),
        head_index=np.array(chosen, np.int32),
        token_ids=np.array(trace.token_ids, np.int32),
        token_bytes=np.frombuffer(b"".join(tokens), np.uint8),
        token_offsets=offsets.astype(np.int32),
        step_of_row=np.maximum(np.arange(trace.length) - trace.n_prompt + 1, 0).astype(np.int32),
        metrics=metrics.astype(np.float32),
        meta=np.array(json.dumps(meta)),
    )
    return buffer.getvalue()
