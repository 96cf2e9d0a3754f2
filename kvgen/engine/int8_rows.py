"""Rows of keys and values as int8, one scale a row: a KV cache of a quarter of float32's size.

    row = scale * whole numbers from -127 to 127, the greatest magnitude of the row being 127

Keys have a few features that are far larger than the others, and these would leave the others no
digits. So keys are rotated by a Hadamard matrix first, which spreads every feature over the whole
row (QuaRot, arXiv:2404.00456); queries are rotated as well, and their dot products stay what they
were. Values have no such features, and are kept as they are.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvgen.engine.tensors import FloatArray

Int8Array = npt.NDArray[np.int8]
LARGEST = 127
# A row whose greatest magnitude is below this is kept as zeros: the factor 127 / magnitude must
# not overflow.
SMALLEST_PEAK = np.float32(1e-30)


def hadamard(rows: FloatArray) -> FloatArray:
    """Rotate rows [..., D] by a Hadamard matrix; to rotate twice gives the rows again.

    Where D is no power of two, each part of the row with the largest power of two that divides D.

    >>> hadamard(np.float32([3, 1])) * np.float32(2**0.5)
    array([4., 2.], dtype=float32)
    """
    D = rows.shape[-1]
    size = D & -D
    parts = rows.reshape(*rows.shape[:-1], D // size, size)
    rotated: FloatArray = (parts @ _matrix(size)).reshape(rows.shape)
    return rotated


@lru_cache
def _matrix(size: int) -> FloatArray:
    """The Hadamard matrix [size, size] for a power of two (Sylvester's), orthonormal."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    orthonormal: FloatArray = (matrix / np.sqrt(size)).astype(np.float32)
    return orthonormal


def to_int8(rows: FloatArray) -> tuple[Int8Array, FloatArray]:
    """Rows [..., D] as whole numbers [..., D] and scales [...].

    A row with NaN or infinity gets the scale NaN.

    >>> to_int8(np.float32([[-2.54, 1.28, 0]]))
    (array([[-127,   64,    0]], dtype=int8), array([0.02], dtype=float32))
    """
    peaks = np.abs(rows).max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factors = np.where(peaks >= SMALLEST_PEAK, LARGEST / peaks, 0)
        scales = np.where(peaks >= SMALLEST_PEAK, peaks / LARGEST, 0) + 0 * peaks
        numbers = np.rint(np.nan_to_num(rows * factors[..., None], nan=0, posinf=0, neginf=0))
    return numbers.astype(np.int8), scales.astype(np.float32)


def from_int8(numbers: Int8Array, scales: FloatArray) -> FloatArray:
    """The rows [..., D] that whole numbers [..., D] and scales [...] stand for."""
    rows: FloatArray = numbers * scales[..., None]
    return rows
