"""A recording as a file: format `kvgen.attention`, version 3.

.npz and .safetensors hold the same arrays, so that every view can be drawn again:

weights        f32 [L, H, T, T]   the recorded layers and heads; 0 above the diagonal
layer_index    i32 [L]            head_index  i32 [H]
q, z           f32 [L, T, H, D]   queries after RoPE, and the kernel's output before W_O
k, v           f32 [L, T, G, D]   keys after RoPE, and values, as the cache holds them
token_ids      i32 [T]            the tokens that went through the model
tokens         str [T]            the same as text; in .safetensors JSON text in its metadata
token_bytes    u8  [..]           their bytes, one after another
token_offsets  i32 [T + 1]        where each one's bytes begin
step_of_row    i32 [T]            0 = prefill, n = decode step n
metrics        f32 [L, H, M]      the diagnostics that meta.metrics names, NaN where none counts
metric_rows    i32 [L, H, M]      how many queries each of them was made of
value_norms    f32 [L, T, H]      |v_j W_O^h|
output_norms   f32 [L, T, H]      |sum_{j >= 1} w_ij v_j W_O^h|
states         f32 [L + 1, T, C]  what enters each layer of the model, and what leaves the last one
predictions_*, lens_*, contributions_*     the arrays of these parts: `LAYOUTS` in extras.py
name_ids       i32 [N]            tokens with known texts: those above, and those of these parts
name_bytes     u8  [..]           their bytes, one after another
name_offsets   i32 [N + 1]        where each one's bytes begin
meta           JSON text          model, prompt length and settings; in .safetensors its metadata

All from value_norms to name_offsets is there where it was recorded. .json holds one object: meta,
token_ids, tokens, metrics (an object for each head), maps (for each head and row the strongest
keys, each with its weight), names (texts of tokens by id), and predictions, lens, contributions
where they were recorded.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save

import kvgen
from kvgen.attention.contributions import Contributions
from kvgen.attention.diagnostics import METRICS
from kvgen.attention.extras import Extras
from kvgen.attention.lens import Lens
from kvgen.attention.record import RecordedRun
from kvgen.attention.steps import attention_weights
from kvgen.engine.tensors import Array, FloatArray
from kvgen.errors import UsageError

FORMAT, VERSION = "kvgen.attention", 3
KINDS = ("npz", "safetensors", "json")
_JSON_KEYS = 8  # of each row


def export(
    recording: RecordedRun,
    tokens: Sequence[bytes],
    *,
    facts: dict[str, Any],
    kind: str,
    lens: Lens | None = None,
    contributions: Contributions | None = None,
    names: Mapping[int, bytes] | None = None,
) -> bytes:
    """The bytes of a file of that kind: npz, safetensors or json. `facts` go into meta.

    `names` are the bytes of candidates, which need not be among the tokens. Raises UsageError for
    another kind.
    """
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is not a kind of recording: choose {', '.join(KINDS)}")
    extras = Extras(predictions=recording.predictions, lens=lens, contributions=contributions)
    meta = _meta(recording, facts) | extras.facts()
    if kind == "json":
        content = _as_json(recording, tokens, meta) | extras.as_json()
        named = names or {}
        content["names"] = dict(zip(named, token_texts(list(named.values())), strict=True))
        return (json.dumps(content) + "\n").encode()
    arrays, written = _arrays(recording, tokens) | extras.arrays(), json.dumps(meta)
    if names:
        arrays["name_ids"] = np.array(list(names), np.int32)
        arrays |= _one_after_another("name", list(names.values()))
    if kind == "safetensors":
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return save(arrays, metadata={"meta": written, "tokens": json.dumps(token_texts(tokens))})
    buffer = io.BytesIO()
    texts = np.array(token_texts(tokens), np.str_)
    np.savez(buffer, allow_pickle=False, **arrays, tokens=texts, meta=np.array(written))
    return buffer.getvalue()


def _meta(recording: RecordedRun, facts: dict[str, Any]) -> dict[str, Any]:
    trace = recording.trace
    return {
        "format": FORMAT,
        "version": VERSION,
        "kvgen": kvgen.__version__,
        "prompt_len": trace.n_prompt,
        "attn_scale": [layer.scale for layer in trace.layers],
        "softcap": [layer.softcap for layer in trace.layers],
        "window": [layer.window for layer in trace.layers],
        "kv_group": trace.layers[0].group_size,
        "metrics": list(METRICS),
        "sampled_last": recording.sampled_last,
        "verify_max_abs": recording.diagnostics.recomputed,
        "verify_decode_rows_max_abs": recording.decode_rows,
        **facts,
    }


def _of_metrics(numbers: Mapping[str, FloatArray]) -> FloatArray:
    return np.stack([numbers[name] for name in METRICS], axis=-1)


def _arrays(recording: RecordedRun, tokens: Sequence[bytes]) -> dict[str, Array]:
    trace, diagnostics = recording.trace, recording.diagnostics
    steps = np.maximum(np.arange(trace.length) - trace.n_prompt + 1, 0)
    arrays: dict[str, Array] = {
        "weights": np.stack([attention_weights(layer) for layer in trace.layers]),
        "layer_index": np.array([layer.layer for layer in trace.layers], np.int32),
        "head_index": np.array(trace.heads, np.int32),
        "token_ids": np.array(trace.token_ids, np.int32),
        **_one_after_another("token", tokens),
        "step_of_row": steps.astype(np.int32),
        "metrics": _of_metrics(diagnostics.scores),
        "metric_rows": _of_metrics(diagnostics.rows).astype(np.int32),
    }
    if recording.residual_norms is not None:
        arrays["value_norms"], arrays["output_norms"] = recording.residual_norms
    for name in "qkvz":
        arrays[name] = np.stack([getattr(layer, name) for layer in trace.layers])
    if recording.states is not None:
        arrays["states"] = recording.states
    return arrays


def _one_after_another(name: str, texts: Sequence[bytes]) -> dict[str, Array]:
    """Bytes of several texts as one array, and another of where each begins."""
    return {
        f"{name}_bytes": np.frombuffer(b"".join(texts), np.uint8),
        f"{name}_offsets": np.cumsum([0, *map(len, texts)]).astype(np.int32),
    }


def _as_json(
    recording: RecordedRun, tokens: Sequence[bytes], meta: dict[str, Any]
) -> dict[str, Any]:
    """Meta, metrics, and for each head and row the strongest keys as [key, weight]."""
    trace = recording.trace
    maps = []
    for layer in trace.layers:
        weights = attention_weights(layer)
        for head, whole in zip(trace.heads, weights, strict=True):
            rows = []
            for i, row in enumerate(whole):
                best = np.argsort(-row[: i + 1], kind="stable")[:_JSON_KEYS]
                rows.append([[int(j), round(float(row[j]), 6)] for j in best])
            maps.append({"layer": layer.layer, "head": head, "rows": rows})
    metrics = [
        {
            "layer": layer.layer,
            "head": head,
            **{name: _number(recording.diagnostics.scores[name][row, column]) for name in METRICS},
        }
        for row, layer in enumerate(trace.layers)
        for column, head in enumerate(trace.heads)
    ]
    return {
        "meta": meta,
        "token_ids": list(trace.token_ids),
        "tokens": token_texts(tokens),
        "metrics": metrics,
        "maps": maps,
    }


def token_texts(tokens: Sequence[bytes]) -> list[str]:
    r"""Tokens as text, for the labels of other programs.

    Bytes that are no characters are written out as \xe6, and so is \x00: NumPy leaves it out at
    the end of a text.
    """
    return [token.decode("utf-8", "backslashreplace").replace("\0", r"\x00") for token in tokens]


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
