"""Tiny random checkpoints with awkward numbers, written as real files.

Weights come from NumPy's legacy generator, whose stream is frozen: the golden files hold logits
only, and `make_golden.py` rebuilds the same models for the reference implementation.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.configs import CONFIGS

Tensors = dict[str, np.ndarray]

GOLDEN = Path(__file__).parent / "golden"


def read_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors, as the reference implementation saves them."""
    with np.load(GOLDEN / f"{name}.npz") as golden:
        return {key: tuple(shape) for key, shape in json.loads(str(golden["shapes"])).items()}


def make_tensors(name: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Tensors:
    """Float32 weights whose logits are of order one: no norm weight is 1, no bias is 0."""
    family = CONFIGS[name]["model_type"]
    transposed, stored_as_difference = family == "gpt2", family.startswith("gemma")
    tensors = {}
    for key, shape in (shapes or read_shapes(name)).items():
        random = np.random.RandomState(zlib.crc32(key.encode()))
        numbers = random.standard_normal(shape)
        if key.endswith("bias"):
            numbers *= 0.2
        elif "norm" in key or ".ln_" in key:
            numbers = 0.2 * numbers + (0 if stored_as_difference else 1)
        else:
            fan_in = shape[0] if transposed and ".c_" in key else shape[1]
            numbers *= 1.5 / np.sqrt(fan_in)
        tensors[key] = numbers.astype(np.float32)
    return tensors


def make_ids(length: int, *, vocab_size: int = 131, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.RandomState(seed).randint(0, vocab_size, length).tolist()


def as_stored(tensors: Tensors, kind: str) -> Tensors:
    """The tensors rounded to F32, F16 or BF16."""
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}


def write_checkpoint(
    folder: Path, name: str, tensors: Tensors | None = None, *, kind: str = "F32"
) -> Path:
    """A checkpoint folder with config.json and model.safetensors, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]), encoding="utf-8")
    tensors = make_tensors(name) if tensors is None else tensors
    save_file(as_stored(tensors, kind), folder / "model.safetensors")
    return folder


def write_shards(folder: Path, name: str, *, n_shards: int = 3) -> Path:
    """The same checkpoint spread over several files with an index."""
    tensors = make_tensors(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]), encoding="utf-8")
    weight_map = {}
    for shard in range(n_shards):
        file = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[shard::n_shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
