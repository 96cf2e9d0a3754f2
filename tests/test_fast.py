"""The fast engine: kernels against plain twins, the team of threads, narrow caches."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core.errors import TypingError

import kvgen
from kvgen.choices import DTypeName
from kvgen.engine import formula
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.fast import layout
from kvgen.engine.fast.compiler import jit_entry
from kvgen.engine.fast.kernels.attention import attend
from kvgen.engine.fast.kernels.elementwise import activate, normalise
from kvgen.engine.fast.kernels.packed import multiply_packed, pack_tokens
from kvgen.engine.fast.kernels.products import dot_rows, tile_across, widen_rows
from kvgen.engine.fast.kernels.rounded import round_block, round_queries
from kvgen.engine.fast.kernels.simd import load, store
from kvgen.engine.fast.layout import (
    ROWS,
    Activation,
    HeadCache,
    Int8Head,
    Matrix,
    Packed,
    Queries,
    Range,
    RoundedHead,
    Rows,
    row_pitch,
)
from kvgen.engine.fast.probe import stored_ones
from kvgen.engine.fast.tables import KERNEL_TYPES
from kvgen.engine.fast.target import MULTIPLIES_BYTES, MULTIPLIES_PAIRS
from kvgen.engine.reference import ops
from kvgen.engine.tensors import Dense, Int8, Tensor, quantize, round_rows
from kvgen.errors import NonFiniteError, UsageError
from tests import tiny
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader

IDS = tiny.make_ids(65, seed=1)
# Row lengths: less than a vector, whole vectors, tails, several steps of every unrolled loop.
LENGTHS = [4, 16, 20, 54, 64, 127, 128, 331, 576]
DTYPES: tuple[DTypeName, ...] = ("f32", "bf16", "f16", "int8")


@jit_entry
def run_dot_rows(matrix, x, y, rows, digits):  # type: ignore[no-untyped-def]
    dot_rows(matrix, x, y, rows, digits)


@jit_entry
def run_tile(matrix, rows, x, panel, out):  # type: ignore[no-untyped-def]
    widen_rows(matrix, rows, panel)
    tile_across(Rows(panel, 0, matrix.n), x, out, matrix.n)


@jit_entry
def run_attend_rounded(n_rows, queries, head, rounded, positions, cap):  # type: ignore[no-untyped-def]
    for block in range(positions.begin // 64 * 64, positions.end, 64):
        round_block(head, block, positions.end, rounded)
    round_queries(n_rows, queries, rounded)
    attend(n_rows, queries, rounded, positions, np.float32(cap))


@jit_entry
def run_attend(n_rows, queries, head, positions, cap):  # type: ignore[no-untyped-def]
    attend(n_rows, queries, head, positions, np.float32(cap))


@jit_entry
def run_activate(x, n, activation):  # type: ignore[no-untyped-def]
    activate(x, 0, n, activation)


@jit_entry
def run_normalise(x, n, norm, y):  # type: ignore[no-untyped-def]
    normalise(x, n, norm, y)


@jit_entry
def run_copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(0, len(source), 16):
        store(target, i, load(source, i))


@jit_entry
def run_packed(matrix, rows, x, panel, packed, out):  # type: ignore[no-untyped-def]
    pack_tokens(x, matrix.n, Range(0, x.pitch), matrix.like, packed)
    multiply_packed(matrix, rows, packed, panel, out)


def matrix_of(tensor: Tensor, *, bias: np.ndarray, streamed: bool = False) -> Matrix:
    scales = tensor.scales.ctypes.data if isinstance(tensor, Int8) else 0
    like = np.empty(0, KERNEL_TYPES[tensor.dtype])
    return Matrix(tensor.stored.ctypes.data, scales, like, tensor.shape[1], bias, streamed)


def padded(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x.ravel(), np.zeros(16, np.float32)]).astype(np.float32)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_rows_of_a_matrix_times_a_vector(n: int, dtype: DTypeName, streamed: bool) -> None:
    random = np.random.RandomState(n)
    weight = quantize(random.randn(11, n).astype(np.float32), dtype)
    x, bias = random.randn(n).astype(np.float32), random.randn(11).astype(np.float32)
    y = np.full(11, 99, np.float32)
    digits = np.zeros(3 * (n + 64), np.int8)
    matrix = matrix_of(weight, bias=bias, streamed=streamed)
    run_dot_rows(matrix, padded(x), y, Range(1, 10), digits)
    expected = weight.dequantize().astype(np.float64) @ x + bias
    np.testing.assert_allclose(y[1:10], expected[1:10], rtol=0, atol=3e-6 * np.sqrt(n))
    assert y[0] == y[10] == 99


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 63, 66])
def test_what_is_not_finite_shows_in_whole_numbers(poison: float, place: int) -> None:
    x = np.ones(67, np.float32)
    x[place] = poison
    y = np.zeros(8, np.float32)
    weight = quantize(np.ones((8, 67), np.float32), "int8")
    matrix = matrix_of(weight, bias=np.zeros(8, np.float32))
    run_dot_rows(matrix, padded(x), y, Range(0, 8), np.zeros(400, np.int8))
    assert not np.isfinite(y).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_rows", range(1, ROWS + 1))
@pytest.mark.parametrize("pitch", [16, 32, 48, 64, 112, 192])
def test_a_tile_is_a_product_of_matrices(n_rows: int, pitch: int, dtype: DTypeName) -> None:
    n, random = 37, np.random.RandomState(pitch + n_rows)
    weight = quantize(random.randn(n_rows, n).astype(np.float32), dtype)
    x = random.randn(n, pitch).astype(np.float32)
    out, panel = np.zeros(ROWS * pitch, np.float32), np.full(ROWS * n, np.nan, np.float32)
    matrix = matrix_of(weight, bias=np.zeros(n_rows, np.float32))
    run_tile(matrix, Range(0, n_rows), Rows(x.ravel(), 0, pitch), panel, Rows(out, 0, pitch))
    expected = weight.dequantize() @ x
    np.testing.assert_allclose(out.reshape(ROWS, pitch)[:n_rows], expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("cache_type", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("D", [4, 20, 64, 80])
@pytest.mark.parametrize(
    ("n_rows", "length"), [(1, 1), (2, 63), (3, 65), (4, 300), (5, 700), (6, 64)]
)
def test_attention_by_segments_is_attention(
    n_rows: int, length: int, D: int, cache_type: type, rounded: bool
) -> None:
    if rounded and not MULTIPLIES_PAIRS:
        pytest.skip("this CPU has no such instruction")
    random = np.random.RandomState(length + D)
    pitch, blocks = row_pitch(D), -(-length // 64)
    q = random.randn(n_rows, D).astype(np.float32)
    keys = random.randn(length, D).astype(np.float32)
    values = random.randn(length, D).astype(np.float32)
    scales = [np.full(blocks * 64, np.nan, np.float32) for _ in range(2)]
    if cache_type is np.int8:
        (keys, scales[0][:length]), (values, scales[1][:length]) = (
            round_rows(keys),
            round_rows(values),
        )
    # What lies behind the end is never used.
    behind = 99 if cache_type is np.int8 else np.nan
    k = np.full((blocks * 64, D), behind, cache_type)
    k[:length] = keys
    v = np.full((blocks * 64, pitch), behind, cache_type)
    v[:length], v[:length, D:] = np.pad(values, ((0, 0), (0, pitch - D))), 0
    keys, values = (rows[:length, :D].astype(np.float32) for rows in (k, v))
    if cache_type is np.int8:
        keys, values = keys * scales[0][:length, None], values * scales[1][:length, None]
    k = k.reshape(blocks, 64, D).swapaxes(1, 2)
    seen_as = np.int16 if cache_type is np.float16 else cache_type
    firsts = np.array([max(0, length // 3 - row) for row in range(6)])
    ends = np.array([max(1, length - row) for row in range(6)])
    firsts = np.minimum(firsts, ends - 1)
    queries = Queries(
        q=np.zeros(6 * D, np.float32),
        firsts=firsts,
        ends=ends,
        scores=np.zeros(6 * 256, np.float32),
        out=np.zeros(6 * pitch, np.float32),
        peaks=np.zeros(6, np.float32),
        totals=np.zeros(6, np.float32),
        reads=np.zeros(2, np.int64),
    )
    queries.q[: n_rows * D] = q.ravel()
    stored = np.ascontiguousarray(k).view(seen_as).ravel(), v.view(seen_as).ravel()
    head = HeadCache(*stored, D, pitch)
    if cache_type is np.int8:
        head = Int8Head(*stored, *scales, D, pitch)
    positions = Range(int(firsts[:n_rows].min()), int(ends[:n_rows].max()))
    if rounded:
        words = [(blocks * 64) * ((D + 1) // 2), blocks * 32 * pitch, 6 * D, 6 * 128]
        in_pairs = RoundedHead(
            *(np.zeros(n, np.uint32) for n in words[:2]), D, pitch,
            *(np.zeros(n + 16, np.uint32) for n in words[2:]),
        )  # fmt: skip
        run_attend_rounded(n_rows, queries, head, in_pairs, positions, 0.0)
    else:
        run_attend(n_rows, queries, head, positions, 0.0)
    assert set(queries.reads) == {int((ends - firsts)[:n_rows].sum())}  # of K, and of V
    for row in range(n_rows):
        seen = slice(firsts[row], ends[row])
        weights = formula.softmax(q[row] @ keys[seen].T)
        expected = weights @ values[seen]
        got = queries.out.reshape(6, pitch)[row, :D] / queries.totals[row]
        # bfloat16 has 8 bits: scores are wrong by 2^-8 of |q| |k|, values by 2^-9.
        wrong = 2**-8 * np.linalg.norm(q[row]) * 3 if rounded else 2e-5
        np.testing.assert_allclose(got, expected, rtol=0, atol=wrong)


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (Activation.RELU, "relu"),
        (Activation.SILU, "silu"),
        (Activation.GELU, "gelu"),
        (Activation.GELU_TANH, "gelu_tanh"),
    ],
)
def test_activations_are_those_of_the_reference(activation: Activation, name: Any) -> None:
    x = np.concatenate([np.linspace(-30, 30, 4080), [0, -0.0, 1e-20, -1e-20, 1e4, -1e4, 88, -88]])
    x = np.resize(x, 4096).astype(np.float32)
    y = x.copy()
    run_activate(y, len(y), activation)
    with np.errstate(over="ignore"):
        expected = ops.activate(x, name)
    np.testing.assert_allclose(y, expected, rtol=3e-7, atol=1e-6)
    broken = np.full(16, np.nan, np.float32)
    run_activate(broken, 16, activation)
    assert np.isnan(broken).all()


def test_no_number_can_stand_where_an_activation_is_meant() -> None:
    with pytest.raises(TypingError):
        run_activate(np.zeros(16, np.float32), 16, 0)


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("n", [3, 16, 54, 320])
def test_norms_are_those_of_the_reference(n: int, rms: bool) -> None:
    from kvgen.engine.params import Norm

    random = np.random.RandomState(n)
    x, scale, shift = (random.randn(n).astype(np.float32) for _ in range(3))
    y = np.zeros(n + 16, np.float32)
    kernel_norm = layout.Norm(padded(scale), padded(shift * (not rms)), rms, np.float32(1e-5))
    run_normalise(padded(x), n, kernel_norm, y)
    norm = Norm(scale, None if rms else shift)
    expected = (ops.rms_norm if rms else ops.layer_norm)(x[None], norm, 1e-5)[0]
    np.testing.assert_allclose(y[:n], expected, rtol=0, atol=2e-6)


EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.int16)


def test_every_float16_is_read_and_written_exactly() -> None:
    as_floats, back = np.zeros(2**16, np.float32), np.zeros(2**16, np.int16)
    run_copy(EVERY_HALF, as_floats)
    np.testing.assert_array_equal(as_floats, EVERY_HALF.view(np.float16).astype(np.float32))
    run_copy(as_floats, back)
    numbers = ~np.isnan(EVERY_HALF.view(np.float16))
    np.testing.assert_array_equal(back[numbers], EVERY_HALF[numbers])
    assert np.isnan(back.view(np.float16)[~numbers]).all()


FLOAT16_ON_ANOTHER_CPU = """
import numpy as np
from kvgen.engine.fast.compiler import jit_entry
from kvgen.engine.fast.kernels.rounded import round_block, round_queries
from kvgen.engine.fast.kernels.simd import load, store

@jit_entry
def copy(source, target):
    for i in range(0, len(source), 16):
        store(target, i, load(source, i))

halves = np.arange(2**16, dtype=np.uint16).view(np.int16)
floats, back = np.zeros(2**16, np.float32), np.zeros(2**16, np.int16)
copy(halves, floats)
np.testing.assert_array_equal(floats, halves.view(np.float16).astype(np.float32))
copy(floats, back)
known = ~np.isnan(floats)
np.testing.assert_array_equal(back[known], halves[known])
between = (np.random.RandomState(0).randn(2**14) * 10.0 ** np.random.RandomState(1).randint(
    -9, 6, 2**14)).astype(np.float32)
rounded = np.zeros(2**14, np.int16)
copy(between, rounded)
with np.errstate(over="ignore"):
    np.testing.assert_array_equal(rounded, between.astype(np.float16).view(np.int16))
"""


def test_a_cpu_without_wide_vectors_reads_float16_too(tmp_path: Path) -> None:
    environment = {
        "NUMBA_CPU_NAME": "x86-64" if "x86" in os.uname().machine else "generic",
        "NUMBA_CPU_FEATURES": "",
        "KVGEN_CACHE_DIR": str(tmp_path),
    }
    script = tmp_path / "script.py"
    script.write_text(FLOAT16_ON_ANOTHER_CPU)
    subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | environment,
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_of_a_calibration_are_ordinary_numbers(dtype: DTypeName) -> None:
    ones, panel = stored_ones(20, dtype), np.zeros(ROWS * 20, np.float32)
    scales, out = np.ones(1, np.float32), np.zeros(ROWS * 16, np.float32)
    like, bias = np.empty(0, KERNEL_TYPES[dtype]), np.zeros(1, np.float32)
    matrix = Matrix(ones.ctypes.data, scales.ctypes.data, like, 20, bias, False)
    x = np.zeros(20 * 16, np.float32)
    run_tile(matrix, Range(0, 1), Rows(x, 0, 16), panel, Rows(out, 0, 16))
    np.testing.assert_array_equal(panel[:20], 1)


# --- The team ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "threads"),
    [
        *((name, 2) for name in CONFIGS),
        *((name, threads) for name in ("llama_gqa", "gemma2", "gpt_neox") for threads in (3, 5)),
    ],
)
def test_the_number_of_threads_does_not_change_a_bit(
    name: str, threads: int, tiny_model: Loader
) -> None:
    alone = tiny_model(name, backend="numba", threads=1)
    team = tiny_model(name, backend="numba", threads=threads)
    assert team.engine.threads == threads
    np.testing.assert_array_equal(team.logits(IDS), alone.logits(IDS))


def test_calls_from_several_threads_queue(tiny_model: Loader) -> None:
    model = tiny_model("llama_gqa", backend="numba", threads=2)
    expected, results = model.logits(IDS), []
    callers = [threading.Thread(target=lambda: results.append(model.logits(IDS))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_the_callers_affinity_is_as_it_was(tiny_model: Loader) -> None:
    before = os.sched_getaffinity(0)
    tiny_model("llama_gqa", backend="numba", threads=2).logits(IDS)
    assert os.sched_getaffinity(0) == before


def test_workers_park_when_nobody_calls_and_end_with_the_engine(
    tiny_folder: Callable[..., Path],
) -> None:
    def workers() -> int:
        return sum(thread.name.startswith("kvgen-") for thread in threading.enumerate())

    before = workers()
    model = kvgen.load(tiny_folder("llama_gqa"), backend="numba", threads=3)
    assert workers() == before  # none before the first request
    model.logits(IDS)
    assert workers() == before + 2
    time.sleep(0.5)
    spent = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - spent < 0.1
    model.logits(IDS)
    del model
    for _ in range(100):
        if workers() == before:
            break
        time.sleep(0.05)
    assert workers() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_a_team_of_its_own(tiny_model: Loader) -> None:
    model = tiny_model("llama_gqa", backend="numba", threads=2)
    expected = model.logits(IDS)
    child = os.fork()
    if child == 0:
        same = np.array_equal(model.logits(IDS), expected)
        os._exit(0 if same else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    np.testing.assert_array_equal(model.logits(IDS), expected)


# --- Fast prefill -----------------------------------------------------------------------------


def has_fast_prefill(dtype: str) -> bool:
    return MULTIPLIES_PAIRS if dtype == "bf16" else MULTIPLIES_BYTES


@pytest.mark.parametrize("n_rows", [1, 4, 6])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("n", LENGTHS)
def test_products_of_rounded_tokens(n: int, dtype: DTypeName, n_rows: int) -> None:
    if not has_fast_prefill(dtype):
        pytest.skip("this CPU has no such instruction")
    random, pitch = np.random.RandomState(n), 80
    weight = quantize(random.randn(n_rows, n).astype(np.float32), dtype)
    x = random.randn(n, pitch).astype(np.float32)
    x[:, 3] = 0  # a token without a greatest number
    packed = Packed(
        np.zeros((n + 1) // 2 * pitch, np.uint32),
        np.zeros(pitch, np.float32),
        np.zeros(pitch, np.float32),
    )
    out, panel = np.zeros(ROWS * pitch, np.float32), np.zeros(ROWS * (n + 4), np.float32)
    matrix = matrix_of(weight, bias=np.zeros(n_rows, np.float32))
    run_packed(
        matrix, Range(0, n_rows), Rows(padded(x), 0, pitch), panel, packed, Rows(out, 0, pitch)
    )
    if dtype == "bf16":
        rounded = quantize(x, "bf16").dequantize()
    else:
        scales = np.abs(x).max(axis=0) * np.float32(1 / 127)
        rounded = np.rint(x / np.where(scales > 0, scales, 1)) * scales
    expected = weight.dequantize().astype(np.float64) @ rounded
    # bf16: sums are rounded pair by pair. int8: the CPU divides by a scale in its own way, so that
    # an activation halfway between two bytes may become either.
    tolerance = 3e-6 * n if dtype == "bf16" else 0.05
    got = out.reshape(ROWS, pitch)[:n_rows]
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
    assert np.abs(got - expected).mean() < 1e-3


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_what_is_not_finite_shows_in_rounded_tokens(dtype: DTypeName, poison: float) -> None:
    if not has_fast_prefill(dtype):
        pytest.skip("this CPU has no such instruction")
    x = np.ones((20, 16), np.float32)
    x[7, 5] = poison
    packed = Packed(*(np.zeros(400, kind) for kind in (np.uint32, np.float32, np.float32)))
    out, panel = np.zeros(ROWS * 16, np.float32), np.zeros(ROWS * 24, np.float32)
    weight = quantize(np.ones((6, 20), np.float32), dtype)
    matrix = matrix_of(weight, bias=np.zeros(6, np.float32))
    run_packed(matrix, Range(0, 6), Rows(padded(x), 0, 16), panel, packed, Rows(out, 0, 16))
    finite = np.isfinite(out.reshape(ROWS, 16))
    assert not finite[:, 5].any()
    assert finite[:, [0, 4, 6, 15]].all()


# Mean differences in shares of the logits' spread, in tiny models with random weights.
ACTIVATION_ROUNDING = {"bf16": 0.02, "int8": 0.08}


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_fast_prefill_is_close_and_decoding_exact(
    name: str, dtype: DTypeName, tiny_model: Loader
) -> None:
    if not has_fast_prefill(dtype):
        pytest.skip("this CPU has no such instruction")
    exact = tiny_model(name, kind="BF16", backend="numba", dtype=dtype)
    fast = tiny_model(name, kind="BF16", backend="numba", dtype=dtype, prefill="fast")
    assert (exact.engine.prefill, fast.engine.prefill) == ("exact", "fast")
    expected = exact.logits(IDS, cache=False)
    difference = np.abs(fast.logits(IDS, cache=False) - expected).mean()
    assert 0 < difference < ACTIVATION_ROUNDING[dtype] * expected.std()
    one_by_one = []
    for model in (exact, fast):
        cache = model.engine.new_cache(20)
        one_by_one.append([model.engine.forward([token], cache) for token in IDS[:20]])
    np.testing.assert_array_equal(*one_by_one)


def test_a_rounded_prefill_is_refused_where_there_is_none(tiny_model: Loader) -> None:
    with pytest.raises(UsageError, match="needs bf16 or int8 weights, and these are f32"):
        tiny_model("gpt2", backend="numba", prefill="fast")
    with pytest.raises(UsageError, match=r"numpy backend has no rounded prefill \(.*\): leave out"):
        tiny_model("gpt2", kind="BF16", backend="numpy", prefill="fast")


# --- The cache --------------------------------------------------------------------------------

# Keys and values rounded to 11 bits; logits of order one to ten.
HALF_ROUNDING = 0.03


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma2", "qwen3", "gpt_neox"])
def test_a_float16_cache_is_close(name: str, tiny_model: Loader) -> None:
    wide = tiny_model(name, backend="numba", cache_dtype="f32")
    narrow = tiny_model(name, backend="numba", cache_dtype="f16")
    assert (wide.engine.cache_dtype, narrow.engine.cache_dtype) == ("f32", "f16")
    expected = wide.logits(IDS)
    for cached in (True, False):
        difference = np.abs(narrow.logits(IDS, cache=cached) - expected).max()
        assert 0 < difference < HALF_ROUNDING
    cache = narrow.engine.new_cache(70)
    narrow.engine.forward(IDS, cache)
    assert 2 * cache.nbytes == _fed(wide).nbytes
    exact = _fed(wide)
    for one, other in ((cache.keys, exact.keys), (cache.values, exact.values)):
        assert one(0).dtype == np.float32
        np.testing.assert_array_equal(one(0), other(0).astype(np.float16).astype(np.float32))


def _fed(model: kvgen.model.Model) -> KeyValueCache:
    cache = model.engine.new_cache(70)
    model.engine.forward(IDS, cache)
    return cache


@pytest.mark.parametrize("n_ids", [1, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_into_float16_is_named(backend: str, n_ids: int, tmp_path: Path) -> None:
    tensors = tiny.make_tensors("llama_gqa")
    tensors["model.layers.1.self_attn.v_proj.weight"] *= 1e6
    folder = tiny.write_checkpoint(tmp_path, "llama_gqa", tensors)
    model = kvgen.load(folder, backend=backend, cache_dtype="f16")
    with pytest.raises(NonFiniteError, match=r"layer 1: .* float16 cache: use --cache-dtype f32"):
        model.logits(IDS[:n_ids], cache=False)
    assert np.isfinite(
        kvgen.load(folder, backend=backend, cache_dtype="f32").logits(IDS[:n_ids])
    ).all()


def test_auto_is_float32_where_weights_are_and_in_numpy(tiny_model: Loader) -> None:
    assert tiny_model("gpt2", backend="numba").engine.cache_dtype == "f32"
    assert tiny_model("gpt2", kind="BF16", backend="numba").engine.cache_dtype == "f16"
    assert tiny_model("gpt2", kind="BF16", backend="numpy").engine.cache_dtype == "f32"


def test_weights_are_not_copied(tiny_folder: Callable[..., Path]) -> None:
    model = kvgen.load(tiny_folder("llama_gqa", "BF16"), backend="numba")
    params = model.engine._keep_alive
    for tensor in params.weights:
        assert tensor.dtype == "bf16"
        base: Any = tensor.stored
        while getattr(base, "base", None) is not None:
            base = base.base
        assert not isinstance(base, np.ndarray)  # the mapping of the file


def test_int8_rows_have_a_scale_each() -> None:
    numbers = np.array([[1.0, -2.0], [0.0, 0.0], [1e-3, 2e-3]], np.float32)
    tensor = quantize(numbers, "int8")
    assert isinstance(tensor, Int8)
    np.testing.assert_array_equal(tensor.stored, [[64, -127], [0, 0], [64, 127]])
    np.testing.assert_allclose(tensor.dequantize(), numbers, rtol=0.01)
    np.testing.assert_array_equal(tensor.rows(np.array([2])), tensor.dequantize()[2:])
    broken = quantize(np.array([[1.0, np.nan], [np.inf, 1.0], [1.0, 2.0]], np.float32), "int8")
    assert np.isnan(broken.dequantize()[:2]).all() and np.isfinite(broken.dequantize()[2]).all()
    assert isinstance(quantize(numbers, "f16"), Dense)
