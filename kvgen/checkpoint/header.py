"""The header of a safetensors file: what it says of each tensor, believed only where it fits.

As strict as the safetensors library (safetensors/src/tensor.rs), and stricter with names: none may
come twice, since nothing says which of the two is meant, nor hold characters that do not print.
Only the padding may be NULs as well as spaces: there are such files.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any, NamedTuple, NoReturn

LONGEST_HEADER = 100_000_000  # bytes; the library's own bound
_LONGEST_NAME = 1000  # characters
_METADATA = "__metadata__"
_BITS = (
    {"F4": 4}
    | dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6)
    | dict.fromkeys(
        ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8
    )
    | dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
    | dict.fromkeys(("I32", "U32", "F32"), 32)
    | dict.fromkeys(("I64", "U64", "F64", "C64"), 64)
)


class Entry(NamedTuple):
    """One tensor: its bytes lie from `begin` to `end`, counted from the end of the header."""

    name: str
    kind: str  # the file's own word: F32, BF16, I64, ...
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """The tensors in the order of their bytes, and what the file says of itself."""

    entries: list[Entry]
    metadata: dict[str, str]


def parse_header(header: bytes) -> Header:
    """What a header says, where its tensors' bytes follow one another without gaps.

    Raises ValueError, with the reason, where the header is not as it should be. Whether the file
    is long enough for its last tensor is left to the caller.

    >>> parse_header(b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}').entries
    [Entry(name='w', kind='F32', shape=(2,), begin=0, end=8)]
    """
    try:
        content = json.loads(
            header.rstrip(b"\0").decode(), object_pairs_hook=_once, parse_constant=_refuse
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    metadata = content.pop(_METADATA, None)
    if metadata is not None and not _are_texts(metadata):
        raise ValueError(f"{_METADATA} should be an object of texts")
    entries = [_entry(name, fields) for name, fields in content.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise ValueError(
                f"tensor `{entry.name}` begins at byte {entry.begin}, "
                f"and the one before it ends at {end}"
            )
        end = entry.end
    return Header(entries, metadata or {})


def _entry(name: str, fields: Any) -> Entry:
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise ValueError(f"{name[:80]!r} is not a name for a tensor")
    if not isinstance(fields, dict):
        raise ValueError(f"tensor `{name}` should be an object")
    kind: Any = fields.get("dtype")
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    if not isinstance(kind, str) or kind not in _BITS:
        raise ValueError(f"tensor `{name}` has an unknown dtype")
    if not _are_sizes(shape):
        raise ValueError(f"tensor `{name}`: shape should be a list of whole numbers")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor `{name}`: data_offsets should be two whole numbers")
    begin, end = offsets
    if 8 * (end - begin) != _BITS[kind] * prod(shape):
        raise ValueError(f"tensor `{name}` has {end - begin} bytes, which do not fit its shape")
    return Entry(name, kind, tuple(shape), begin, end)


def _are_texts(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())


def _are_sizes(numbers: Any) -> bool:
    """Whether it is a list of whole numbers from 0 on that fit into 64 bits."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**64 for n in numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} comes twice")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
