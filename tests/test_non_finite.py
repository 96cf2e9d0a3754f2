"""Logits that are not finite: the message names the place in the model that first went bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kvgen
from kvgen.engine import finite
from kvgen.engine.trace import Capture
from kvgen.errors import KvgenError, NonFiniteError
from kvgen.generate import generate
from kvgen.loading import default_model
from kvgen.model import Model
from kvgen.session import Session
from tests import tiny
from tests.command import assert_fails, inside
from tests.conftest import BACKENDS

IDS = tiny.make_ids(150, seed=3)  # more than the chunks that the diagnosis runs
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def damaged(folder: Path, tensor: str, where: object, value: float, backend: str) -> Model:
    """A tiny model of which some numbers of one tensor are another value."""
    tensors = tiny.make_tensors("mistral")
    tensors[tensor][where] = value  # type: ignore[index]
    return kvgen.load(tiny.write_checkpoint(folder, "mistral", tensors), backend=backend)


@every_backend
@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize(
    ("tensor", "value", "kind"),
    [
        ("mlp.down_proj", np.nan, "NaN"),
        ("mlp.down_proj", 3e38, "(NaN|infinity)"),
        ("self_attn.o_proj", np.nan, "NaN"),
        ("self_attn.q_proj", np.nan, "NaN"),
        ("mlp.up_proj", np.inf, "(NaN|infinity)"),
    ],
)
def test_the_first_bad_layer_is_named(
    layer: int, tensor: str, value: float, kind: str, backend: str, tmp_path: Path
) -> None:
    where = (slice(0, 4), slice(None)) if value == 3e38 else (2, 3)
    model = damaged(tmp_path, f"model.layers.{layer}.{tensor}.weight", where, value, backend)
    message = f"^the model's logits are not finite: {kind} first appears in the output of layer "
    with pytest.raises(NonFiniteError, match=message + rf"{layer} \(position 0\); "):
        model.logits(IDS)
    with pytest.raises(NonFiniteError, match=message + rf"{layer} \(position 0\); "):
        list(model.generate(IDS[:5], max_new_tokens=3))
    with pytest.raises(NonFiniteError, match=message + rf"{layer} \(position 0\); "):
        model.inspect(IDS[:5])
    with pytest.raises(NonFiniteError, match=message + rf"{layer} \(position 0\); "):
        model.score(IDS[:5])


@every_backend
@pytest.mark.parametrize("position", [0, 12, 63, 64, 149])
def test_a_bad_embedding_is_named_with_its_position(
    position: int, backend: str, tmp_path: Path
) -> None:
    rare = next(token for token in range(131) if token not in IDS)
    model = damaged(tmp_path, "model.embed_tokens.weight", (rare, 3), np.nan, backend)
    ids = [*IDS[:position], rare, *IDS[position + 1 :]]
    place = rf"NaN first appears in the embedding \(position {position}\)"
    with pytest.raises(NonFiniteError, match=place):
        list(model.generate(ids, max_new_tokens=1))


@every_backend
def test_a_token_fed_by_a_decode_step_is_named_with_its_position(
    backend: str, tmp_path: Path
) -> None:
    rare = next(token for token in range(131) if token not in IDS)
    model = damaged(tmp_path, "model.embed_tokens.weight", (rare, 3), np.inf, backend)
    steps = generate(Session(model.engine, 9), IDS[:7], sampler=lambda *_: rare, max_new_tokens=3)
    next(steps)
    with pytest.raises(NonFiniteError, match=r"infinity first .* the embedding \(position 7\)"):
        next(steps)


@every_backend
def test_a_bad_final_norm_is_told_from_the_layers(backend: str, tmp_path: Path) -> None:
    model = damaged(tmp_path, "model.norm.weight", 3, np.nan, backend)
    with pytest.raises(NonFiniteError, match=r"in the final norm or the head \(position 0\); "):
        model.logits(IDS)


@every_backend
def test_a_bad_head_is_told_from_the_layers(backend: str, tmp_path: Path) -> None:
    model = damaged(tmp_path, "lm_head.weight", (5, 6), np.nan, backend)
    with pytest.raises(NonFiniteError, match=r"in the final norm or the head \(position 0\); "):
        model.logits(IDS)


@pytest.mark.parametrize("error", [MemoryError(), KvgenError("full")])
def test_where_the_diagnosis_fails_the_plain_message_stays(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Capture:
        raise error

    model = damaged(tmp_path, "model.norm.weight", 3, np.nan, "numpy")
    monkeypatch.setattr(finite, "Capture", fail)
    with pytest.raises(NonFiniteError, match=r"not finite \(NaN or infinity\): its weights are"):
        model.logits(IDS)


def test_finite_logits_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "first_non_finite", None)  # nobody may call it
    finite.require_finite(np.zeros(3, np.float32))


@every_backend
def test_only_narrow_weights_are_told_to_try_f32(backend: str, tmp_path: Path) -> None:
    tensors = tiny.make_tensors("mistral")
    tensors["model.norm.weight"][3] = np.nan
    for kind, advised in (("F32", False), ("BF16", True)):
        folder = tiny.write_checkpoint(tmp_path / kind, "mistral", tensors, kind=kind)
        with pytest.raises(NonFiniteError) as raised:
            kvgen.load(folder, backend=backend).logits(IDS[:3])
        assert ("try --dtype f32" in str(raised.value)) == advised


@every_backend
def test_the_commands_name_the_layer_and_exit_with_6(backend: str, tmp_path: Path) -> None:
    for file in default_model().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][2, 3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    options = ["-m", str(tmp_path), "--backend", backend]
    for command in (
        ["generate", "Once"], ["inspect-attention", "Once"], ["bench", "-p", "4", "-q"], ["verify"],
    ):  # fmt: skip
        run = inside(*command, *options)
        assert_fails(run, 6, "NaN first appears in the output of layer 1 (position 0); ")
