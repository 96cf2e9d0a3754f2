"""Reading a recording that `kvgen.attention.export` has written."""

from __future__ import annotations

import io
import itertools
import json
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

import kvgen
from kvgen.attention.contributions import Contributions
from kvgen.attention.diagnostics import diagnose
from kvgen.attention.export import FORMAT, VERSION
from kvgen.attention.extras import check_arrays, extras_of, typed
from kvgen.attention.lens import Lens
from kvgen.attention.record import RecordedRun
from kvgen.attention.residual import ResidualNorms
from kvgen.engine.tensors import Array
from kvgen.engine.trace import AttentionTrace, LayerTrace
from kvgen.errors import KvgenError

# What broken files make NumPy, zipfile, zlib, json and safetensors raise, and a wrong meta here.
_BROKEN = (
    KeyError, ValueError, TypeError, IndexError, EOFError, AttributeError, OverflowError,
    MemoryError, SyntaxError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
    SafetensorError,
)  # fmt: skip
_LAYOUT = {
    "token_ids": "i4 T",
    "layer_index": "i4 L",
    "head_index": "i4 H",
    "q": "f4 LTHD",
    "k": "f4 LTGD",
    "v": "f4 LTGE",  # E is D in every model so far
    "z": "f4 LTHE",
}
# Facts of the run that views and messages name: their types, and what stands for a missing one.
_RUN: dict[str, tuple[Any, Any]] = {
    "model": (str, "a model"),
    "dtype": (str, "unknown"),
    "sampling": (str, "unknown"),
    "seed": (int | None, None),
    "rope_dims": (list, []),
}
_NORMS = {"value_norms": "f4 LTH", "output_norms": "f4 LTH"}


class SavedRecording(NamedTuple):
    """The contents of a file: the recording, its tokens' bytes, and meta."""

    recording: RecordedRun
    tokens: list[bytes]
    meta: dict[str, Any]
    lens: Lens | None
    contributions: Contributions | None
    names: dict[int, bytes]  # of candidates
    page_facts: Mapping[str, Any] = MappingProxyType({})  # what only a page holds


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
            return arrays, _meta((file.metadata() or {})["meta"])
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, _meta(str(arrays.pop("meta")))


def _meta(text: str) -> dict[str, Any]:
    """The object that a text holds. Raises ValueError for NaN and infinities, which JSON lacks."""

    def refuse(name: str) -> None:
        raise ValueError(f"its meta holds {name}")

    meta: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return meta


def _from_arrays(arrays: dict[str, Array], meta: dict[str, Any]) -> SavedRecording:
    check_arrays(arrays, _LAYOUT)
    meta |= {name: typed(meta.get(name, usual), kind, name) for name, (kind, usual) in _RUN.items()}
    T, L = len(arrays["token_ids"]), len(arrays["layer_index"])
    q, k, v, z = (arrays[name] for name in "qkvz")
    heads, group_size = tuple(arrays["head_index"].tolist()), int(meta["kv_group"])
    layers = arrays["layer_index"].tolist()
    if not (
        list(heads) == sorted(set(heads))
        and 0 <= heads[0] <= heads[-1] < group_size * k.shape[2]
        and layers == sorted(set(layers))
        and layers[0] >= 0
        and 1 <= meta["prompt_len"] <= T
    ):
        raise ValueError("its arrays do not belong together")
    trace = AttentionTrace(
        token_ids=tuple(arrays["token_ids"].tolist()),
        n_prompt=typed(meta["prompt_len"], int, "prompt_len"),
        layers=tuple(
            LayerTrace(
                layer=layer,
                heads=heads,
                group_size=group_size,
                scale=typed(meta["attn_scale"][row], float | int, "attn_scale"),
                softcap=typed(meta["softcap"][row], float | int | None, "softcap"),
                window=typed(meta["window"][row], int | None, "window"),
                q=q[row],
                k=k[row],
                v=v[row],
                z=z[row],
            )
            for row, layer in enumerate(layers)
        ),
    )
    norms = None
    if "value_norms" in arrays:
        check_arrays(arrays, _NORMS, L=L, T=T, H=len(heads))
        norms = ResidualNorms(arrays["value_norms"], arrays["output_norms"])
    states = arrays.get("states")
    if states is not None:
        check_arrays(arrays, {"states": "f4 STC"}, T=T)
    probe = typed(meta.get("probe"), int | None, "probe")
    if probe is not None and not 0 < 2 * probe <= T:
        raise ValueError(f"probe is {probe}")
    extras = extras_of(arrays, meta, n_tokens=T)
    recording = RecordedRun(
        trace=trace,
        sampled_last=typed(meta["sampled_last"], int | None, "sampled_last"),
        diagnostics=diagnose(trace, probe=probe),
        decode_rows=typed(
            meta["verify_decode_rows_max_abs"], float | int | None, "verify_decode_rows_max_abs"
        ),
        residual_norms=norms,
        predictions=extras.predictions,
        states=states,
    )
    tokens = _taken_apart("token", arrays, T)
    names = {}
    if "name_ids" in arrays:
        check_arrays(arrays, {"name_ids": "i4 M"})
        ids = arrays["name_ids"].tolist()
        names = dict(zip(ids, _taken_apart("name", arrays, len(ids)), strict=True))
    return SavedRecording(recording, tokens, meta, extras.lens, extras.contributions, names)


def _taken_apart(name: str, arrays: dict[str, Array], n: int) -> list[bytes]:
    """The `n` texts whose bytes lie one after another in an array."""
    check_arrays(arrays, {f"{name}_offsets": "i4 N"}, N=n + 1)
    offsets, together = arrays[f"{name}_offsets"].tolist(), arrays[f"{name}_bytes"]
    if together.dtype != np.uint8 or [0, *offsets, together.size] != sorted(
        [0, *offsets, together.size]
    ):
        raise ValueError(f"{name}_offsets are not those of {name}_bytes")
    return [together[begin:end].tobytes() for begin, end in itertools.pairwise(offsets)]
