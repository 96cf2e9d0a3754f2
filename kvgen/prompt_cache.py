"""A prompt cache: keys and values of a sequence in a file, for a later prompt that begins alike.

A safetensors file. `token_ids` [S] names the positions; `keys.N` and `values.N` [S, G, D] are those
of layer N as the KV cache holds them, in float32, float16 or int8, keys after RoPE. To int8 belong
the scales of rows, `key_scales.N` and `value_scales.N` [S, G] (`kvgen.engine.kept_rows`). The file
does not depend on the backend that wrote it. Its metadata says which model and which types the
numbers come from; any other run is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

import kvgen
from kvgen.atomic_write import write_file
from kvgen.checkpoint.files import open_file
from kvgen.checkpoint.identity import model_identity
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.rope import length_dependent, same_frequencies_from
from kvgen.engine.tensors import Array
from kvgen.errors import CheckpointError, UsageError
from kvgen.session import Session, shared_prefix

if TYPE_CHECKING:
    from kvgen.model import Model

FORMAT = "kvgen prompt cache"
VERSION = 1
# safetensors' words for the types of a cache's rows; those of int8 have scales beside them.
_KINDS = {"f32": "F32", "f16": "F16", "int8": "I8"}
_OPTIONS = {
    "dtype": "--dtype",
    "cache_dtype": "--cache-dtype",
    "prefill": "--prefill",
}
# What broken files and wrong metadata make safetensors, NumPy and the checks here raise.
_BROKEN = (
    SafetensorError, KeyError, ValueError, TypeError, IndexError, OverflowError, MemoryError,
    RuntimeError,
)  # fmt: skip


def load(path: str | Path, model: Model, session: Session, prompt_ids: Sequence[int]) -> list[int]:
    """Put the positions that a file shares with a prompt into a session of the same model.

    All but the prompt's last position may come from the file; a generation with this session then
    runs the others only (`Session.reuses_prefix`), and the prompt's RoPE decides whether those from
    the file have to run again. The result is what a run of the whole prompt gives: to the bit where
    both runs have `prefill="stepwise"`, one backend and one number of threads; else to the rounding
    of float32 sums and of the cache's type, and with `prefill="fast"` to that of this prefill,
    which does not round a single position.

    Returns the ids in the file. Raises FileNotFoundError where there is none,
    UsageError where the file belongs to another model, type or version, CheckpointError where it is
    broken.
    """
    path = Path(path)
    session.reuses_prefix = True
    try:
        open_file(path).close()  # refuses what is no file, such as a pipe
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            _check_origin(path, metadata, model)
            ids = _checked_ids(file, model)
            frequencies_from = int(metadata["frequencies_from"])
            ropes, longest = length_dependent(model.config), model.config.max_context
            if not (
                1 <= frequencies_from <= longest
                and same_frequencies_from(ropes, frequencies_from) == frequencies_from
            ):
                raise ValueError(f"frequencies_from is {frequencies_from}")
            n_shared = shared_prefix(ids, prompt_ids[:-1])
            if n_shared:
                layers = _layers(file, model, n_shared)
                _cache(session).restore(ids[:n_shared], layers, frequencies_from=frequencies_from)
            return ids
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _BROKEN as error:
        raise CheckpointError(
            f"{path}: is not a whole prompt cache ({error}): name another file"
        ) from None


def save(path: str | Path, model: Model, session: Session) -> None:
    """Write all positions that a session holds, as a whole or not at all.

    Raises UsageError where it holds none and KvgenError where the file cannot be written; the old
    content is left then.
    """
    if not session.ids:
        raise UsageError("there are no positions to save: run a prompt first")
    cache, n_layers = _cache(session), model.config.n_layers
    arrays = {"token_ids": np.array(session.ids, np.int32)}
    for layer in range(n_layers):
        for kind, rows in cache.stored_rows(layer).items():
            arrays[f"{kind}.{layer}"] = np.ascontiguousarray(rows)
    metadata = _origin(model) | {
        "kvgen": kvgen.__version__,
        "name": model.name,
        "frequencies_from": str(cache.frequencies_from),
    }
    write_file(path, safetensors_bytes(arrays, metadata), sync=True)


def _cache(session: Session) -> KeyValueCache:
    """The cache of a session on either engine; other kinds are for experiments."""
    assert isinstance(session.cache, KeyValueCache)
    return session.cache


def _origin(model: Model) -> dict[str, str]:
    """What a file and a run have to have in common."""
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "model": model_identity(model.folder),
        "dtype": model.engine.dtype,
        "cache_dtype": model.engine.cache_dtype,
        "prefill": model.engine.prefill,
    }


def _check_origin(path: Path, metadata: dict[str, str], model: Model) -> None:
    """Raise UsageError for the first thing that differs."""
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{path}: is not a prompt cache of kvgen: name another file")
    if metadata["version"] != str(VERSION):
        raise UsageError(
            f"{path}: has version {metadata['version']} of the format, and this is kvgen "
            f"{kvgen.__version__} for version {VERSION}: name another file"
        )
    ours = _origin(model)
    if metadata["model"] != ours["model"]:
        raise UsageError(
            f"{path}: was written for another model, {metadata['name']}, and this is {model.name} "
            "(the weights or config.json differ): name another file"
        )
    for name, option in _OPTIONS.items():
        if metadata[name] != ours[name]:
            raise UsageError(
                f"{path}: was written with {option} {metadata[name]}, and this run has "
                f"{ours[name]}: add {option} {metadata[name]}, or name another file"
            )


def _checked_ids(file: Any, model: Model) -> list[int]:
    """The ids of a file whose tensors have the names, types and shapes of this model's cache.

    No numbers but the ids are read. Raises ValueError.
    """
    config = model.config
    shapes = _shapes(model)
    if set(file.keys()) != {"token_ids", *shapes}:
        raise ValueError("its tensors are not those of this model")
    n_positions = file.get_slice("token_ids").get_shape()
    if len(n_positions) != 1 or not 1 <= n_positions[0] <= config.max_context:
        raise ValueError(f"token_ids has the shape {n_positions}")
    for name, (kind, shape) in shapes.items():
        stored = file.get_slice(name)
        if (stored.get_dtype(), stored.get_shape()) != (kind, [*n_positions, *shape]):
            raise ValueError(f"{name} is {stored.get_dtype()} {stored.get_shape()}")
    ids = file.get_tensor("token_ids")
    if ids.dtype != np.int32 or ids.min() < 0 or ids.max() >= config.vocab_size:
        raise ValueError("token_ids holds other numbers than ids of this model")
    listed: list[int] = ids.tolist()
    return listed


def _shapes(model: Model) -> dict[str, tuple[str, list[int]]]:
    """The type and shape of every tensor with a row for each position, by its name."""
    config, dtype = model.config, model.engine.cache_dtype
    of_layer = dict.fromkeys(("keys", "values"), (_KINDS[dtype], [config.head_dim]))
    if dtype == "int8":
        of_layer |= dict.fromkeys(("key_scales", "value_scales"), ("F32", []))
    return {
        f"{name}.{layer}": (kind, [config.n_kv_heads, *shape])
        for layer in range(config.n_layers)
        for name, (kind, shape) in of_layer.items()
    }


def _layers(file: Any, model: Model, n: int) -> Iterator[dict[str, Array]]:
    """What each layer keeps of the first `n` rows. Raises ValueError for NaN and infinities."""
    kinds = dict.fromkeys(name.split(".")[0] for name in _shapes(model))
    for layer in range(model.config.n_layers):
        rows = {kind: file.get_slice(f"{kind}.{layer}")[:n] for kind in kinds}
        if not all(np.isfinite(numbers).all() for numbers in rows.values()):
            raise ValueError(f"layer {layer} holds numbers that are not finite")
        yield rows
