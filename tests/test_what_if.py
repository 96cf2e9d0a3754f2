"""What-ifs against independent ways to make the same change, and the worked examples by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvgen
from kvgen.attention import example
from kvgen.attention.steps import attention_weights
from kvgen.attention.what_if import WhatIf, ablation_losses, local_weights, what_ifs
from kvgen.engine.edits import Edit, edited_output, edited_weights, parse_edit
from kvgen.engine.reference.decoder import ReferenceEngine
from kvgen.errors import UsageError
from tests import tiny
from tests.command import assert_fails, inside
from tests.command import kvgen as command
from tests.conftest import Loader

IDS = tiny.make_ids(30, seed=2)
NOTHING = Edit(kind="unscaled", layer=99)
ROUNDING = 3e-5
# Weights of the same numbers: BLAS may sum them in another order where memory lies elsewhere.
SAME_WEIGHTS = 1e-6


def what_if(engine: ReferenceEngine, ids: list[int], edit: Edit) -> WhatIf:
    return next(what_ifs(engine, ids, [edit]))


def logits(engine: ReferenceEngine, edit: Edit | None = None) -> np.ndarray:
    return engine.forward(IDS, engine.new_cache(len(IDS)), all_logits=True, edit=edit)


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma2", "gemma3", "qwen3", "gpt_neo"])
def test_an_edit_elsewhere_changes_nothing(name: str, tiny_model: Loader) -> None:
    engine = ReferenceEngine(tiny_model(name).params)
    np.testing.assert_allclose(logits(engine, NOTHING), logits(engine), atol=ROUNDING)
    found = what_if(engine, IDS, NOTHING)
    assert found.distances.max() < SAME_WEIGHTS
    for layer in found.base:
        elsewhere = Edit(kind="kq", layer=layer.layer + 1)
        np.testing.assert_allclose(
            local_weights(layer, elsewhere), attention_weights(layer), atol=SAME_WEIGHTS
        )


def test_unscaled_is_a_model_with_that_scale(tiny_model: Loader) -> None:
    params = tiny_model("llama_gqa").params
    config = replace(params.config, attn_scales=(1.0,) * params.config.n_layers)
    same = ReferenceEngine(replace(params, config=config))
    edited = logits(ReferenceEngine(params), Edit(kind="unscaled"))
    np.testing.assert_allclose(edited, logits(same), atol=ROUNDING)


def test_an_ablated_head_is_one_whose_output_weights_are_zero(tmp_path: Path) -> None:
    tensors = tiny.make_tensors("llama_gqa")
    engine = ReferenceEngine(kvgen.load(tiny.write_checkpoint(tmp_path / "a", "llama_gqa")).params)
    D = engine.config.head_dim
    for edit in (
        Edit(kind="ablate", layer=1, heads=(2,)),
        parse_edit("ablate=kv0.1", n_layers=2, n_heads=engine.config.n_heads,
                   n_kv_heads=engine.config.n_kv_heads, at="all"),
    ):  # fmt: skip
        changed = dict(tensors)
        name = f"model.layers.{edit.layer}.self_attn.o_proj.weight"
        changed[name] = tensors[name].copy()
        for head in edit.heads or ():
            changed[name][:, head * D : (head + 1) * D] = 0
        folder = tiny.write_checkpoint(tmp_path / f"b{edit.layer}", "llama_gqa", changed)
        other = ReferenceEngine(kvgen.load(folder).params)
        np.testing.assert_allclose(logits(engine, edit), logits(other), atol=ROUNDING)


def test_a_mean_so_far_does_not_show_the_future() -> None:
    random = np.random.RandomState(0)
    v = random.randn(5, 1, 4).astype(np.float32)
    weights = np.eye(5, dtype=np.float32)[None]
    edit = Edit(kind="ablate", layer=0, heads=(0,), mean=True)
    z = edited_output(edit, 0, weights, v)
    for i in range(5):
        np.testing.assert_allclose(z[i, 0], v[: i + 1, 0].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_edited_maps_by_hand(window: int | None) -> None:
    random = np.random.RandomState(1)
    q, k = random.randn(2, 6, 1, 4).astype(np.float32)
    options: dict[str, Any] = {"scale": 0.5, "window": window}

    def rows(scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
        exponentials = np.exp(scores) * seen
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    behind = np.arange(6)[:, None] - np.arange(6)
    causal = (behind >= 0) & (behind < (window or 7))
    S = q[:, 0] @ k[:, 0].T
    no_sink = causal.copy()
    no_sink[1:, 0] = False
    for edit, expected in (
        (NOTHING, rows(S / 2, causal)),
        (Edit(kind="kq"), rows(S.T / 2, causal)),
        (Edit(kind="unscaled"), rows(S, causal)),
        (Edit(kind="unmasked"), rows(S / 2, np.ones((6, 6)))),
        (Edit(kind="drop-sink"), rows(S / 2, no_sink)),
    ):
        np.testing.assert_allclose(edited_weights(edit, 0, q, k, **options)[0], expected, atol=1e-6)


def test_an_edit_touches_its_layer_and_heads_only(tiny_model: Loader) -> None:
    engine = ReferenceEngine(tiny_model("llama_gqa").params)
    edit = Edit(kind="kq", layer=1, heads=(2,))
    found = what_if(engine, IDS, edit)
    assert found.distances[0].max() < SAME_WEIGHTS
    changed = np.flatnonzero(found.distances[1] > SAME_WEIGHTS)
    assert changed.tolist() == [2]
    assert found.divergence > 0 and found.base_next.sum() == pytest.approx(1, abs=1e-5)


def test_without_a_mask_what_a_cache_keeps_is_not_true(tiny_model: Loader) -> None:
    engine = ReferenceEngine(tiny_model("llama_gqa").params)
    change = what_if(engine, IDS, Edit(kind="unmasked")).kept_rows_change
    assert change is not None and change > 1e-2
    # Only the next layer's rows are made of what the edited one gives.
    last = Edit(kind="unmasked", layer=engine.config.n_layers - 1)
    change = what_if(engine, IDS, last).kept_rows_change
    assert change is not None and change < ROUNDING


def test_all_ablations_are_each_one(tiny_model: Loader) -> None:
    engine = ReferenceEngine(tiny_model("llama_gqa").params)
    told: list[int] = []
    base, without = ablation_losses(
        engine, IDS, layers=[0, 2], heads=[1, 3, 4], on_progress=told.append
    )
    assert without.shape == (2, 3) and sum(told) == 6
    one = what_if(engine, IDS, Edit(kind="ablate", layer=2, heads=(3,)))
    assert base == pytest.approx(float(one.base_losses.mean()), abs=1e-6)
    assert without[1, 1] == pytest.approx(float(one.edited_losses.mean()), abs=1e-6)
    with pytest.raises(UsageError, match="at least two tokens"):
        ablation_losses(engine, IDS[:1], layers=[0], heads=[0], on_progress=told.append)


@pytest.mark.parametrize(
    ("spec", "at", "expected"),
    [
        ("kq", "all", Edit(kind="kq")),
        ("unscaled", "3", Edit(kind="unscaled", layer=3)),
        ("drop-sink", "3.1", Edit(kind="drop-sink", layer=3, heads=(1,))),
        ("ablate=3.5", "all", Edit(kind="ablate", layer=3, heads=(5,))),
        ("ablate=3.5:mean", "all", Edit(kind="ablate", layer=3, heads=(5,), mean=True)),
        ("ablate=kv3.1", "all", Edit(kind="ablate", layer=3, heads=(4, 5, 6, 7))),
    ],
)
def test_edits_are_read(spec: str, at: str, expected: Edit) -> None:
    assert parse_edit(spec, n_layers=4, n_heads=8, n_kv_heads=2, at=at) == expected


@pytest.mark.parametrize(
    ("spec", "at"),
    [
        ("qk", "all"), ("ablate", "all"), ("ablate=4.0", "all"), ("ablate=0.8", "all"),
        ("ablate=kv0.2", "all"), ("kq", "4"), ("kq", "0.8"), ("kq", "x"), ("kq", "-1"), ("", "all"),
    ],
)  # fmt: skip
def test_what_is_no_edit_is_refused(spec: str, at: str) -> None:
    with pytest.raises(UsageError):
        parse_edit(spec, n_layers=4, n_heads=8, n_kv_heads=2, at=at)


def test_a_probe_takes_the_place_of_a_prompt() -> None:
    run = command("inspect-attention", "--probe", "--backend", "numpy", "--width", "100")
    text = run.stdout.decode()
    assert run.returncode == 0 and "101 tokens (101 prompt + 0 decode)" in text
    assert_fails(inside("inspect-attention", "a text", "--probe"), 2, "leave out PROMPT")


# --- The worked examples ----------------------------------------------------------------------


def test_king_is_like_queen_and_crown() -> None:
    queen, car, crown, tea = example.likenesses()
    assert (queen.product, car.product, crown.product, tea.product) == (14, -14, 6, 0)
    assert crown.cosine == pytest.approx(6 / (14 * 3) ** 0.5)
    assert (queen.distance, car.distance) == (0, pytest.approx(2 * 14**0.5))


def test_the_steps_have_the_shapes_of_the_text() -> None:
    steps = example.walk(example.QUERIES, example.KEYS, example.VALUES, causal=False)
    assert steps.q.shape == steps.k.shape == (3, 4) and steps.v.shape == (3, 5)
    assert steps.scores.shape == (3, 3) and steps.output.shape == (3, 5)
    np.testing.assert_allclose(steps.scaled, steps.scores / 2)
    np.testing.assert_allclose(steps.weights.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(steps.output, steps.weights @ steps.v, atol=1e-6)


def test_the_mask_ends_the_sum_at_t() -> None:
    masked = example.walk(example.QUERIES, example.KEYS, example.VALUES, causal=True)
    whole = example.walk(example.QUERIES, example.KEYS, example.VALUES, causal=False)
    assert np.isnan(masked.weights[np.triu_indices(3, 1)]).all()
    np.testing.assert_allclose(masked.output[0], masked.v[0])
    np.testing.assert_allclose(masked.output[2], whole.output[2])
    assert np.abs(masked.output[1] - whole.output[1]).max() > 0.1


def test_cat_cannot_see_sat() -> None:
    seen, free = example.cat_reads(causal=True), example.cat_reads(causal=False)
    assert len(seen.weights) == 2 and len(free.weights) == 6
    assert free.weights[2] > 0.05


@pytest.mark.parametrize("width", ["60", "100", "200"])
def test_the_examples_are_printed_without_a_model(width: str) -> None:
    run = command("inspect-attention", "--example", "--width", width, "-m", "no/such/model/at/all")
    text = run.stdout.decode()
    assert run.returncode == 0
    assert max(map(len, text.splitlines())) <= int(width)
    for words in ("3x5", "-14", "+0.926", "QK^T", "KQ^T", "cat reads"):
        assert words in text


def test_what_ifs_are_shown_and_refused() -> None:
    run = command(
        "inspect-attention", "The cat sat on the mat", "--what-if", "kq", "--what-if", "ablate=2.3",
        "-l", "2", "-H", "3", "--backend", "numpy",
    )  # fmt: skip
    text = run.stdout.decode()
    assert run.returncode == 0 and text.count("what if: ") == 2
    words = " ".join(text.split())
    assert "ablate to 0 in layer 2 head 3" in words and "unchanged before layer 3" in words
    assert "one would have to cache Q" in " ".join(text.split())
    for arguments, message in (
        (["--what-if", "qk"], "what-if 'qk' is not one of kq"),
        (["--what-if", "kq", "--at", "99"], "layer 99: this model has layers 0-"),
        (["--what-if", "kq", "-n", "3"], "compares runs of the prompt: leave out -n"),
    ):
        assert_fails(inside("inspect-attention", "The cat", *arguments), 2, message)


@pytest.mark.parametrize(
    ("edit", "lesson"),
    [
        ("ablate=kv2.1", "an ablated head writes nothing;"),
        ("ablate=2.3:mean", "an ablated head writes its mean so far, whatever it reads;"),
    ],
)
def test_an_ablation_says_what_the_head_writes(edit: str, lesson: str) -> None:
    run = inside("inspect-attention", "The cat sat", "--what-if", edit)
    assert lesson in run.stdout.decode()
