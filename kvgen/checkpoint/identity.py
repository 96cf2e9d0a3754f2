"""The identity of a model: a hash that other weights or another configuration do not share."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from kvgen.checkpoint.files import open_file, read_json
from kvgen.checkpoint.folder import INDEX, WEIGHTS, shards_of_index
from kvgen.checkpoint.header import LONGEST_HEADER
from kvgen.errors import CheckpointError

_N_BLOCKS = 64  # sampled from each file of weights
_BLOCK_BYTES = 4096
# Keys of config.json that say nothing about the numbers that a model computes.
_BOOKKEEPING = frozenset({"_name_or_path", "transformers_version", "use_cache"})


def model_identity(folder: Path) -> str:
    """A SHA-256 of a model's configuration and weights, in hexadecimal.

    Over config.json (the order of its keys and bookkeeping such as `transformers_version` do not
    count) and, of each file of weights, its name, size and header, and 64 blocks of 4 KiB spread
    evenly over its numbers. A change of a few numbers between these blocks is not seen: reading
    every byte would take as long as loading the model. Raises CheckpointError for missing files.
    """
    config = read_json(folder / "config.json")
    relevant = {key: value for key, value in config.items() if key not in _BOOKKEEPING}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
    names = [WEIGHTS] if (folder / WEIGHTS).exists() else shards_of_index(folder / INDEX)
    for name in names:
        try:
            digest.update(f"\0{name}\0".encode() + _sampled(folder / name))
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _sampled(path: Path) -> bytes:
    """A SHA-256 over the size, the header and some blocks of one safetensors file."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        length = min(int.from_bytes(file.read(8), "little"), LONGEST_HEADER)
        digest.update(file.read(length))
        begin = 8 + length
        last = max(begin, size - _BLOCK_BYTES)
        for n in range(_N_BLOCKS):
            file.seek(begin + (last - begin) * n // (_N_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.digest()
