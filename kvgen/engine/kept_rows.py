"""How rows of keys and values are kept: as float32, as float16, or as int8 with one scale a row.

In int8 a KV cache has about a quarter of float32's size:

    row = scale * whole numbers from -127 to 127 (`kvgen.engine.tensors.round_rows`)

Keys have a few features that are far larger than the others, and these would leave the others no
digits. So keys are multiplied by an orthonormal Hadamard matrix first, which spreads every feature
over the whole row (QuaRot, arXiv:2404.00456); queries are transformed alike, and the dot products
stay what they were. Values have no such features, and are kept as they are.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvgen.choices import CacheDTypeName, RowKind
from kvgen.engine.tensors import Array, FloatArray, round_rows
from kvgen.errors import NonFiniteError

KEPT_TYPES: dict[CacheDTypeName, type] = {"f32": np.float32, "f16": np.float16, "int8": np.int8}


def as_kept(kind: RowKind, rows: FloatArray, *, int8: bool) -> tuple[Array, ...]:
    """Rows [..., D] as a cache takes them in; in int8 with their scales [...]."""
    if not int8:
        return (rows,)
    return round_rows(hadamard(rows) if kind == "k" else rows)


def as_floats(kind: RowKind, numbers: Array, scales: FloatArray | None = None) -> FloatArray:
    """Kept rows [..., D], in int8 with scales [...], as float32: a view where they are kept so."""
    if scales is None:
        return numbers.astype(np.float32, copy=False)
    rows = from_int8(numbers, scales)
    return hadamard(rows) if kind == "k" else rows


def beyond_float16(layer: int) -> NonFiniteError:
    """What to raise where a row of a layer does not fit a cache of float16."""
    return NonFiniteError(
        f"layer {layer}: a key or value is beyond the range of a float16 cache: use "
        "--cache-dtype f32"
    )


def hadamard(rows: FloatArray) -> FloatArray:
    """The orthonormal Hadamard transform of rows [..., D]; applied twice it gives the rows again.

    Where D is no power of two, each part of the row with the largest power of two that divides D.

    >>> hadamard(np.float32([3, 1])) * np.float32(2**0.5)
    array([4., 2.], dtype=float32)
    """
    D = rows.shape[-1]
    size = D & -D
    parts = rows.reshape(*rows.shape[:-1], D // size, size)
    transformed: FloatArray = (parts @ _matrix(size)).reshape(rows.shape)
    return transformed


@lru_cache
def _matrix(size: int) -> FloatArray:
    """The Hadamard matrix [size, size] for a power of two (Sylvester's), orthonormal."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    orthonormal: FloatArray = (matrix / np.sqrt(size)).astype(np.float32)
    return orthonormal


def from_int8(numbers: npt.NDArray[np.int8], scales: FloatArray) -> FloatArray:
    """The rows [..., D] that whole numbers [..., D] and scales [...] stand for."""
    rows: FloatArray = numbers * scales[..., None]
    return rows
