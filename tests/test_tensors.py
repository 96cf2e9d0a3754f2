"""How numbers are stored: every bit pattern, against NumPy and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numba
import numpy as np
import pytest

from kvgen.choices import DTypeName
from kvgen.engine.fast.kernels.weight_access import widen
from kvgen.engine.tensors import Dense, convert, quantize

EVERY_PATTERN = np.arange(2**16, dtype=np.uint16)
SAMPLES = np.concatenate(
    [
        np.random.RandomState(0).standard_normal(10_000) * 10.0 ** np.arange(-42, 38).repeat(125),
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1 + 2**-9, 1 + 3 * 2**-9, 65504.0, 65520.0],
    ]
).astype(np.float32)


@numba.njit
def widen_all(stored: np.ndarray, wide: np.ndarray) -> None:
    for i in range(len(stored)):
        wide[i] = widen(stored[i])


def test_compiled_code_widens_every_f16_exactly() -> None:
    wide = np.empty(2**16, np.float32)
    widen_all(EVERY_PATTERN.view(np.int16), wide)
    np.testing.assert_array_equal(wide, EVERY_PATTERN.view(np.float16).astype(np.float32))


def test_compiled_code_widens_every_bf16_exactly() -> None:
    wide = np.empty(2**16, np.float32)
    widen_all(EVERY_PATTERN, wide)
    expected = EVERY_PATTERN.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(wide, expected)


@pytest.mark.filterwarnings("ignore:overflow")
def test_narrowing_rounds_to_nearest_even() -> None:
    bf16 = quantize(SAMPLES, "bf16").dequantize()
    np.testing.assert_array_equal(bf16, SAMPLES.astype(ml_dtypes.bfloat16).astype(np.float32))
    f16 = quantize(SAMPLES, "f16").dequantize()
    np.testing.assert_array_equal(f16, SAMPLES.astype(np.float16).astype(np.float32))


def test_a_nan_stays_one_whatever_its_payload() -> None:
    nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(quantize(nan, "bf16").dequantize()).all()


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_rows_and_sizes(dtype: DTypeName) -> None:
    numbers = np.arange(12, dtype=np.float32).reshape(4, 3)
    tensor = quantize(numbers, dtype)
    assert (tensor.dtype, tensor.shape) == (dtype, (4, 3))
    assert tensor.nbytes == (48 if dtype == "f32" else 24)
    np.testing.assert_array_equal(tensor.rows(np.array([2, 0])), numbers[[2, 0]])
    assert tensor.rows(np.array([1])).dtype == np.float32
    assert convert(tensor, dtype) is tensor


def test_float32_is_not_copied() -> None:
    numbers = np.ones(3, np.float32)
    assert Dense(numbers).dequantize() is numbers
    assert quantize(numbers, "f32").stored is numbers
