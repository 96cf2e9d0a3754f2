"""Lens, contributions and patches of models that no family has: every switch by chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvgen.attention.contributions import contributions
from kvgen.attention.lens import logit_lens
from kvgen.attention.patch import patch
from kvgen.engine.open import open_engine
from kvgen.engine.params import Linear, Norm, Params
from kvgen.engine.tensors import Dense
from tests import tiny
from tests.by_hand import TOLERANCE, logits_by_hand, record_states, run_by_hand
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader
from tests.test_contributions import Frozen, assert_equal_parts, assert_reads_and_copies
from tests.test_lens import assert_lens_is_of
from tests.test_patch import AGAINST, SITES, TOKEN, assert_equals_by_hand


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(24))
def test_models_of_any_switches_equal_a_run_by_hand(
    seed: int, backend: str, tiny_model: Loader
) -> None:
    random = np.random.default_rng(seed)
    name = list(CONFIGS)[random.integers(len(CONFIGS))]
    params = switched(tiny_model(name, backend="numpy").params, random)
    engine = open_engine(params, backend=backend, threads=1, cache_dtype="f32")
    run = record_states(engine, tiny.make_ids(15, seed=seed), max_new_tokens=4)
    ids = run.trace.token_ids
    by_hand = run_by_hand(params, ids)

    lens = logit_lens(engine, run)
    assert lens.error < TOLERANCE
    assert_lens_is_of(lens, logits_by_hand(params, by_hand.states[1:]))

    query = int(random.integers(len(ids)))
    found = contributions(engine, params, run, query=query, token=TOKEN)
    assert found.error < TOLERANCE
    assert_equal_parts(found, Frozen(params, by_hand, query, TOKEN, None))
    assert_reads_and_copies(found, params, by_hand, ids)

    other = list(ids)
    place = int(random.integers(12, len(ids)))
    other[place] = (other[place] + 1) % params.config.vocab_size
    layers = [int(random.integers(params.config.n_layers))]
    for site in SITES:
        patched = patch(
            engine, params, ids, other, site=site, layers=layers, token=TOKEN, against=AGAINST
        )
        assert_equals_by_hand(patched, params)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gates_far_below_zero_warn_of_nothing(backend: str, tiny_model: Loader) -> None:
    """Where exp(-x) of SiLU is infinite; warnings are errors here."""
    params = tiny_model("llama_gqa", backend="numpy").params
    gates = [Dense(layer.gate.weight.dequantize() * np.float32(200)) for layer in params.layers]
    layers = tuple(
        replace(layer, gate=layer.gate._replace(weight=gate))
        for layer, gate in zip(params.layers, gates, strict=True)
    )
    params = replace(params, layers=layers)
    engine = open_engine(params, backend=backend, threads=1)
    run = record_states(engine, tiny.make_ids(12))
    found = contributions(engine, params, run)
    assert found.error < 10 * TOLERANCE  # the numbers are larger too
    other = [*tiny.make_ids(12)[:4], 3, *tiny.make_ids(12)[5:]]
    patched = patch(engine, params, run.trace.token_ids, other, token=TOKEN, against=AGAINST)
    assert np.isfinite(patched.patched).all()


def switched(params: Params, random: np.random.Generator) -> Params:
    """The same matrices with other norms, biases, scales, caps and windows."""

    def flip() -> bool:
        return bool(random.integers(2))

    def numbers(n: int, *, around: float = 0.0) -> np.ndarray:
        return (around + 0.3 * random.standard_normal(n)).astype(np.float32)

    def of_heads(one: Norm | None) -> Norm | None:  # an RMSNorm has no shift
        return None if one is None else Norm(one.weight, one.bias if kind == "layer" else None)

    def norm() -> Norm:
        return Norm(numbers(C, around=1), numbers(C) if kind == "layer" and flip() else None)

    def biased(one: Linear) -> Linear:
        n_rows = one.weight.shape[0]
        return Linear(one.weight, numbers(n_rows) if flip() else None)

    config, C = params.config, params.config.d_model
    kind = "layer" if flip() else "rms"
    parallel, own, behind, before = flip(), flip(), flip(), flip()
    layers = tuple(
        replace(
            layer,
            attn_norm=norm() if before or parallel else None,
            mlp_norm=norm() if (before and not parallel) or (parallel and own) else None,
            post_attn_norm=norm() if behind or not before else None,
            post_mlp_norm=norm() if behind or not before else None,
            q_norm=of_heads(layer.q_norm),
            k_norm=of_heads(layer.k_norm),
            o=biased(layer.o),
            down=biased(layer.down),
        )
        for layer in params.layers
    )
    config = replace(
        config,
        norm=kind,
        norm_eps=float(random.choice([1e-6, 0.1, 0.5])),
        parallel_residual=parallel,
        embed_scale=float(random.uniform(0.5, 3)),
        residual_scale=float(random.uniform(0.3, 1.5)),
        logit_scale=float(random.uniform(0.3, 1.5)),
        attn_softcap=2.0 if flip() else None,
        logit_softcap=3.0 if flip() else None,
        windows=tuple(int(random.integers(4, 12)) if flip() else None for _ in params.layers),
    )
    return replace(
        params, config=config, layers=layers, final_norm=norm(), head=biased(params.head)
    )
