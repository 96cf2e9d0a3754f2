"""Names of tensors: a matrix under either of its names, constants, what training leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import kvgen
from kvgen.errors import CheckpointError
from kvgen.facts import read_facts
from tests import tiny
from tests.configs import CONFIGS

IDS = tiny.make_ids(20)
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
TIED = [
    name
    for name in CONFIGS
    if not {"lm_head.weight", "embed_out.weight"} & set(tiny.read_shapes(name))
]
UNTIED = ["llama_biased", "phi", "phi3", "gpt_neox", "stablelm", "olmo2", "mistral"]


def write(
    folder: Path,
    name: str,
    tensors: tiny.Tensors,
    *,
    metadata: dict[str, str] | None = None,
    **changes: object,
) -> Path:
    """A checkpoint with these tensors, what the file says of itself and changed keys."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in (CONFIGS[name] | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    return folder


def embedding_of(tensors: tiny.Tensors) -> str:
    return next(name for name in tensors if name.endswith(EMBEDDINGS))


@pytest.mark.parametrize("said", [True, False], ids=["metadata", "no metadata"])
@pytest.mark.parametrize("name", TIED)
def test_a_tied_model_may_hold_its_matrix_under_the_heads_name(
    name: str, said: bool, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    """What save_model of safetensors.torch writes: one name of a shared tensor, whichever it is."""
    tensors = tiny.make_tensors(name)
    embedding = embedding_of(tensors)
    tensors["lm_head.weight"] = tensors.pop(embedding)
    metadata = {"format": "pt", embedding: "lm_head.weight"} if said else None
    folder = write(tmp_path, name, tensors, metadata=metadata)
    expected = kvgen.load(tiny_folder(name))
    np.testing.assert_array_equal(kvgen.load(folder).logits(IDS), expected.logits(IDS))
    assert read_facts(folder).n_parameters == read_facts(tiny_folder(name)).n_parameters
    assert read_facts(folder).tied


@pytest.mark.parametrize("name", UNTIED)
def test_a_family_that_ties_only_where_config_json_says_so_is_tied_then(
    name: str, tmp_path: Path
) -> None:
    tensors = tiny.make_tensors(name)
    embedding = embedding_of(tensors)
    head = "embed_out.weight" if "embed_out.weight" in tensors else "lm_head.weight"
    without_head = {key: tensor for key, tensor in tensors.items() if key != head}
    expected = write(tmp_path / "a", name, without_head, tie_word_embeddings=True)
    del tensors[embedding]
    tensors[head] = without_head[embedding]
    found = write(tmp_path / "b", name, tensors, tie_word_embeddings=True)
    np.testing.assert_array_equal(kvgen.load(found).logits(IDS), kvgen.load(expected).logits(IDS))
    silent = write(tmp_path / "c", name, tensors, tie_word_embeddings=...)
    with pytest.raises(CheckpointError, match=f"{EMBEDDINGS[0][:3]}.* is missing"):
        kvgen.load(silent)


def test_metadata_names_the_tensor_that_stands_for_any_other(tmp_path: Path) -> None:
    tensors = tiny.make_tensors("llama_biased")
    kept, left_out = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    tensors[left_out] = tensors[kept]
    whole = write(tmp_path / "whole", "llama_biased", tensors)
    expected = kvgen.load(whole).logits(IDS)
    del tensors[left_out]
    shared = write(tmp_path / "shared", "llama_biased", tensors, metadata={left_out: kept})
    np.testing.assert_array_equal(kvgen.load(shared).logits(IDS), expected)
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj.weight` is missing"):
        kvgen.load(write(tmp_path / "cut", "llama_biased", tensors))


def test_the_bias_of_a_tied_head_is_added(tmp_path: Path) -> None:
    tensors = tiny.make_tensors("phi")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    both = write(tmp_path / "both", "phi", tensors, tie_word_embeddings=True)
    del tensors["lm_head.weight"]
    one = write(tmp_path / "one", "phi", tensors, tie_word_embeddings=True)
    np.testing.assert_array_equal(kvgen.load(one).logits(IDS), kvgen.load(both).logits(IDS))


def test_gpt_neox_may_call_its_head_by_the_usual_name(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    tensors = tiny.make_tensors("gpt_neox")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    found = kvgen.load(write(tmp_path, "gpt_neox", tensors)).logits(IDS)
    np.testing.assert_array_equal(found, kvgen.load(tiny_folder("gpt_neox")).logits(IDS))


CONSTANTS = [
    "model.rotary_emb.inv_freq",
    "model.rotary_emb.original_inv_freq",
    "model.rotary_emb.full_attention_original_inv_freq",
    "model.rotary_emb_local.inv_freq",
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.0.self_attn.rotary_emb.cos_cached",
    "model.layers.0.self_attn.rotary_emb.sin_cached",
    "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    "gpt_neox.layers.0.attention.bias",
    "gpt_neox.layers.0.attention.masked_bias",
    "transformer.h.0.attn.bias",
    "transformer.h.0.attn.attention.masked_bias",
    "transformer.h.0.crossattention.bias",
    "model.embeddings.position_ids",
    "model.embed_tokens.embed_scale",
    "model.causal_mask",
    "position_ids",
]


@pytest.mark.parametrize("kind", [np.bool_, np.int64, np.float64, np.uint8])
def test_constants_beside_the_weights_are_ignored_whatever_their_type(
    kind: type, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    tensors = tiny.make_tensors("llama_gqa") | {
        name: np.ones((1 + number, 2), kind) for number, name in enumerate(CONSTANTS)
    }
    found = kvgen.load(write(tmp_path, "llama_gqa", tensors)).logits(IDS)
    np.testing.assert_array_equal(found, kvgen.load(tiny_folder("llama_gqa")).logits(IDS))


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("_orig_mod.", "`_orig_mod.` in front .*torch.compile: save .* model._orig_mod"),
        ("module.", "`module.` in front .*data-parallel training: save .* model.module"),
        ("base_model.model.", "`base_model.model.` in front .*merge_and_unload"),
        ("model._fsdp_wrapped_module.", "`_fsdp_wrapped_module.` in front .*gather the full"),
    ],
)
def test_what_training_leaves_in_front_of_names_is_named(
    wrapper: str, message: str, tmp_path: Path
) -> None:
    tensors = {wrapper + name: tensor for name, tensor in tiny.make_tensors("llama_gqa").items()}
    with pytest.raises(CheckpointError, match=message):
        kvgen.load(write(tmp_path, "llama_gqa", tensors))


def test_a_name_with_control_signs_is_written_out_in_the_message(tmp_path: Path) -> None:
    tensors = tiny.make_tensors("llama_gqa") | {"a\x1b[2J\nb": np.ones(3, np.float32)}
    with pytest.raises(CheckpointError, match=r"'a\\x1b\[2J\\nb' is not a name for") as failure:
        kvgen.load(write(tmp_path, "llama_gqa", tensors))
    assert str(failure.value).isprintable()
