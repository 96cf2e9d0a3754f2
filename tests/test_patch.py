"""Activation patching, against whole runs by hand in which the activation is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest

from kvgen.attention.patch import PatchMap, patch
from kvgen.choices import PatchSite
from kvgen.engine.params import Params
from kvgen.errors import UsageError
from kvgen.model import Model
from tests import tiny
from tests.by_hand import CASES, TOLERANCE, ByHand, Exact, run_by_hand
from tests.conftest import BACKENDS, Loader

SITES: tuple[PatchSite, ...] = ("residual", "head", "kv-head")
TOKEN, AGAINST = 5, 17
PROMPT = tiny.make_ids(16, seed=11)
SOURCE = [*PROMPT[:4], 77, *PROMPT[5:9], 33, *PROMPT[10:]]  # others at positions 4 and 9
SUBSET = (2, 4, 10, 15)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_patches_equal_whole_runs_by_hand(
    name: str, backend: str, site: PatchSite, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    layers = [0, model.config.n_layers - 1]
    found = patched(model, PROMPT, SOURCE, site=site, layers=layers, positions=SUBSET)
    assert (found.layers, found.positions) == (tuple(layers), SUBSET)
    assert_equals_by_hand(found, model.params)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt_neox", "starcoder2", "gemma2"])
def test_every_layer_and_position_equals_whole_runs_by_hand(
    name: str, site: PatchSite, tiny_model: Loader
) -> None:
    # Windows of 9 in several layers: what is changed reaches the end by way of other positions.
    prompt = tiny.make_ids(22, seed=12)
    source = [*prompt[:6], *tiny.make_ids(4, seed=13), *prompt[10:]]
    model = tiny_model(name, backend="numpy")
    found = patched(model, prompt, source, site=site)
    assert found.layers == tuple(range(model.config.n_layers))
    assert found.positions == tuple(range(22))
    assert_equals_by_hand(found, model.params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["llama_dynamic", "phi3_longrope"])
def test_patches_hold_beyond_the_original_context(
    name: str, site: PatchSite, backend: str, tiny_model: Loader
) -> None:
    prompt = tiny.make_ids(105, seed=14)
    source = [*prompt[:90], 3, *prompt[91:]]
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    found = patched(model, prompt, source, site=site, layers=[1], positions=[40, 90, 99, 104])
    assert_equals_by_hand(found, model.params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("site", SITES)
def test_patches_hold_in_prompts_longer_than_a_chunk(
    site: PatchSite, backend: str, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.make_ids(70, seed=15)
    source = [*prompt[:5], 3, *prompt[6:40], 9, *prompt[41:]]
    model = tiny_model("qwen3_window", backend=backend, cache_dtype="f32")
    if backend == "numpy":
        monkeypatch.setattr("kvgen.engine.reference.decoder.CHUNK", 16)
    else:
        monkeypatch.setattr(model.engine, "_chunk", 16)
    found = patched(model, prompt, source, site=site, layers=[0, 2], positions=[5, 33, 69])
    assert_equals_by_hand(found, model.params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("site", SITES)
def test_layers_heads_and_positions_may_be_chosen_in_any_order(
    site: PatchSite, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model("qwen2", backend=backend, cache_dtype="f32")
    heads = {"heads": [5, 1]} if site == "head" else {}
    chosen = patched(
        model, PROMPT, SOURCE, site=site, layers=[3, 1], positions=[10, 4, 15], **heads
    )
    assert chosen.layers == (1, 3) and chosen.positions == (4, 10, 15)
    assert chosen.columns == {"residual": (4, 10, 15), "head": (1, 5), "kv-head": (0, 1)}[site]
    assert_equals_by_hand(chosen, model.params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma2", "cohere"])
def test_nothing_changes_before_the_first_difference(
    name: str, site: PatchSite, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    found = patched(model, PROMPT, SOURCE, site=site, positions=[0, 1, 3])
    np.testing.assert_array_equal(found.patched, np.float32(found.base))
    np.testing.assert_array_equal(found.effects, 0)
    assert (found.next_ids == found.base_next).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma2", "granite", "gpt_neox", "mistral"])
def test_the_only_other_token_is_the_whole_difference(
    name: str, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    source = [*PROMPT[:12], 60, *PROMPT[13:]]
    found = patched(model, PROMPT, source, site="residual")
    effects = found.effects
    np.testing.assert_allclose(effects[0, 12], 1, atol=1e-3)
    np.testing.assert_array_equal(effects[0, :12], 0)
    np.testing.assert_allclose(effects[0, 13:], 0, atol=1e-3)  # the same embeddings
    assert found.next_ids[0, 12] == found.source_next
    np.testing.assert_array_equal(effects[:, :12], 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["phi", "olmo2", "opt"])
def test_all_heads_of_a_group_together_are_the_group(
    name: str, backend: str, tiny_model: Loader
) -> None:
    """Where each head has keys and values of its own, a head and its group are the same patch."""
    model = tiny_model(name, backend=backend, cache_dtype="f32")
    one = patched(model, PROMPT, SOURCE, site="head")
    group = patched(model, PROMPT, SOURCE, site="kv-head")
    if model.config.n_heads == model.config.n_kv_heads:
        np.testing.assert_array_equal(one.patched, group.patched)
    else:
        assert group.patched.shape == (model.config.n_layers, model.config.n_kv_heads)
    by_backend = patched(tiny_model(name, backend="numpy"), PROMPT, SOURCE, site="head")
    np.testing.assert_allclose(one.patched, by_backend.patched, atol=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("site", SITES)
def test_tokens_are_those_that_the_prompts_predict(
    site: PatchSite, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model("qwen3", backend=backend, cache_dtype="f32")
    source = tiny.make_ids(16, seed=21)
    ends = [int(model.logits(ids)[-1].argmax()) for ids in (PROMPT, source)]
    assert ends[0] != ends[1]
    found = patch(model.engine, model.params, PROMPT, source, site=site)
    assert (found.against, found.token) == (found.base_next, found.source_next) == tuple(ends)
    assert found.base < 0 < found.source
    assert not found.interrupted
    assert found.flips == [
        (layer, column)
        for row, layer in enumerate(found.layers)
        for place, column in enumerate(found.columns)
        if found.next_ids[row, place] == found.source_next
    ]
    if site == "residual":  # all of the last state is all of the prediction
        other, layer = run_by_hand(model.params, source), model.config.n_layers - 1
        last = _logits_with(model.params, PROMPT, other, site, layer, [15], [])
        assert found.patched[-1, -1] == pytest.approx(
            last[found.token] - last[found.against], abs=TOLERANCE
        )


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupted_map_keeps_the_patches_that_have_run(
    backend: str, site: PatchSite, tiny_model: Loader
) -> None:
    model = tiny_model("llama_gqa", backend=backend, cache_dtype="f32")
    whole, count = patched(model, PROMPT, SOURCE, site=site), 0

    def interrupt(n: int) -> None:
        nonlocal count
        count += n
        if count == 5:
            raise KeyboardInterrupt

    part = patched(model, PROMPT, SOURCE, site=site, on_patch=interrupt)
    assert part.interrupted and not whole.interrupted
    ran = ~np.isnan(part.patched)
    assert ran.sum() == 5
    np.testing.assert_array_equal(part.patched[ran], whole.patched[ran])
    np.testing.assert_array_equal(part.next_ids, np.where(ran, whole.next_ids, -1))
    assert np.isnan(part.effects[~ran]).all()


@pytest.mark.parametrize("site", SITES)
def test_each_patch_is_heard_of_once(site: PatchSite, tiny_model: Loader) -> None:
    heard: list[int] = []
    model = tiny_model("gpt2", backend="numpy")
    found = patched(model, PROMPT, SOURCE, site=site, on_patch=heard.append)
    assert heard == [1] * found.patched.size


def test_a_map_without_any_patch_is_an_interruption(tiny_model: Loader) -> None:
    model = tiny_model("gpt2", backend="numpy")
    with pytest.MonkeyPatch.context() as context:
        context.setattr("kvgen.attention.patch._Plan._rerun", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            patched(model, PROMPT, SOURCE, site="head")


def test_prompts_that_cannot_be_patched_are_refused(tiny_model: Loader) -> None:
    model = tiny_model("mistral", backend="numpy")
    for source, message in [
        (SOURCE[:-1], "same number of tokens: 16 and 15"),
        (PROMPT, "these have the same tokens"),
    ]:
        with pytest.raises(UsageError, match=message):
            patch(model.engine, model.params, PROMPT, source)
    # Four layers with windows of 9: nothing of the first token reaches position 40.
    prompt = tiny.make_ids(41, seed=3)
    source = [prompt[0] ^ 1, *prompt[1:]]
    with pytest.raises(UsageError, match=r"both prompts predict the same token, id \d+"):
        patch(model.engine, model.params, prompt, source)
    with pytest.raises(
        UsageError, match="the other prompt does not change the logits of id 5 and id 17"
    ):
        patched(model, prompt, source)
    with pytest.raises(UsageError, match="'heads' is not a site: choose head, kv-head, residual"):
        patched(model, PROMPT, SOURCE, site="heads")
    with pytest.raises(UsageError, match="prompt is empty"):
        patch(model.engine, model.params, [], [])


def test_a_token_is_not_set_against_itself(tiny_model: Loader) -> None:
    model = tiny_model("qwen3", backend="numpy")
    own, source = int(model.logits(PROMPT)[-1].argmax()), tiny.make_ids(16, seed=21)
    for tokens in ({"token": 3, "against": 3}, {"token": own}):
        with pytest.raises(UsageError, match="--token and --against are the same token"):
            patch(model.engine, model.params, PROMPT, source, **tokens)


def test_rounded_prefills_are_refused(tiny_model: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2", backend="numpy")
    monkeypatch.setattr(model.engine, "prefill", "fast")
    with pytest.raises(UsageError, match="leave out --prefill fast"):
        patch(model.engine, model.params, PROMPT, SOURCE)


def patched(model: Model, ids: Sequence[int], source: Sequence[int], **options: Any) -> PatchMap:
    return patch(model.engine, model.params, ids, source, token=TOKEN, against=AGAINST, **options)


def assert_equals_by_hand(found: PatchMap, params: Params) -> None:
    base, source = (run_by_hand(params, ids) for ids in (found.ids, found.source_ids))
    group = params.config.n_heads // params.config.n_kv_heads
    ways = [run.logits[-1, TOKEN] - run.logits[-1, AGAINST] for run in (base, source)]
    np.testing.assert_allclose([found.base, found.source], ways, rtol=0, atol=TOLERANCE)
    for row, layer in enumerate(found.layers):
        for place, column in enumerate(found.columns):
            n = group if found.site == "kv-head" else 1
            logits = _logits_with(
                params,
                found.ids,
                source,
                found.site,
                layer,
                [column] if found.site == "residual" else found.positions,
                range(column * n, column * n + n),
            )
            expected = logits[TOKEN] - logits[AGAINST]
            assert found.patched[row, place] == pytest.approx(expected, abs=TOLERANCE)
            assert logits[found.next_ids[row, place]] > logits.max() - TOLERANCE
            effect = (expected - ways[0]) / (ways[1] - ways[0])
            tolerance = 5 * TOLERANCE * (1 + abs(effect)) / abs(ways[1] - ways[0])
            assert found.effects[row, place] == pytest.approx(effect, abs=tolerance)


def _logits_with(
    params: Params,
    ids: Sequence[int],
    source: ByHand,
    site: PatchSite,
    layer: int,
    positions: Sequence[int],
    heads: Sequence[int],
) -> Exact:
    def change(where: Literal["residual", "z"], number: int, activation: Exact) -> Exact:
        if number != layer or (where == "residual") != (site == "residual"):
            return activation
        changed = activation.copy()
        for position in positions:
            if site == "residual":
                changed[position] = source.states[layer, position]
            else:
                for head in heads:
                    changed[position, head] = source.z[layer, position, head]
        return changed

    return run_by_hand(params, ids, change).logits[-1]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
