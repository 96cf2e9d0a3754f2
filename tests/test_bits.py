"""One position at a time: the KV cache changes no bit of the logits, on either engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvgen.bench.verify import verify
from kvgen.engine.cache import KeyValueCache
from kvgen.engine.fast.engine import FastEngine
from kvgen.engine.reference.decoder import ReferenceEngine
from kvgen.model import Model
from kvgen.sampling import SamplingOptions
from kvgen.session import Session
from tests import tiny
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader

# Beyond windows, beyond a block of keys (64), and beyond the original context of RoPE (100).
IDS = tiny.make_ids(102, seed=9)
N_PROMPT = 63
LENGTHS = (64, 65, 101, 102)
SAME_BITS = "token by token: the same bits with and without the cache"

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_model = pytest.mark.parametrize("name", CONFIGS)


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    """Float32 bit patterns: 0 and -0 differ."""
    np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


def assert_cache_changes_no_bit(model: Model) -> None:
    """A prefill and decode steps, and the same lengths again from an empty cache."""
    session = Session(model.engine, len(IDS))
    session.feed(IDS[:N_PROMPT])
    cached = {n + 1: session.feed([IDS[n]]) for n in range(N_PROMPT, len(IDS))}
    for length in LENGTHS:
        session.rewind()
        assert_same_bits(session.feed(IDS[:length]), cached[length])


@every_backend
@every_model
def test_the_cache_changes_no_bit_of_a_stepwise_run(
    name: str, backend: str, tiny_model: Loader
) -> None:
    assert_cache_changes_no_bit(tiny_model(name, backend=backend, prefill="stepwise"))


@every_model
def test_a_float16_cache_changes_no_bit_of_a_stepwise_run(name: str, tiny_model: Loader) -> None:
    model = tiny_model(name, backend="numba", cache_dtype="f16", prefill="stepwise")
    assert_cache_changes_no_bit(model)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"), [("f16", "f32"), ("bf16", "f16"), ("int8", "f16"), ("int8", "f32")]
)
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "llama_dynamic"])
def test_narrow_weights_change_no_bit_of_a_stepwise_run(
    name: str, dtype: str, cache_dtype: str, tiny_model: Loader
) -> None:
    for backend in BACKENDS if cache_dtype == "f32" else ("numba",):
        model = tiny_model(
            name, backend=backend, dtype=dtype, cache_dtype=cache_dtype, prefill="stepwise"
        )
        assert_cache_changes_no_bit(model)


@every_backend
def test_all_logits_of_a_stepwise_model_have_the_same_bits(
    backend: str, tiny_model: Loader
) -> None:
    model = tiny_model("phi3_longrope", backend=backend, prefill="stepwise")
    assert_same_bits(model.logits(IDS), model.logits(IDS, cache=False))


@every_backend
def test_generating_stepwise_is_the_same_with_and_without_the_cache(
    backend: str, tiny_model: Loader
) -> None:
    model = tiny_model("llama_gqa", backend=backend, prefill="stepwise")
    runs = [
        [
            (piece.token, piece.logprob)
            for piece in model.generate(
                IDS[:9], max_new_tokens=12, sampling=SamplingOptions(), cache=cache
            )
        ]
        for cache in (True, False)
    ]
    assert runs[0] == runs[1]


@every_backend
def test_an_exact_engine_runs_in_chunks_of_one_when_asked(backend: str, tiny_model: Loader) -> None:
    exact, stepwise = (
        tiny_model("llama_gqa", backend=backend, prefill=prefill).engine
        for prefill in ("exact", "stepwise")
    )
    assert (exact.prefill, stepwise.prefill) == ("exact", "stepwise")
    by_ones = Session(exact, len(IDS)).feed(IDS, chunk=1, all_logits=True)
    assert_same_bits(by_ones, Session(stepwise, len(IDS)).feed(IDS, all_logits=True))
    heard: list[int] = []
    Session(exact, len(IDS), on_progress=heard.append).feed(IDS, chunk=40)
    assert heard == [40, 40, 22]


@pytest.mark.parametrize("name", ["llama_gqa", "llama_dynamic", "phi3_longrope"])
@pytest.mark.parametrize("cache_dtype", ["f32", "f16", "int8"])
def test_verify_finds_one_bit(
    name: str, cache_dtype: str, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name, backend="numba", cache_dtype=cache_dtype)
    reference = ReferenceEngine(model.params, cache_dtype=model.engine.cache_dtype)

    def bits() -> object:
        checks = {check.name: check for check in verify(model.engine, reference, IDS)}
        return checks[SAME_BITS]

    honest = bits()
    assert honest.passed and honest.different_bits == 0
    # 3 lengths, and 3 more around a change of frequencies
    assert honest.n_positions == (3 if name == "llama_gqa" else 6)
    extend = KeyValueCache.extend

    def last_bit_of_a_key(self: KeyValueCache, ids: list[int]) -> None:
        """One number of one key, wrong in its last bit, where one token alone is appended."""
        if len(ids) == 1 and self.length == 40:
            key = self.k[1, 0, 0, 3, 40:41]
            key.view(f"u{key.itemsize}")[0] ^= 1
        extend(self, ids)

    monkeypatch.setattr(KeyValueCache, "extend", last_bit_of_a_key)
    planted = bits()
    assert not planted.passed and planted.different_bits > 0
    assert not replace(honest, different_bits=1).passed
    assert isinstance(model.engine, FastEngine)
