"""The KV cache in int8: its rows, what the engines write, and how far logits may move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kvgen
from kvgen.choices import PrefillName, RowKind
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.fast import target
from kvgen.engine.fast.compiler import jit_entry
from kvgen.engine.fast.kernels import int8_rows as kernels
from kvgen.engine.fast.layout import Int8Head, row_pitch
from kvgen.engine.kept_rows import from_int8, hadamard
from kvgen.engine.tensors import round_rows
from kvgen.errors import NonFiniteError
from tests import tiny
from tests.conftest import BACKENDS, Loader

EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
IDS = tiny.make_ids(150)


@jit_entry
def run_hadamard(x, start, D):  # type: ignore[no-untyped-def]
    kernels.hadamard(x, start, D)


@jit_entry
def run_store(k, v, start, head, position):  # type: ignore[no-untyped-def]
    kernels.store_int8_row(k, v, start, head, position)


# Numbers rounded to 127 places; logits of the tiny models are of order one to ten.
INT8_ROUNDING = 0.5


@pytest.mark.parametrize("D", [1, 4, 20, 64, 80, 96, 128])
def test_a_transform_keeps_dot_products_and_undoes_itself(D: int) -> None:
    random = np.random.default_rng(D)
    one, other = random.standard_normal((2, 7, 3, D)).astype(np.float32)
    np.testing.assert_allclose(hadamard(hadamard(one)), one, atol=1e-6)
    dots = (hadamard(one) * hadamard(other)).sum(-1)
    np.testing.assert_allclose(dots, (one * other).sum(-1), atol=1e-5 * D**0.5)


def test_a_large_feature_is_spread_over_the_row() -> None:
    row = np.zeros(64, np.float32)
    row[17] = 100
    np.testing.assert_allclose(np.abs(hadamard(row)), 100 / 8, rtol=1e-6)


@pytest.mark.parametrize("D", [1, 4, 12, 16, 20, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("start", [0, 16, 5])
def test_compiled_rows_are_those_of_numpy(D: int, start: int) -> None:
    random = np.random.default_rng(D)
    k, v = random.standard_normal((2, start + D + 16)).astype(np.float32)
    expected = hadamard(k[start : start + D])
    transformed = k.copy()
    run_hadamard(transformed, start, D)
    np.testing.assert_allclose(transformed[start : start + D], expected, atol=1e-5)
    np.testing.assert_array_equal(transformed[:start], k[:start])
    np.testing.assert_array_equal(transformed[start + D :], k[start + D :])
    pitch, position = row_pitch(D), 70
    head = Int8Head(
        np.zeros(128 * D, np.int8), np.zeros(128 * pitch, np.int8),
        np.zeros(128, np.float32), np.zeros(128, np.float32), D, pitch,
    )  # fmt: skip
    run_store(k, v, start, head, position)
    keys, key_scale = round_rows(expected)
    values, value_scale = round_rows(v[start : start + D])
    written = head.keys.reshape(2, D, 64)[1, :, position - 64].astype(int)
    assert np.abs(written - keys).max() <= 1 and (written != keys).mean() < 0.1
    rows = head.values.reshape(128, pitch)
    np.testing.assert_array_equal(rows[position, :D], values)
    assert not rows[position, D:].any() and not rows[position - 1].any()
    scales = head.key_scales[position], head.value_scales[position]
    np.testing.assert_allclose(scales, (key_scale, value_scale), rtol=1e-5)


def test_transformed_keys_with_a_large_feature_are_kept_more_exactly() -> None:
    keys = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    keys[:, [3, 40]] += 60
    plain = from_int8(*round_rows(keys)) - keys
    transformed = hadamard(from_int8(*round_rows(hadamard(keys)))) - keys
    assert np.sqrt((transformed**2).mean()) < 0.4 * np.sqrt((plain**2).mean())


def test_rows_are_rounded_to_half_a_place() -> None:
    rows = np.random.default_rng(0).standard_normal((9, 2, 20)).astype(np.float32)
    rows[4, 1] = 0
    rows[5, 0] *= np.float32(1e-35)
    rows[6, 0] *= np.float32(1e30)
    numbers, scales = round_rows(rows)
    assert numbers.dtype == np.int8 and scales.shape == (9, 2)
    assert (np.abs(numbers).max(axis=-1) == 127).sum() == 16  # not of zeros and of 1e-35
    assert not numbers[4, 1].any() and not numbers[5, 0].any()
    wrong = np.abs(from_int8(numbers, scales) - rows)
    assert (wrong <= 0.5001 * np.maximum(scales, 1e-30)[..., None]).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_so(poison: float) -> None:
    rows = np.ones((2, 4), np.float32)
    rows[1, 2] = poison
    _, scales = round_rows(rows)
    assert np.isfinite(scales[0]) and np.isnan(scales[1])


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma3", "phi3", "qwen2"])
@EVERY_BACKEND
def test_an_engine_keeps_the_rounded_rows(
    backend: str, name: str, chunk: int | None, tiny_model: Loader
) -> None:
    wide, narrow = (
        tiny_model(name, backend=backend, cache_dtype=dtype).engine for dtype in ("f32", "int8")
    )
    exact, cache = wide.new_cache(len(IDS)), narrow.new_cache(len(IDS))
    wide.forward(IDS, exact, chunk=chunk)
    narrow.forward(IDS, cache, chunk=chunk)
    assert isinstance(cache, KeyValueCache)
    keys, values = exact.keys(0), exact.values(0)
    stored = cache.stored_rows(0)
    expected = (*round_rows(hadamard(keys)), *round_rows(values))
    for kind, rows in zip(("keys", "key_scales", "values", "value_scales"), expected, strict=True):
        if rows.dtype == np.int8:  # sums in another order may tip a number to the next one
            differ = stored[kind].astype(int) - rows
            assert np.abs(differ).max() <= 1 and (differ != 0).mean() < 1e-3
        else:
            np.testing.assert_allclose(stored[kind], rows, rtol=1e-5)
    D = keys.shape[-1]
    np.testing.assert_allclose(cache.values(0), values, atol=0.6 * stored["value_scales"].max())
    np.testing.assert_allclose(cache.keys(0), keys, atol=0.6 * D**0.5 * stored["key_scales"].max())
    for position in (0, 63, 64, 149):
        assert np.array_equal(cache.row("v", 0, position), cache.values(0)[position])
        np.testing.assert_allclose(cache.row("k", 0, position), cache.keys(0)[position], atol=1e-6)


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma2", "qwen3", "gpt_neox"])
@EVERY_BACKEND
def test_an_int8_cache_is_close_and_small(backend: str, name: str, tiny_model: Loader) -> None:
    wide = tiny_model(name, backend=backend, cache_dtype="f32")
    narrow = tiny_model(name, backend=backend, cache_dtype="int8")
    expected = wide.logits(IDS)
    for cached in (True, False):
        assert 0 < np.abs(narrow.logits(IDS, cache=cached) - expected).max() < INT8_ROUNDING
    D = wide.config.head_dim
    sizes = []
    for model in (wide, narrow):
        cache = model.engine.new_cache(len(IDS))
        model.engine.forward(IDS, cache)
        sizes.append(cache.nbytes)
    assert sizes[1] * 4 * D == sizes[0] * (D + 4)


@pytest.mark.parametrize(("kind", "prefill"), [("BF16", "fast"), ("F32", "exact")])
def test_a_rounded_prefill_reads_it_too(
    kind: str, prefill: PrefillName, tiny_model: Loader
) -> None:
    if prefill == "fast" and not target.MULTIPLIES_PAIRS:
        pytest.skip("this CPU has no such instruction")
    expected = tiny_model("llama_gqa", kind=kind, backend="numba", cache_dtype="f32").logits(IDS)
    narrow = tiny_model(
        "llama_gqa", kind=kind, backend="numba", cache_dtype="int8", prefill=prefill
    )
    difference = np.abs(narrow.logits(IDS, cache=False) - expected).max()
    assert 0 < difference < 2 * INT8_ROUNDING


@pytest.mark.parametrize("n_ids", [1, 20])
@pytest.mark.parametrize("matrix", ["k_proj", "v_proj"])
@EVERY_BACKEND
def test_a_row_beyond_float32_reaches_the_check_of_the_logits(
    backend: str, matrix: str, n_ids: int, tmp_path: Path
) -> None:
    tensors = tiny.make_tensors("llama_gqa")
    tensors[f"model.layers.1.self_attn.{matrix}.weight"][:] = 3e38
    folder = tiny.write_checkpoint(tmp_path, "llama_gqa", tensors)
    model = kvgen.load(folder, backend=backend, cache_dtype="int8")
    with pytest.raises(NonFiniteError, match="layer 1"):
        list(model.generate(IDS[:n_ids], max_new_tokens=1))


@pytest.mark.parametrize("kind", ["k", "v"])
@pytest.mark.parametrize("cache_dtype", ["f32", "f16", "int8"])
@EVERY_BACKEND
def test_another_row_is_kept_for_a_while(
    backend: str, kind: RowKind, cache_dtype: str, tiny_model: Loader
) -> None:
    engine = tiny_model("llama_gqa", backend=backend, cache_dtype=cache_dtype).engine
    cache = engine.new_cache(len(IDS))
    engine.forward(IDS, cache)
    assert isinstance(cache, KeyValueCache)
    before = {name: rows.copy() for name, rows in cache.stored_rows(1).items()}
    other = np.linspace(-2, 2, before["keys"][0].size, dtype=np.float32)
    other = other.reshape(before["keys"][0].shape)
    with cache.with_row(kind, 1, 70, other):
        np.testing.assert_allclose(cache.row(kind, 1, 70), other, atol=0.05)
    if cache_dtype == "f16":
        with pytest.raises(NonFiniteError), cache.with_row(kind, 1, 70, 1e6 * other):
            pass
    for name, rows in cache.stored_rows(1).items():
        np.testing.assert_array_equal(rows, before[name])
