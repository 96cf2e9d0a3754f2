"""Reading a recording that `kvgen.attention.export` has written."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

import kvgen
from kvgen.attention.contributions import Contributions
from kvgen.attention.diagnostics import diagnose
from kvgen.attention.export import FORMAT, VERSION
from kvgen.attention.extras import extras_of
from kvgen.attention.lens import Lens
from kvgen.attention.record import RecordedRun
from kvgen.attention.residual import ResidualNorms
from kvgen.engine.tensors import Array
from kvgen.engine.trace import AttentionTrace, LayerTrace
from kvgen.errors import KvgenError

_BROKEN = (
    KeyError, ValueError, TypeError, IndexError, EOFError, AttributeError, zipfile.BadZipFile,
    SafetensorError,
)  # fmt: skip


class SavedRecording(NamedTuple):
    """The contents of a file: the recording, its tokens' bytes, and meta."""

    recording: RecordedRun
    tokens: list[bytes]
    meta: dict[str, Any]
    lens: Lens | None
    contributions: Contributions | None
    names: dict[int, bytes]  # of candidates


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
    states = arrays.get("states")
    if states is not None and (states.ndim, states.shape[1]) != (3, T):
        raise ValueError("its arrays do not belong together")
    extras = extras_of(arrays, meta)
    recording = RecordedRun(
        trace=trace,
        sampled_last=meta["sampled_last"],
        diagnostics=diagnose(trace, probe=meta.get("probe")),
        decode_rows=meta["verify_decode_rows_max_abs"],
        residual_norms=norms,
        predictions=extras.predictions,
        states=states,
    )
    tokens = _taken_apart("token", arrays)
    names = {}
    if "name_ids" in arrays:
        ids = arrays["name_ids"].tolist()
        names = dict(zip(ids, _taken_apart("name", arrays), strict=True))
    return SavedRecording(recording, tokens, meta, extras.lens, extras.contributions, names)


def _taken_apart(name: str, arrays: dict[str, Array]) -> list[bytes]:
    """The texts whose bytes lie one after another in an array."""
    offsets = arrays[f"{name}_offsets"].tolist()
    together = arrays[f"{name}_bytes"]
    return [together[begin:end].tobytes() for begin, end in itertools.pairwise(offsets)]
