"""What each part adds to a logit, against finite differences of the frozen stream by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvgen.attention.contributions import Contributions, contributions, query_weights, sources
from kvgen.attention.record import record
from kvgen.engine.params import Params
from kvgen.errors import UsageError
from kvgen.sampling import Sampler
from tests import tiny
from tests.by_hand import (
    CASES,
    TOLERANCE,
    ByHand,
    Exact,
    attention_adds,
    linear,
    norm,
    record_states,
    run_by_hand,
)
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader
from tests.sequences import GREEDY

TOKEN, OTHER = 5, 17


@pytest.mark.parametrize("against", [None, OTHER])
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_parts_equal_finite_differences_by_hand(
    name: str, backend: str, against: int | None, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    run = record_states(model.engine, tiny.make_ids(14, seed=3), max_new_tokens=3)
    by_hand = run_by_hand(model.params, run.trace.token_ids)
    for query in (0, 9, 15):
        found = contributions(
            model.engine, model.params, run, query=query, token=TOKEN, against=against
        )
        assert (found.query, found.token, found.against) == (query, TOKEN, against)
        expected = Frozen(model.params, by_hand, query, TOKEN, against)
        assert_equal_parts(found, expected)
        assert_reads_and_copies(found, model.params, by_hand, run.trace.token_ids)


@pytest.mark.parametrize("against", [None, OTHER])
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_parts_sum_to_the_logit(
    name: str, backend: str, against: int | None, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    run = record_states(model.engine, tiny.make_ids(16, seed=4))
    found = contributions(model.engine, model.params, run, query=11, token=TOKEN, against=against)
    logits = model.logits(run.trace.token_ids)[11].astype(np.float64)
    assert found.error < TOLERANCE
    own = logits[TOKEN] - (0 if against is None else logits[against])
    assert found.logit == pytest.approx(own, abs=TOLERANCE)
    assert found.softcap == model.config.logit_softcap
    if found.softcap is not None:  # the sum is that of the logits before their soft cap
        logits = found.softcap * np.arctanh(logits / found.softcap)
        own = logits[TOKEN] - (0 if against is None else logits[against])
    assert found.total == pytest.approx(own, abs=3 * TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_difference_is_one_token_less_the_other(name: str, tiny_model: Loader) -> None:
    model = tiny_model(name, backend="numpy")
    run = record_states(model.engine, tiny.make_ids(12, seed=5))
    both, one, other = (
        contributions(model.engine, model.params, run, query=7, token=token, against=against)
        for token, against in [(TOKEN, OTHER), (TOKEN, None), (OTHER, None)]
    )
    for part in ("heads", "mlps", "attention_biases", "embedding", "bias", "logit"):
        expected = np.subtract(getattr(one, part), getattr(other, part))
        np.testing.assert_allclose(getattr(both, part), expected, atol=1e-5)
    assert (both.position is None) == (model.params.positions is None)


@pytest.mark.parametrize("name", CONFIGS)
def test_sources_sum_to_the_part_of_their_head(name: str, tiny_model: Loader) -> None:
    model = tiny_model(name, backend="numpy")
    run = record_states(model.engine, tiny.make_ids(16, seed=6))
    by_hand = run_by_hand(model.params, run.trace.token_ids)
    config, query = model.config, 13
    group = config.n_heads // config.n_kv_heads
    whole = contributions(model.engine, model.params, run, query=query, token=TOKEN, against=OTHER)
    frozen = Frozen(model.params, by_hand, query, TOKEN, OTHER)
    layer = config.n_layers - 1
    for head in range(config.n_heads):
        found = sources(model.params, run, whole, layer=layer, head=head)
        assert found.parts.sum() == pytest.approx(whole.heads[layer, head], abs=TOLERANCE)
        weights = by_hand.weights[layer, head, query, : query + 1]
        np.testing.assert_allclose(found.weights, weights, atol=TOLERANCE)
        # The same key's value alone in place of z: what it adds, by itself.
        for key in (0, 6, query):
            z = weights[key] * by_hand.v[layer, key, head // group]
            part = frozen.of_head(layer, head, z)
            assert found.parts[key] == pytest.approx(part, abs=TOLERANCE)
            own = run.trace.token_ids[key]
            copying = Frozen(model.params, by_hand, query, own, None)
            part = copying.of_head(layer, head, z)
            assert found.copies[key] == pytest.approx(part, abs=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_token_the_likeliest_is_taken(backend: str, tiny_model: Loader) -> None:
    model = tiny_model("olmo2_biased", backend=backend, cache_dtype="f32")
    run = record_states(model.engine, tiny.make_ids(12, seed=8))
    found = contributions(model.engine, model.params, run)
    assert found.query == 11 and found.against is None
    logits = model.logits(run.trace.token_ids)[-1]
    assert found.token == logits.argmax()
    assert found.logit == pytest.approx(logits.max(), abs=TOLERANCE)


@pytest.mark.parametrize("name", ["llama_dynamic", "phi3_longrope"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_hold_where_rotary_frequencies_change_on_the_way(
    name: str, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    run = record_states(model.engine, tiny.make_ids(99, seed=3), max_new_tokens=4)
    assert run.run_again > 0
    by_hand = run_by_hand(model.params, run.trace.token_ids)
    for query in (50, 101):
        found = contributions(model.engine, model.params, run, query=query, token=TOKEN)
        assert found.error < TOLERANCE
        assert_equal_parts(found, Frozen(model.params, by_hand, query, TOKEN, None))
        assert_reads_and_copies(found, model.params, by_hand, run.trace.token_ids)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "granite_biased"])
def test_parts_sum_to_the_logit_with_rounded_weights_and_cache(
    name: str, dtype: str, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend="numba", dtype=dtype, cache_dtype="f16")
    run = record_states(model.engine, tiny.make_ids(20, seed=2), max_new_tokens=3)
    found = contributions(model.engine, model.params, run, token=TOKEN)
    assert found.error < TOLERANCE
    for layer, head in [(0, 0), (1, 2)]:
        parts = sources(model.params, run, found, layer=layer, head=head).parts
        assert parts.sum() == pytest.approx(found.heads[layer, head], abs=TOLERANCE)


def test_the_error_is_that_of_the_worse_token(tiny_model: Loader) -> None:
    model = tiny_model("llama_gqa", backend="numpy")
    run = record_states(model.engine, tiny.make_ids(9))
    assert run.states is not None
    states = run.states.copy()
    states[1, 8] += 1  # what the second layer's MLP would make of this is not in the last state
    damaged = replace(run, states=states)
    one, other, both = (
        contributions(model.engine, model.params, damaged, token=token, against=against)
        for token, against in [(TOKEN, None), (OTHER, None), (TOKEN, OTHER)]
    )
    assert one.error == pytest.approx(abs(one.total - one.logit), rel=1e-3)
    assert min(one.error, other.error) > 10 * TOLERANCE
    assert both.error == pytest.approx(max(one.error, other.error), rel=1e-3)
    assert one.error != pytest.approx(other.error, rel=0.1)


def test_contributions_need_all_layers_heads_and_states(tiny_model: Loader) -> None:
    model = tiny_model("gpt2", backend="numpy")
    ids = tiny.make_ids(6)
    run = record_states(model.engine, ids)
    with pytest.raises(UsageError, match="a contribution needs the residual stream"):
        contributions(model.engine, model.params, replace(run, states=None))
    for layers, heads in [(range(2), None), (range(3), [0, 2])]:
        run = record(
            model.engine, ids, layers=layers, heads=heads, sampler=Sampler(GREEDY), states=True
        )
        with pytest.raises(UsageError, match="every layer and head"):
            contributions(model.engine, model.params, run)


class Frozen:
    """The logit of a token (less another's) as a function of the stream, every norm's scale kept.

    What a part adds is the function with it less the function without it.
    """

    def __init__(
        self, params: Params, by_hand: ByHand, query: int, token: int, against: int | None
    ) -> None:
        self.params, self.config, self.by_hand, self.query = params, params.config, by_hand, query
        self.tokens = [token] if against is None else [token, against]

    def logit(self, x: Exact) -> float:  # [C]
        last = self.by_hand.states[-1, self.query]
        logits = linear(norm(self.config, x, self.params.final_norm, like=last), self.params.head)
        logits = self.config.logit_scale * logits[self.tokens]
        return float(logits[0] - logits[1]) if len(logits) > 1 else float(logits[0])

    def of(self, addend: Exact) -> float:  # [C]
        """What an addend of the stream adds."""
        last = self.by_hand.states[-1, self.query]
        return self.logit(last) - self.logit(last - addend)

    def attended(self, layer: int, z: Exact) -> Exact:  # [H, D] -> [C]
        """What attention would add with another z, the norm behind it at its own scale."""
        weights = self.params.layers[layer]
        own = linear(self.by_hand.z[layer, self.query].reshape(-1), weights.o)
        flat = linear(z.reshape(-1), weights.o)
        scale = self.config.residual_scale
        return scale * norm(self.config, flat, weights.post_attn_norm, like=own)

    def of_head(self, layer: int, head: int, part: Exact | None = None) -> float:
        """What a head adds, or a part [D] of its z."""
        z = self.by_hand.z[layer, self.query]
        without = z.copy()
        without[head] -= z[head] if part is None else part
        return self.of(self.attended(layer, z) - self.attended(layer, without))


def assert_equal_parts(found: Contributions, frozen: Frozen) -> None:
    by_hand, params, query = frozen.by_hand, frozen.params, found.query
    config, kwargs = params.config, {"rtol": 0, "atol": TOLERANCE}
    embedded = by_hand.embedded[query]
    np.testing.assert_allclose(found.embedding, frozen.of(embedded), **kwargs)
    if params.positions is None:
        assert found.position is None
    else:
        learned = frozen.of(by_hand.states[0, query] - embedded)
        np.testing.assert_allclose(found.position, learned, **kwargs)
    np.testing.assert_allclose(found.bias, frozen.logit(np.zeros(config.d_model)), **kwargs)
    layers, heads = range(config.n_layers), range(config.n_heads)
    expected = [[frozen.of_head(layer, head) for head in heads] for layer in layers]
    np.testing.assert_allclose(found.heads, expected, **kwargs)
    nothing = np.zeros((config.n_heads, config.head_dim))
    expected = [frozen.of(frozen.attended(layer, nothing)) for layer in layers]
    np.testing.assert_allclose(found.attention_biases, expected, **kwargs)
    expected = [frozen.of(config.residual_scale * mlp[query]) for mlp in by_hand.mlps]
    np.testing.assert_allclose(found.mlps, expected, **kwargs)
    # The run by hand agrees with itself: its frozen norms change nothing where nothing changes.
    own = attention_adds(config, params.layers[0], by_hand.z[0, query])
    np.testing.assert_allclose(config.residual_scale * own, frozen.attended(0, by_hand.z[0, query]))


def assert_reads_and_copies(
    found: Contributions, params: Params, by_hand: ByHand, ids: tuple[int, ...]
) -> None:
    weights = by_hand.weights[:, :, found.query]  # [L, H, T]
    read = np.take_along_axis(weights, found.read[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(read, weights.max(axis=2), atol=TOLERANCE)
    np.testing.assert_allclose(found.read_weights, read, atol=TOLERANCE)
    for layer, head in [(0, 0), (params.config.n_layers - 1, params.config.n_heads - 1)]:
        there = ids[found.read[layer, head]]
        frozen = Frozen(params, by_hand, found.query, there, None)
        part = frozen.of_head(layer, head)
        assert found.copies[layer, head] == pytest.approx(part, abs=TOLERANCE)


def test_weights_of_one_query_are_its_row_of_the_map(tiny_model: Loader) -> None:
    model = tiny_model("gemma3", backend="numpy")
    run = record_states(model.engine, tiny.make_ids(20, seed=6))
    by_hand = run_by_hand(model.params, run.trace.token_ids)
    for layer in run.trace.layers:
        for query in (0, 8, 19):
            weights = query_weights(layer, query)
            assert weights.shape == (model.config.n_heads, query + 1)
            expected = by_hand.weights[layer.layer, :, query, : query + 1]
            np.testing.assert_allclose(weights, expected, atol=TOLERANCE)
