"""A Hugging Face folder on disk: its JSON files, and its tensors mapped, not copied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from kvgen.errors import CheckpointError
from kvgen.tensors import BFloat16, Dense, Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The first bytes of what people have in hand when it is not a safetensors file.
_IMPOSTORS = (
    (b"version https://git-lfs", "a git-lfs pointer: run `git lfs pull` to fetch the real file"),
    (b"<", "a web page: the download saved an error or login page instead of the file"),
    (b"PK", "a PyTorch .bin archive: convert it to safetensors"),
    (b"GGUF", "a GGUF file: kvgen reads the original safetensors checkpoint"),
)
_LONGEST_HEADER = 100_000_000  # bytes; the library's own bound
_READABLE: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file: its bytes stay in the mapped file until they are read."""

    name: str
    file: Path
    kind: str  # the file's own word: F32, BF16, I64, ...
    shape: tuple[int, ...]
    mapped: npt.NDArray[np.uint8]

    def open(self) -> Tensor:
        """The tensor in its stored form. Raises CheckpointError for kinds other than floats."""
        if self.kind not in _READABLE:
            raise CheckpointError(
                f"{self.file}: tensor `{self.name}` is stored as {self.kind}; "
                f"kvgen reads {', '.join(_READABLE)}"
            )
        array = self.mapped.view(_READABLE[self.kind]).reshape(self.shape)
        if not array.flags.aligned:  # the header's length need not be a multiple of the item size
            array = array.copy()
        return BFloat16(array) if self.kind == "BF16" else Dense(array)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's config.json and tensors, read as far as they can be without knowing its family."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def name(self) -> str:
        """The folder's name; in the Hub's cache (models--org--name/snapshots/...) the model's."""
        folder = self.folder.resolve()
        if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
            return folder.parents[1].name.removeprefix("models--").replace("--", "/")
        return folder.name


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a model folder.

    Raises CheckpointError where a file in it is missing, broken or not what its name says.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; name the folder that holds config.json")
    try:
        return Checkpoint(
            folder=folder,
            config=read_json(folder / "config.json"),
            tensors=_map_all(folder),
        )
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from None


def fingerprint(folder: Path) -> str:
    """A short name for a model's configuration and weights, by their sizes and headers.

    SHA-256 over config.json and, of each .safetensors file, its name, size and header; the numbers
    themselves are not read.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(length))
    return digest.hexdigest()[:16]


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """A JSON object; {} where the file is missing and need not be there.

    Raises CheckpointError where it is missing otherwise, or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise CheckpointError(f"{path.parent}: {path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: should hold a JSON object")
    return content


def _map_all(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by name, from one file or from the shards of an index."""
    if (folder / WEIGHTS).exists():
        shards = [WEIGHTS]
    elif (folder / INDEX).exists():
        shards = shards_of_index(folder / INDEX)
        for shard in shards:
            if not (folder / shard).exists():
                raise CheckpointError(
                    f"{folder}: {shard} is missing; the download may be incomplete"
                )
    else:
        raise CheckpointError(missing_weights(folder, [path.name for path in folder.iterdir()]))
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in _map_file(folder / shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"{folder}: tensor `{name}` is in both {tensors[name].file.name} and {shard}"
                )
            tensors[name] = tensor
    return tensors


def missing_weights(model: Path | str, files: Collection[str]) -> str:
    """What to say of a folder or a repository with these files, but none that kvgen can map."""
    others = sorted(
        (name for name in files if name.endswith((".bin", ".gguf", ".pt"))),
        key=lambda name: (not name.endswith(".bin"), name),
    )
    instead = ""
    if others and others[0].endswith(".bin"):
        place = model if isinstance(model, Path) else f"weights/{model.split('/')[-1]}"
        instead = (
            f' (found {others[0]}; to convert: python -c "from transformers '
            f"import AutoModelForCausalLM as M, AutoTokenizer as T; [X.from_pretrained('{model}')"
            f".save_pretrained('{place}') for X in (M, T)]\")"
        )
    elif others:
        instead = f" (found {others[0]}, which kvgen does not read)"
    return f"{model}: {WEIGHTS} is missing{instead}"


def shards_of_index(index: Path) -> list[str]:
    """The files that an index names, in order. Raises CheckpointError where it cannot be read."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: `weight_map` should name the file of each tensor")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: {shard!r} is not the name of a file beside it")
    return sorted(set(weight_map.values()))


def _map_file(path: Path) -> dict[str, StoredTensor]:
    """Map one safetensors file: a length, a JSON header, bytes.

    The library validates the file (offsets in order, sizes that fit the shapes); the header is
    then read once more for the offsets, because the library only hands out copies.
    """
    try:
        with path.open("rb") as file:
            start = file.read(32)
            header_length = int.from_bytes(start[:8], "little")
            for magic, meaning in _IMPOSTORS:
                # What these bytes would mean as a length is far beyond any header.
                if start.startswith(magic) and header_length > _LONGEST_HEADER:
                    raise CheckpointError(f"{path}: is not safetensors but {meaning}")
            size = file.seek(0, 2)
            if len(start) < 8 or 8 + header_length > size:
                raise CheckpointError(
                    f"{path}: is truncated ({size:,} bytes); download it again"
                    if size
                    else f"{path}: is empty; download it again"
                )
            file.seek(8)
            header = json.loads(file.read(header_length))
        offsets = {
            name: tuple(entry["data_offsets"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
        expected = 8 + header_length + max((end for _, end in offsets.values()), default=0)
        if size < expected:
            raise CheckpointError(
                f"{path}: is truncated ({size:,} of {expected:,} bytes); download it again"
            )
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (
        safetensors.SafetensorError,
        ValueError,
        RecursionError,
        AttributeError,
        KeyError,
        TypeError,
    ):
        raise CheckpointError(f"{path}: its safetensors header is broken") from None
    mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))
    base = 8 + header_length
    return {
        name: StoredTensor(
            name=name,
            file=path,
            kind=header[name]["dtype"],
            shape=tuple(header[name]["shape"]),
            mapped=mapped[base + begin : base + end],
        )
        for name, (begin, end) in offsets.items()
    }
