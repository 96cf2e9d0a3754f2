"""How numbers are stored: a stored tensor gives float32 when it is read.

Both kinds answer the same calls, so a weight is a weight whatever its width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from kvgen.choices import CacheDTypeName, DTypeName

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
NUMPY_TYPES: dict[DTypeName, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {kind: name for name, kind in NUMPY_TYPES.items()}


def usual_cache_dtype(dtype: DTypeName) -> CacheDTypeName:
    """How the compiled engine keeps keys and values unless told: no wider than needed."""
    return "f32" if dtype == "f32" else "f16"


_SMALLEST_PEAK = 1e-30  # of a row that int8 can hold: its scale must not be too small to divide by
LINE_BYTES = 64  # a line of the CPU's cache


def aligned_zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Zeros that begin at a line of the CPU's cache, so that no vector lies across two of them."""
    wanted = np.dtype(dtype)
    n_bytes = int(np.prod(shape)) * wanted.itemsize
    memory = np.zeros(n_bytes + LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % LINE_BYTES
    return memory[first : first + n_bytes].view(wanted).reshape(shape)


class Tensor(Protocol):
    """A weight as it is stored, row-major."""

    @property
    def dtype(self) -> DTypeName: ...
    @property
    def stored(self) -> Array: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def rows(self, ids: npt.NDArray[np.int64]) -> FloatArray: ...
    def dequantize(self) -> FloatArray: ...
    def view(self, array: Array) -> Tensor: ...
    def with_stored(self, array: Array) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Dense:
    """Numbers of float32, float16 or bfloat16.

    >>> Dense(np.array([0x3F80], np.uint16).view(NUMPY_TYPES["bf16"])).dequantize()
    array([1.], dtype=float32)
    """

    stored: Array

    @property
    def dtype(self) -> DTypeName:
        return _NAMES[self.stored.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def rows(self, ids: npt.NDArray[np.int64]) -> FloatArray:
        """The named rows as float32 [len(ids), ...]."""
        return self.stored[ids].astype(np.float32, copy=False)

    def dequantize(self) -> FloatArray:
        """The whole tensor as float32: itself where it is float32 already, else a copy."""
        return self.stored.astype(np.float32, copy=False)

    def with_stored(self, array: Array) -> Dense:
        """The same tensor around a copy of its numbers."""
        return Dense(array)

    def view(self, array: Array) -> Dense:
        """The same kind of storage around another array (a slice or a transpose of this one)."""
        return Dense(array)


@dataclass(frozen=True, slots=True)
class Int8:
    """Whole numbers from -127 to 127, and for each row the float32 that one of them stands for."""

    stored: npt.NDArray[np.int8]  # [out, in]
    scales: FloatArray  # [out]

    @property
    def dtype(self) -> DTypeName:
        return "int8"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes + self.scales.nbytes

    def rows(self, ids: npt.NDArray[np.int64]) -> FloatArray:
        """The named rows as float32 [len(ids), in]."""
        numbers: FloatArray = self.stored[ids] * self.scales[ids, None]
        return numbers

    def dequantize(self) -> FloatArray:
        """The whole tensor as float32, a copy."""
        numbers: FloatArray = self.stored * self.scales[:, None]
        return numbers

    def with_stored(self, array: Array) -> Int8:
        """The same tensor around a copy of its numbers."""
        return Int8(array, self.scales)

    def view(self, array: Array) -> Int8:
        """Not possible: a row's scale belongs to the whole row."""
        raise NotImplementedError("int8 tensors are made at load, after everything is in order")


def quantize(numbers: FloatArray, dtype: DTypeName) -> Tensor:
    """Float32 numbers stored as `dtype`, rounded to nearest, ties to even.

    Numbers beyond float16's range become infinite, which the check of the logits reports. In int8
    the greatest magnitude of each row becomes 127; a row with NaN or infinity becomes all NaN.
    """
    if dtype == "int8":
        return _to_int8(numbers)
    with np.errstate(over="ignore", invalid="ignore"):
        return Dense(numbers.astype(NUMPY_TYPES[dtype], copy=False))


def _to_int8(numbers: FloatArray) -> Int8:
    stored, scales = round_rows(numbers)
    # Kernels read up to a cache line beyond the end.
    memory = np.zeros(stored.size + 64, np.int8)
    memory[: stored.size] = stored.ravel()
    return Int8(memory[: stored.size].reshape(stored.shape), scales)


def round_rows(rows: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Rows [..., D] as whole numbers from -127 to 127 [..., D] and scales [...].

    A row with NaN or infinity gets the scale NaN; one whose numbers are all below 1e-30, zeros.

    >>> round_rows(np.float32([[-2.54, 1.28, 0]]))
    (array([[-127,   64,    0]], dtype=int8), array([0.02], dtype=float32))
    """
    peaks = np.maximum(rows.max(axis=-1), -rows.min(axis=-1))
    scales = np.where(peaks < _SMALLEST_PEAK, 0, peaks / np.float32(127))
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers = np.rint(rows * np.where(scales > 0, 1 / scales, 0)[..., None])
    numbers = np.nan_to_num(numbers, copy=False, nan=0)
    scales = np.where(np.isfinite(scales), scales, np.float32(np.nan))
    return numbers.astype(np.int8), scales.astype(np.float32)


def convert(tensor: Tensor, dtype: DTypeName) -> Tensor:
    """The tensor stored as `dtype`: itself where it is so already."""
    return tensor if tensor.dtype == dtype else quantize(tensor.dequantize(), dtype)
