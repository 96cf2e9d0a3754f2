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
value_norms    f32 [L, T, H]      |v_j W_O^h|          both only where the model was at hand
output_norms   f32 [L, T, H]      |sum_{j >= 1} w_ij v_j W_O^h|
meta           JSON text          model, prompt length and settings; in .safetensors its metadata

.json holds meta, metrics and the strongest keys of each row.
"""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import kvgen
from kvgen.attention.diagnostics import METRICS, diagnose
from kvgen.attention.record import RecordedRun
from kvgen.attention.residual import ResidualNorms
from kvgen.attention.steps import attention_weights
from kvgen.engine.tensors import Array, FloatArray
from kvgen.engine.trace import AttentionTrace, LayerTrace
from kvgen.errors import KvgenError

FORMAT, VERSION = "kvgen.attention", 3
_JSON_KEYS = 8  # of each row
_BROKEN = (
    KeyError, ValueError, TypeError, IndexError, EOFError, AttributeError, zipfile.BadZipFile,
    SafetensorError,
)  # fmt: skip


class SavedRecording(NamedTuple):
    """The contents of a file: the recording, its tokens' bytes, and meta."""

    recording: RecordedRun
    tokens: list[bytes]
    meta: dict[str, Any]


def export(
    recording: RecordedRun, tokens: Sequence[bytes], *, facts: dict[str, Any], kind: str
) -> bytes:
    """The bytes of a file of that kind: npz, safetensors or json. `facts` go into meta."""
    meta = json.dumps(_meta(recording, facts))
    if kind == "json":
        return (json.dumps(_as_json(recording, tokens, meta)) + "\n").encode()
    arrays = _arrays(recording, tokens)
    if kind == "safetensors":
        return save(arrays, metadata={"meta": meta, "tokens": json.dumps(_texts(tokens))})
    buffer = io.BytesIO()
    texts = np.array(_texts(tokens), np.str_)
    np.savez(buffer, allow_pickle=False, **arrays, tokens=texts, meta=np.array(meta))
    return buffer.getvalue()


def read_export(path: Path) -> SavedRecording:
    """Read a file that `export` wrote as npz or safetensors.

    Raises KvgenError for any other file.
    """
    try:
        arrays, meta = _read_arrays(path)
        if (meta["format"], meta["version"]) != (FORMAT, VERSION):
            raise KvgenError(
                f"{path}: is {meta['format']} version {meta['version']}, and this is kvgen "
                f"{kvgen.__version__} for {FORMAT} version {VERSION}: write it again"
            )
        return _from_arrays(arrays, meta)
    except OSError as error:
        raise KvgenError(f"{path}: {error.strerror or error}") from None
    except _BROKEN as error:
        raise KvgenError(f"{path}: is no recording of attention ({error})") from None


def _read_arrays(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, json.loads((file.metadata() or {})["meta"])
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(str(arrays.pop("meta")))


def _from_arrays(arrays: dict[str, Array], meta: dict[str, Any]) -> SavedRecording:
    T, L = len(arrays["token_ids"]), len(arrays["layer_index"])
    q, k, v, z = (arrays[name] for name in "qkvz")
    alike = q.shape == z.shape and k.shape == v.shape and q.shape[:2] == k.shape[:2] == (L, T)
    heads, group_size = tuple(arrays["head_index"].tolist()), int(meta["kv_group"])
    alike = alike and q.ndim == k.ndim == 4 and q.shape[2] == len(heads) > 0
    if not (
        alike and list(heads) == sorted(set(heads)) and 0 <= heads[-1] < group_size * k.shape[2]
    ):
        raise ValueError("its arrays do not belong together")
    offsets = arrays["token_offsets"]
    trace = AttentionTrace(
        token_ids=tuple(arrays["token_ids"].tolist()),
        n_prompt=int(meta["prompt_len"]),
        layers=tuple(
            LayerTrace(
                layer=int(layer),
                heads=heads,
                group_size=group_size,
                scale=meta["attn_scale"][row],
                softcap=meta["softcap"][row],
                window=meta["window"][row],
                q=q[row],
                k=k[row],
                v=v[row],
                z=z[row],
            )
            for row, layer in enumerate(arrays["layer_index"])
        ),
    )
    norms = None
    if "value_norms" in arrays:
        norms = ResidualNorms(arrays["value_norms"], arrays["output_norms"])
        if not all(lengths.shape == q.shape[:3] for lengths in norms):
            raise ValueError("its arrays do not belong together")
    recording = RecordedRun(
        trace=trace,
        sampled_last=meta["sampled_last"],
        diagnostics=diagnose(trace, probe=meta.get("probe")),
        decode_rows=meta["verify_decode_rows_max_abs"],
        residual_norms=norms,
    )
    tokens = [
        arrays["token_bytes"][begin:end].tobytes()
        for begin, end in itertools.pairwise(offsets.tolist())
    ]
    return SavedRecording(recording, tokens, meta)


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
        "token_bytes": np.frombuffer(b"".join(tokens), np.uint8),
        "token_offsets": np.cumsum([0, *map(len, tokens)]).astype(np.int32),
        "step_of_row": steps.astype(np.int32),
        "metrics": _of_metrics(diagnostics.scores),
        "metric_rows": _of_metrics(diagnostics.rows).astype(np.int32),
    }
    if recording.residual_norms is not None:
        arrays["value_norms"], arrays["output_norms"] = recording.residual_norms
    for name in "qkvz":
        rows = np.stack([getattr(layer, name) for layer in trace.layers])
        arrays[name] = np.ascontiguousarray(rows)
    return arrays


def _as_json(recording: RecordedRun, tokens: Sequence[bytes], meta: str) -> dict[str, Any]:
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
        "meta": json.loads(meta),
        "token_ids": list(trace.token_ids),
        "tokens": _texts(tokens),
        "metrics": metrics,
        "maps": maps,
    }


def _texts(tokens: Sequence[bytes]) -> list[str]:
    r"""Tokens as text, for the labels of other programs.

    Bytes that are no characters are written out as \xe6, and so is \x00: NumPy leaves it out at
    the end of a text.
    """
    return [token.decode("utf-8", "backslashreplace").replace("\0", r"\x00") for token in tokens]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
