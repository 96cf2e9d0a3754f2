"""The width that weights are stored in, and whether memory suffices for another."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from kvgen.checkpoint.folder import StoredTensor
from kvgen.choices import DTypeName
from kvgen.engine.memory import require_memory
from kvgen.engine.tensors import NUMPY_TYPES

WIDTHS: dict[str, DTypeName] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def converted_bytes(tensors: Iterable[StoredTensor], dtype: DTypeName) -> int:
    """Bytes, as `dtype`, of the tensors that are stored in another width."""
    item_bytes = 1 if dtype == "int8" else NUMPY_TYPES[dtype].itemsize
    others = (each for each in tensors if WIDTHS.get(each.kind) != dtype)
    return item_bytes * sum(prod(each.shape) for each in others)


def require_memory_for(tensors: Iterable[StoredTensor], dtype: DTypeName) -> None:
    """Raise KvgenError where tensors cannot be in memory in that width."""
    require_memory(
        "leave out --dtype, for weights are then used where they lie in the file, or take a "
        "smaller model",
        **{f"weights as {dtype}": converted_bytes(tensors, dtype)},
    )
