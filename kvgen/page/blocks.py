"""Arrays as text inside an HTML file: typed, compressed, and read again by `web/decode.js`.

A block is several arrays one after another, compressed by zlib (the `deflate` of a browser's
DecompressionStream, RFC 1950) and written in base64. Numbers are little-endian. Each array begins
at a multiple of four bytes.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kvgen.engine.tensors import Array, FloatArray

_DTYPES = {"float32": "f32", "int16": "i16", "uint8": "u8"}
_LARGEST_I16, _LARGEST_U8 = 32767, 255
_MOST_ROWS = 512  # of a map that is kept as it is
_FAST = 6  # zlib's level: 9 takes twice the time for one per cent


def encode(arrays: Mapping[str, Array]) -> tuple[list[dict[str, Any]], str]:
    """Where each array lies in the block, by name, type, shape and first byte; and the block."""
    parts: list[bytes] = []
    places, offset = [], 0
    for name, array in arrays.items():
        dtype = _DTYPES[array.dtype.name]
        places.append({"name": name, "dtype": dtype, "shape": array.shape, "offset": offset})
        content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        parts.append(content.ljust(-(-len(content) // 4) * 4, b"\0"))
        offset += len(parts[-1])
    return places, base64.b64encode(zlib.compress(b"".join(parts), _FAST)).decode()


def vectors_in_16_bits(vectors: FloatArray) -> tuple[npt.NDArray[np.int16], FloatArray]:
    """Vectors [..., D] as whole numbers, and the scale [...] that they are multiplied with.

    The greatest number of each vector becomes 32767, so that none is off by more than 1.6e-5 of it.
    """
    scales = np.abs(vectors).max(axis=-1, initial=0) / np.float32(_LARGEST_I16)
    divisors = np.where(scales > 0, scales, 1)[..., None]
    return np.rint(vectors / divisors).astype(np.int16), np.asarray(scales, np.float32)


def weights_in_8_bits(weights: FloatArray) -> npt.NDArray[np.uint8]:
    """Weights of 0..1 as 255 times their square root: small ones are told apart, too."""
    roots = np.rint(np.sqrt(np.clip(weights, 0, 1)) * _LARGEST_U8)
    return np.asarray(roots, np.uint8)


def lower_triangle(maps: Array) -> Array:
    """The rows of causal maps [..., T, T] one after another, each up to its own key."""
    T = maps.shape[-1]
    rows, columns = np.tril_indices(T)
    return maps[..., rows, columns]


def n_neighbours(n_tokens: int) -> int:
    """How many neighbouring tokens share a row and a column of a map in a page."""
    return math.ceil(n_tokens / _MOST_ROWS)


def greatest_of_neighbours(weights: Array, size: int) -> Array:
    """Maps [..., T, T] pooled to the greatest of size x size neighbours."""
    if size == 1:
        return weights
    starts = np.arange(0, weights.shape[-1], size)
    by_rows = np.maximum.reduceat(weights, starts, axis=-2)
    return np.maximum.reduceat(by_rows, starts, axis=-1)
