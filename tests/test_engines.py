"""Invariance: how a sequence is fed never changes what comes out, on either engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvgen
from kvgen.engine import formula
from kvgen.engine.reference import decoder
from kvgen.engine.trace import Capture, Start
from kvgen.errors import NonFiniteError, UsageError
from kvgen.session import Session
from tests import tiny
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader

# float32 sums in another order, on logits of order one to ten.
ROUNDING = 5e-5
IDS = tiny.make_ids(65, seed=1)

every_model = pytest.mark.parametrize("name", CONFIGS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def assert_equal_to_rounding(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING)


@every_backend
@every_model
def test_cached_logits_equal_uncached(name: str, backend: str, tiny_model: Loader) -> None:
    model = tiny_model(name, backend=backend)
    assert_equal_to_rounding(model.logits(IDS), model.logits(IDS, cache=False))


@every_backend
def test_prefill_in_two_chunks_equals_one_at_every_split(backend: str, tiny_model: Loader) -> None:
    engine = tiny_model("llama_gqa", backend=backend).engine
    cache = engine.new_cache(len(IDS))
    whole = engine.forward(IDS, cache)
    keys, values = cache.keys(1).copy(), cache.values(1).copy()
    for split in range(1, len(IDS)):
        cache.clear()
        engine.forward(IDS[:split], cache)
        assert_equal_to_rounding(engine.forward(IDS[split:], cache), whole)
        assert_equal_to_rounding(cache.keys(1), keys)
        assert_equal_to_rounding(cache.values(1), values)


# On both sides of a window, of a block of keys and of a chunk; several chunks.
LENGTHS = [8, 9, 10, 63, 64, 65, 193, 319, 320, 321]
AT_EVERY_LENGTH = ["llama_gqa", "gpt2", "gemma3", "phi3_longrope"]


@pytest.mark.parametrize(
    ("name", "length"),
    [
        (name, length)
        for name in CONFIGS
        for length in (LENGTHS if name in AT_EVERY_LENGTH else (10, 65, 193, 300))
    ],
)
def test_prefill_is_right_around_windows_and_chunks(
    name: str, length: int, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (tiny_model(name, backend=backend).engine for backend in BACKENDS)
    if length > one.config.max_context:
        pytest.skip("beyond this model's context")
    ids = tiny.make_ids(length, seed=5)
    chunked = one.forward(ids, one.new_cache(length))
    monkeypatch.setattr(decoder, "CHUNK", 1000)
    whole = one.forward(ids, one.new_cache(length))
    assert_equal_to_rounding(chunked, whole)
    assert_equal_to_rounding(other.forward(ids, other.new_cache(length)), whole)
    parts = Session(other, length)
    for begin in range(0, length, 50):
        logits = parts.feed(ids[begin : begin + 50], rope_length=length)
    assert_equal_to_rounding(logits, whole)


KINDS = ["F32", "F16", "BF16"]
# Fused and separate projections, a tied head and one of its own.
CONVERTED = ["llama_gqa", "gpt2", "gpt_neox", "phi3"]


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        *((name, kind, "auto") for name in CONFIGS for kind in KINDS),
        *((name, "F32", "int8") for name in CONFIGS if name not in CONVERTED),
        *(
            (name, kind, dtype)
            for name in CONVERTED
            for kind in KINDS
            for dtype in ("f32", "bf16", "f16", "int8")
        ),
    ],
)
def test_numba_equals_numpy(name: str, kind: str, dtype: str, tiny_model: Loader) -> None:
    one, other = (
        tiny_model(name, kind=kind, backend=backend, dtype=dtype, cache_dtype="f32")
        for backend in BACKENDS
    )
    assert one.engine.dtype == other.engine.dtype
    assert one.engine.dtype == (dtype if dtype != "auto" else kind.lower())
    assert_equal_to_rounding(one.logits(IDS), other.logits(IDS))


@every_backend
@every_model
def test_the_last_logits_are_those_of_all(name: str, backend: str, tiny_model: Loader) -> None:
    engine = tiny_model(name, backend=backend).engine
    every = engine.forward(IDS, engine.new_cache(len(IDS)), all_logits=True)
    last = engine.forward(IDS, engine.new_cache(len(IDS)))
    assert every.shape == (len(IDS), engine.config.vocab_size)
    assert last.shape == (engine.config.vocab_size,)
    assert_equal_to_rounding(every[-1], last)


@every_backend
def test_truncating_the_cache_goes_back_in_time(backend: str, tiny_model: Loader) -> None:
    engine = tiny_model("llama3_mqa", backend=backend).engine
    cache = engine.new_cache(len(IDS))
    first = engine.forward(IDS, cache)
    cache.truncate(20)
    assert cache.length == 20
    assert_equal_to_rounding(engine.forward(IDS[20:], cache), first)


@every_backend
def test_the_same_run_twice_gives_the_same_bits(backend: str, tiny_model: Loader) -> None:
    model = tiny_model("gpt2", backend=backend)
    np.testing.assert_array_equal(model.logits(IDS), model.logits(IDS))


@every_backend
@every_model
def test_capture_changes_nothing_and_holds_q_and_z(
    name: str, backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model(name, backend=backend).engine
    capture = Capture(engine.config, [2, 0], len(IDS))
    cache = engine.new_cache(len(IDS))
    engine.forward(IDS[:40], cache, capture=capture)
    captured = engine.forward(IDS[40:], cache, capture=capture)
    np.testing.assert_array_equal(captured, _feed(engine, IDS[:40], IDS[40:]))
    reference = tiny_model(name, backend="numpy").engine
    expected = Capture(engine.config, [2, 0], len(IDS))
    reference.forward(IDS, reference.new_cache(len(IDS)), capture=expected)
    assert np.abs(expected.q).min(axis=(2, 3)).all() or np.abs(expected.q).max() > 0
    assert_equal_to_rounding(capture.q, expected.q)
    assert_equal_to_rounding(capture.z, expected.z)


@every_backend
@every_model
def test_a_pass_can_begin_in_any_layer_with_the_states_that_entered_it(
    name: str, backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model(name, backend=backend).engine
    n_layers = engine.config.n_layers
    capture = Capture(engine.config, [], len(IDS), states=True)
    cache = engine.new_cache(len(IDS))
    engine.forward(IDS[:-1], cache, capture=capture)
    engine.forward(IDS[-1:], cache, capture=capture)
    assert capture.states is not None
    reference = tiny_model(name, backend="numpy").engine
    expected = Capture(engine.config, [], len(IDS), states=True)
    whole = reference.forward(IDS, reference.new_cache(len(IDS)), capture=expected, all_logits=True)
    assert expected.states is not None and np.abs(expected.states).max() > 0
    largest = np.abs(expected.states).max()  # states grow from layer to layer
    assert_equal_to_rounding(capture.states / largest, expected.states / largest)
    for layer in range(n_layers + 1):
        for first in (0, 20, len(IDS) - 1):  # rows before lie in the cache
            cache.truncate(first)
            start = Start(layer, capture.states[layer, first:].copy())
            logits = engine.forward(
                IDS[first:], cache, all_logits=True, start=start, rope_length=len(IDS)
            )
            assert_equal_to_rounding(logits, whole[first:])


@every_backend
def test_states_go_through_the_layers_in_chunks(backend: str, tiny_model: Loader) -> None:
    engine = tiny_model("mistral", backend=backend).engine
    ids = tiny.make_ids(300, seed=2)
    capture = Capture(engine.config, [], len(ids), states=True)
    cache = engine.new_cache(len(ids))
    whole = engine.forward(ids, cache, capture=capture, all_logits=True)
    assert capture.states is not None
    cache.clear()
    start = Start(1, capture.states[1] * np.float32(1.5))
    assert np.abs(engine.forward(ids, cache, start=start) - whole[-1]).max() > 1e-3
    for chunk in (None, 1, 37):
        cache.clear()
        start = Start(1, capture.states[1].copy())
        logits = engine.forward(ids, cache, start=start, chunk=chunk, all_logits=True)
        assert_equal_to_rounding(logits, whole)


def _feed(engine: Any, *parts: list[int]) -> np.ndarray:
    cache = engine.new_cache(sum(map(len, parts)))
    for part in parts:
        logits = engine.forward(part, cache)
    return logits


@every_backend
def test_the_cache_counts_positions_and_bytes(backend: str, tiny_model: Loader) -> None:
    engine = tiny_model("llama_gqa", backend=backend).engine
    cache = engine.new_cache(100)
    engine.forward(IDS, cache)
    assert (cache.length, cache.capacity) == (65, 100)
    assert cache.nbytes == 65 * 2 * 3 * 2 * 20 * 4  # K and V, layers, kv heads, head size, f32
    assert cache.keys(0).shape == cache.values(2).shape == (65, 2, 20)


@every_backend
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no tokens"),
        ([131], "token id 131 is outside the vocabulary 0-130"),
        ([5, -1], "token id -1 is outside the vocabulary 0-130"),
        ([1] * 11, "11 positions do not fit into a cache of 10"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(
    ids: list[int], message: str, backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model("gpt2", backend=backend).engine
    with pytest.raises(UsageError, match=message):
        engine.forward(ids, engine.new_cache(10))


@every_backend
def test_a_cache_larger_than_the_context_is_refused(backend: str, tiny_model: Loader) -> None:
    engine = tiny_model("gpt2", backend=backend).engine
    with pytest.raises(UsageError, match="257 positions do not fit into the context of 256"):
        engine.new_cache(257)


@every_backend
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_reported(
    backend: str, poison: float, kind: str, tmp_path: Any
) -> None:
    tensors = tiny.make_tensors("llama_gqa")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = poison
    folder = tiny.write_checkpoint(tmp_path, "llama_gqa", tensors, kind=kind)
    model = kvgen.load(folder, backend=backend)
    with pytest.raises(NonFiniteError, match="not finite"):
        model.logits(IDS)


def test_no_operation_of_the_reference_returns_float64(tiny_model: Loader) -> None:
    from kvgen.engine.reference import ops

    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 12)
    norm = tiny_model("gpt2", backend="numpy").engine._params.final_norm
    norm = type(norm)(norm.weight[:12], norm.bias[:12])
    heads = x.reshape(2, 3, 4)
    results = [
        ops.layer_norm(x, norm, 1e-5),
        ops.rms_norm(x, norm, 1e-5),
        formula.softmax(x.copy()),
        ops.rotate(heads, x[:, :2], x[:, 2:4]),
        ops.attend(
            heads, heads.swapaxes(0, 1), heads.swapaxes(0, 1), 0.5, formula.causal_mask(2, 2)
        ),
        *(ops.activate(x, kind) for kind in ("gelu", "gelu_tanh", "silu", "relu")),
    ]
    assert {result.dtype for result in results} == {np.dtype(np.float32)}
