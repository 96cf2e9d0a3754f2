"""How numbers are stored: a stored tensor gives float32 when it is read.

Both kinds answer the same calls, so a weight is a weight whatever its width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
DTypeName = Literal["f32", "bf16", "f16"]


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


@dataclass(frozen=True, slots=True)
class Dense:
    """float32 or float16 numbers as NumPy knows them."""

    stored: Array

    @property
    def dtype(self) -> DTypeName:
        return "f32" if self.stored.dtype == np.float32 else "f16"

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

    def view(self, array: Array) -> Dense:
        """The same kind of storage around another array (a slice or a transpose of this one)."""
        return Dense(array)


@dataclass(frozen=True, slots=True)
class BFloat16:
    """bfloat16 kept as its bits in uint16: the upper half of a float32.

    >>> BFloat16(np.array([0x3F80], np.uint16)).dequantize()
    array([1.], dtype=float32)
    """

    stored: npt.NDArray[np.uint16]

    @property
    def dtype(self) -> DTypeName:
        return "bf16"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def rows(self, ids: npt.NDArray[np.int64]) -> FloatArray:
        """The named rows as float32 [len(ids), ...]."""
        return _widen_bf16(self.stored[ids])

    def dequantize(self) -> FloatArray:
        """The whole tensor as float32, a copy."""
        return _widen_bf16(self.stored)

    def view(self, array: Array) -> BFloat16:
        """The same kind of storage around another array (a slice or a transpose of this one)."""
        return BFloat16(array)


def quantize(numbers: FloatArray, dtype: DTypeName) -> Tensor:
    """Float32 numbers stored as `dtype`, rounded to nearest, ties to even.

    Numbers beyond float16's range become infinite, which the check of the logits reports.
    """
    if dtype == "f32":
        return Dense(numbers)
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return Dense(numbers.astype(np.float16))
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    # A NaN's payload may sit in the lower half only; rounding would turn it into infinity.
    return BFloat16(np.where(np.isnan(numbers), 0x7FC0, rounded).astype(np.uint16))


def convert(tensor: Tensor, dtype: DTypeName) -> Tensor:
    """The tensor stored as `dtype`: itself where it is so already."""
    return tensor if tensor.dtype == dtype else quantize(tensor.dequantize(), dtype)


def _widen_bf16(bits: npt.NDArray[np.uint16]) -> FloatArray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
