"""A Hugging Face folder on disk: its JSON files, and its tensors mapped, not copied."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kvgen.checkpoint.files import open_file, read_file, read_json
from kvgen.checkpoint.header import LONGEST_HEADER, parse_header
from kvgen.engine.tensors import NUMPY_TYPES, Dense, Tensor
from kvgen.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The first bytes of what people have in hand when it is not a safetensors file.
_IMPOSTORS = (
    (b"version https://git-lfs", "a git-lfs pointer: run `git lfs pull` to fetch the real file"),
    (b"<", "a web page: the download saved an error or login page instead of the file"),
    (b"PK", "a PyTorch .bin archive: convert it to safetensors"),
    (b"GGUF", "a GGUF file: kvgen reads the original safetensors checkpoint"),
)
_READABLE = {name.upper(): kind for name, kind in NUMPY_TYPES.items()}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file: its bytes stay in the mapped file until they are read."""

    name: str
    file: Path
    kind: str  # the file's own word: F32, BF16, I64, ...
    shape: tuple[int, ...]
    mapped: npt.NDArray[np.uint8]

    def equals(self, other: StoredTensor) -> bool:
        """Whether both hold the same, byte for byte."""
        return self is other or (
            (self.kind, self.shape) == (other.kind, other.shape)
            and np.array_equal(self.mapped, other.mapped)
        )

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
        return Dense(array)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's config.json and tensors, read as far as they can be without knowing its family."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]  # what the files say of themselves; names of shared tensors

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
    try:
        if not folder.is_dir():
            unread = " of a format that kvgen does not read" if folder.suffix == ".gguf" else ""
            raise CheckpointError(
                f"{folder}: is a file{unread}; name the folder that holds config.json and "
                "model.safetensors"
            )
        tensors, metadata = _map_all(folder)
        return Checkpoint(
            folder=folder,
            config=read_json(folder / "config.json"),
            tensors=tensors,
            metadata=metadata,
        )
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from None


def fingerprint(folder: Path) -> str:
    """A short name for a model's configuration and weights, by their sizes and headers.

    SHA-256 over config.json and, of each .safetensors file, its name, size and header; the numbers
    themselves are not read.
    """
    digest = hashlib.sha256(read_file(folder / "config.json"))
    for path in sorted(path for path in folder.glob("*.safetensors") if path.is_file()):
        with open_file(path) as file:
            length = min(int.from_bytes(file.read(8), "little"), LONGEST_HEADER)
            digest.update(f"{path.name} {_size(file)}".encode() + file.read(length))
    return digest.hexdigest()[:16]


def _map_all(folder: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor of the folder by name, from one file or from the shards of an index.

    And what the files say of themselves.
    """
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
    metadata: dict[str, str] = {}
    for shard in shards:
        mapped, said = _map_file(folder / shard)
        metadata |= said
        for name, tensor in mapped.items():
            if not tensors.setdefault(name, tensor).equals(tensor):
                raise CheckpointError(
                    f"{folder}: tensor `{name}` is in both {tensors[name].file.name} and {shard}, "
                    "with different numbers"
                )
    return tensors, metadata


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
        is_name = isinstance(shard, str) and Path(shard).name == shard
        if not is_name or shard in ("", "..") or "\0" in shard:
            raise CheckpointError(f"{index}: {shard!r} is not the name of a file beside it")
    return sorted(set(weight_map.values()))


def _map_file(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Map one safetensors file: a length, a JSON header, bytes."""
    try:
        with open_file(path) as file:
            start = file.read(32)
            header_length = int.from_bytes(start[:8], "little")
            for magic, meaning in _IMPOSTORS:
                # What these bytes would mean as a length is far beyond any header.
                if start.startswith(magic) and header_length > LONGEST_HEADER:
                    raise CheckpointError(f"{path}: is not safetensors but {meaning}")
            base = 8 + header_length
            size = _size(file)
            if len(start) < 8 or base > size:
                raise CheckpointError(
                    f"{path}: is truncated ({size:,} bytes); download it again"
                    if size
                    else f"{path}: is empty; download it again"
                )
            if header_length > LONGEST_HEADER:
                raise ValueError(f"it is {header_length:,} bytes long")
            file.seek(8)
            entries, metadata = parse_header(file.read(header_length))
            mapped = np.asarray(np.memmap(file, np.uint8, mode="r"))
            # A page beyond the end of the file would kill the process when it is looked at.
            size = min(mapped.nbytes, _size(file))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: its safetensors header is broken: {error}") from None
    expected = base + (entries[-1].end if entries else 0)
    if size < expected:
        raise CheckpointError(
            f"{path}: is truncated ({size:,} of {expected:,} bytes); download it again"
        )
    if size > expected:
        raise CheckpointError(
            f"{path}: has {size - expected:,} bytes behind its last tensor; download it again"
        )
    return {
        entry.name: StoredTensor(
            name=entry.name,
            file=path,
            kind=entry.kind,
            shape=entry.shape,
            mapped=mapped[base + entry.begin : base + entry.end],
        )
        for entry in entries
    }, metadata


def _size(file: BinaryIO) -> int:
    """Bytes that the file has at this moment."""
    return os.fstat(file.fileno()).st_size
