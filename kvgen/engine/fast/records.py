"""Records of layout.py as a table of 64-bit numbers, from which compiled code builds them again.

Generic over their fields: a record may get another field without a change here. A number takes one
place of the table, an array its address and its shape, and an absent record (None) none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt


class ArrayKind(NamedTuple):
    """An array in C order."""

    dtype: str
    n_dimensions: int


class RecordKind(NamedTuple):
    """A NamedTuple, and the kinds of its fields."""

    record: type
    fields: tuple[Any, ...]


# What compiled code has to know of a value: the name of a number's type, or None for None.
Kind: TypeAlias = str | ArrayKind | RecordKind | None
_NUMBERS: dict[type, str] = {
    bool: "bool",
    int: "int64",
    np.int64: "int64",
    np.float32: "float32",
}


def kind_of(value: Any) -> Kind:
    """The kind of a number, an array, None, or a record of these."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        assert flags.c_contiguous and flags.aligned and flags.writeable
        return ArrayKind(value.dtype.name, value.ndim)
    if isinstance(value, tuple):
        return RecordKind(type(value), tuple(map(kind_of, value)))
    return None if value is None else _NUMBERS[type(value)]


def described(kind: Kind) -> str:
    """A kind in words, the same in every process."""
    if isinstance(kind, RecordKind):
        return f"{kind.record.__name__}({', '.join(map(described, kind.fields))})"
    if isinstance(kind, ArrayKind):
        return f"{kind.dtype}[{kind.n_dimensions}]"
    return str(kind)


def table_of(values: Any) -> npt.NDArray[np.int64]:
    """The numbers and addresses; the arrays must stay alive."""
    return np.fromiter(_places(values), np.int64)


def _places(value: Any) -> Iterator[int]:
    if isinstance(value, np.ndarray):
        yield value.ctypes.data
        yield from value.shape
    elif isinstance(value, tuple):
        for field in value:
            yield from _places(field)
    elif isinstance(value, np.float32):
        yield int(value.view(np.uint32))
    elif value is not None:
        yield int(value)
