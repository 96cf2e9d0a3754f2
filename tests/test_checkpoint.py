"""What lies in a model folder, and what people have there instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kvgen
from kvgen.checkpoint.bind import bind
from kvgen.checkpoint.families import find
from kvgen.checkpoint.folder import open_checkpoint
from kvgen.errors import CheckpointError, ModelNotFoundError
from tests import tiny
from tests.configs import CONFIGS

NAME = "llama_gqa"
IDS = tiny.make_ids(20)


def refuse(folder: Path, message: str) -> None:
    """The folder is refused as a checkpoint, with one line that says why."""
    with pytest.raises(CheckpointError, match=message) as failure:
        kvgen.load(folder)
    assert "\n" not in str(failure.value)


def edit_config(folder: Path, **changes: object) -> Path:
    """Change or (with None) keep keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_shards_give_the_same_model_as_one_file(tmp_path: Path) -> None:
    whole = kvgen.load(tiny.write_checkpoint(tmp_path / "whole", NAME))
    parts = kvgen.load(tiny.write_shards(tmp_path / "parts", NAME))
    np.testing.assert_array_equal(whole.logits(IDS), parts.logits(IDS))


@pytest.mark.parametrize("prefix", ["", "model.", "transformer.", "model.transformer."])
def test_a_prefix_in_front_of_every_name_plays_no_part(prefix: str, tmp_path: Path) -> None:
    tensors = tiny.make_tensors("gpt2")
    renamed = {prefix + name.removeprefix("transformer."): tensors[name] for name in tensors}
    one = kvgen.load(tiny.write_checkpoint(tmp_path / "one", "gpt2", tensors))
    other = kvgen.load(tiny.write_checkpoint(tmp_path / "other", "gpt2", renamed))
    np.testing.assert_array_equal(one.logits(IDS), other.logits(IDS))


def test_saved_buffers_are_not_taken_for_weights(tmp_path: Path) -> None:
    tensors = tiny.make_tensors("gpt2")
    for layer in range(CONFIGS["gpt2"]["n_layer"]):
        tensors[f"transformer.h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 256, 256), np.float32))
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = np.array([-1e4], np.float32)
    kvgen.load(tiny.write_checkpoint(tmp_path / "gpt2", "gpt2", tensors))
    llama = tiny.make_tensors(NAME)
    llama["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(10, np.float32)
    kvgen.load(tiny.write_checkpoint(tmp_path / "llama", NAME, llama))


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "f32"), ("F16", "f16"), ("BF16", "bf16")])
def test_weights_stay_in_the_mapped_file(
    kind: str, dtype: str, tiny_folder: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(tiny_folder("llama_gqa", kind))
    params = bind(checkpoint, find(checkpoint.config))
    assert params.dtype == dtype
    stored = checkpoint.tensors["model.layers.1.self_attn.k_proj.weight"].mapped
    assert np.shares_memory(params.layers[1].k.weight.stored, stored)
    assert params.head.weight is params.embed


def test_mixed_widths_become_float32(tmp_path: Path) -> None:
    tensors = tiny.make_tensors(NAME)
    stored = tiny.as_stored(tensors, "BF16")
    stored["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    tiny.write_checkpoint(tmp_path, NAME)
    save_file(stored, tmp_path / "model.safetensors")
    assert kvgen.load(tmp_path).engine.dtype == "f32"


def test_a_file_whose_numbers_are_not_aligned_is_read_right(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    expected = kvgen.load(folder).logits(IDS)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip() + b" " * 3  # the library pads to 8; not all do
    header += b" " * (1 - len(header) % 2)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    np.testing.assert_array_equal(kvgen.load(folder).logits(IDS), expected)


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no such model folder"):
        kvgen.load(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    refuse(folder / "config.json", "is a file; name the folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"abc", r"is truncated \(3 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"PK\x03\x04" + b"archive/data.pkl" * 4, "a PyTorch .bin archive"),
        (b"GGUF\x03" + b"\x00" * 19, "a GGUF file"),
        ((2**60).to_bytes(8, "little") + b"{}", "is truncated"),
        ((2).to_bytes(8, "little") + b"[]", "header is broken"),
        ((9).to_bytes(8, "little") + b"{not json", "header is broken"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "header is broken"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "header is broken"),
    ],
)
def test_what_is_not_safetensors_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    (folder / "model.safetensors").write_bytes(content)
    refuse(folder, message)


@pytest.mark.parametrize("lost", [1, 1000, 40_000])
def test_a_truncated_download_is_named(lost: int, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-lost])
    refuse(folder, r"is truncated \([\d,]+ of [\d,]+ bytes\)")


def test_every_single_byte_cut_of_the_header_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for length in range(0, 600, 7):
        path.write_bytes(content[:length])
        refuse(folder, "model.safetensors")


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\0" * 16
    )
    refuse(folder, "header is broken")


def test_other_formats_in_the_folder_are_named(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(folder, r"is missing \(found pytorch_model.bin; to convert: python -c")


def test_a_gguf_file_in_the_folder_is_named(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    (folder / "model.safetensors").rename(folder / "model.gguf")
    refuse(folder, r"is missing \(found model.gguf, which kvgen does not read\)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[1]", "should hold a JSON object"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b'{"a":' * 100_000, "is not valid JSON"),
        (b"{}", "model_type is missing"),
        (b'{"model_type": "mamba"}', "model_type 'mamba' is not supported; kvgen knows cohere, "),
        (b'{"model_type": ["llama"]}', "is not supported"),
    ],
)
def test_a_wrong_config_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    (folder / "config.json").write_bytes(content)
    refuse(folder, message)


def test_a_folder_without_config(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    (folder / "config.json").unlink()
    refuse(folder, "config.json is missing")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = tiny.make_tensors(NAME)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    refuse(
        tiny.write_checkpoint(tmp_path, NAME, tensors),
        "tensor `layers.2.mlp.up_proj.weight` is missing; the download may be incomplete",
    )


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    tensors = tiny.make_tensors(NAME)
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(20, np.float32)
    refuse(
        tiny.write_checkpoint(tmp_path, NAME, tensors),
        "`model.layers.0.self_attn.q_norm.weight` has no place in this model",
    )


def test_a_bias_that_the_config_does_not_mention_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, "llama_biased")
    refuse(edit_config(folder, attention_bias=False), r"k_proj.bias` \(and 11 more\) has no place")


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    refuse(
        edit_config(folder, intermediate_size=77),
        r"gate_proj.weight` has shape \[76, 54\], config.json asks for \[77, 54\]",
    )


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint8])
def test_a_tensor_of_another_kind_is_refused(dtype: type, tmp_path: Path) -> None:
    tensors = tiny.make_tensors(NAME)
    tiny.write_checkpoint(tmp_path, NAME)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((76, 54), dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    refuse(tmp_path, "up_proj.weight` is stored as .*; kvgen reads F32, F16, BF16")


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    refuse(edit_config(folder, tie_word_embeddings=False), "`lm_head.weight` is missing")


def test_a_missing_head_is_tied_where_the_config_is_silent(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    tied = kvgen.load(folder).logits(IDS)
    silent = kvgen.load(edit_config(folder, tie_word_embeddings=None)).logits(IDS)
    np.testing.assert_array_equal(tied, silent)


def test_a_tied_head_that_differs_is_used_with_a_note(tmp_path: Path) -> None:
    tensors = tiny.make_tensors(NAME)
    folder = tiny.write_checkpoint(tmp_path / "a", NAME, tensors)
    assert kvgen.load(folder).notes == ()
    same = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    assert kvgen.load(tiny.write_checkpoint(tmp_path / "b", NAME, same)).notes == ()
    other = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    differing = kvgen.load(tiny.write_checkpoint(tmp_path / "c", NAME, other))
    assert "differs from the embedding" in differing.notes[0]
    untied = kvgen.load(edit_config(tmp_path / "c", tie_word_embeddings=False))
    np.testing.assert_array_equal(differing.logits(IDS), untied.logits(IDS))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "`weight_map` should name the file of each tensor"),
        ([], "`weight_map` should name the file of each tensor"),
        ({"a": "../elsewhere.safetensors"}, "is not the name of a file beside it"),
        ({"a": "/dev/zero"}, "is not the name of a file beside it"),
        ({"a": "a\0b"}, "is not the name of a file beside it"),
        ({"a": ".."}, "is not the name of a file beside it"),
        ({"a": ""}, "is not the name of a file beside it"),
        ({"a": 3}, "is not the name of a file beside it"),
        ({"a": "model-00009.safetensors"}, "model-00009.safetensors is missing"),
    ],
)
def test_a_wrong_index_is_named(weight_map: object, message: str, tmp_path: Path) -> None:
    folder = tiny.write_shards(tmp_path, NAME)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refuse(folder, message)


def test_an_index_says_only_which_files_there_are(tmp_path: Path) -> None:
    folder = tiny.write_shards(tmp_path, NAME, n_shards=2)
    expected = kvgen.load(folder).logits(IDS)
    path = folder / "model.safetensors.index.json"
    first, second = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    for weight_map in ({"model.norm.weight": second, "x": first}, {"a": first, "b": second}):
        path.write_text(json.dumps({"weight_map": weight_map}))  # as in transformers
        np.testing.assert_array_equal(kvgen.load(folder).logits(IDS), expected)
    path.write_text(json.dumps({"weight_map": {"a": first}}))
    refuse(folder, "is missing; the download may be incomplete")


def test_a_tensor_in_two_shards_is_read_where_both_agree(tmp_path: Path) -> None:
    folder = tiny.write_shards(tmp_path, NAME, n_shards=2)
    expected = kvgen.load(folder).logits(IDS)
    first, second = sorted(folder.glob("model-*.safetensors"))
    both = load_file(first) | load_file(second)
    save_file(both, second)
    np.testing.assert_array_equal(kvgen.load(folder).logits(IDS), expected)
    name = next(iter(load_file(first)))
    for other in (both[name] + 1, both[name][None], both[name].astype(np.float16)):
        save_file(both | {name: other}, second)
        refuse(folder, "is in both model-00001-of-00002.safetensors and .*, with different numbers")


def test_two_tensors_for_one_place_are_refused_unless_they_are_the_same(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    tensors = tiny.make_tensors(NAME)
    tensors["norm.weight"] = tensors["model.norm.weight"]
    copied = kvgen.load(tiny.write_checkpoint(tmp_path / "same", NAME, tensors)).logits(IDS)
    np.testing.assert_array_equal(copied, kvgen.load(tiny_folder(NAME)).logits(IDS))
    tensors["norm.weight"] = tensors["model.norm.weight"] + 1
    refuse(tiny.write_checkpoint(tmp_path / "other", NAME, tensors), "would be the same tensor")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "quantization_config = .* is not understood"),
        ({"sliding_window_size": 128}, "sliding_window_size = 128 is not understood"),
        ({"is_causal": False}, "is_causal = False is not understood"),
        ({"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config = .* is not understood"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types = .* is not understood"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types should be 3 of full_attention"),
        ({"rms_norm_eps": None}, "rms_norm_eps should be a number, not None"),
        ({"num_local_experts": 8}, "num_local_experts = 8 is not understood"),
        (
            {"rope_scaling": {"rope_type": "spiral"}},
            "rope type 'spiral' is not supported",
        ),
        ({"rope_scaling": {"type": "linear"}}, "config.json: rope_scaling: factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "shift": 3}}, "shift = 3 is not"),
        ({"rope_scaling": 7}, "rope_scaling should be an object, not 7"),
        ({"hidden_act": "quick_gelu"}, "hidden_act should be one of gelu, .*, not 'quick_gelu'"),
        ({"hidden_size": "54"}, "hidden_size should be a positive whole number, not '54'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers should be a positive whole number"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers should be a positive whole number"),
        ({"num_attention_heads": True}, "num_attention_heads should be a positive whole number"),
        ({"num_key_value_heads": 4}, "6 query heads cannot share 4 key/value heads evenly"),
        ({"head_dim": 7}, r"RoPE needs an even head size \(or part of it\), not 7"),
        ({"head_dim": None, "hidden_size": 55}, "6 heads do not divide a width of 55"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps should be a number"),
        ({"rms_norm_eps": float("nan")}, "a norm's epsilon cannot be nan"),
        ({"rope_theta": -1}, "RoPE's theta and factors must be positive"),
        ({"attention_bias": "no"}, "attention_bias should be true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id should be a token id or a list of them"),
    ],
)
def test_a_config_key_that_is_not_understood_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    refuse(edit_config(tiny.write_checkpoint(tmp_path, NAME), **changes), message)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": None, "rope_scaling": None, "rope_interleaved": False},
        {"pretraining_tp": 1, "torch_dtype": "bfloat16", "transformers_version": "4.40.1"},
        {"attention_dropout": 0.1, "use_cache": True, "initializer_range": 0.041},
        {"transformers.js_config": {"dtype": "q4"}, "is_llama_config": True},
        {"rope_scaling": {"rope_type": "default"}},
        {"eos_token_id": [1, 2]},
    ],
)
def test_config_keys_that_change_nothing_are_accepted(
    changes: dict[str, object], tmp_path: Path
) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    expected = kvgen.load(folder).logits(IDS)
    np.testing.assert_array_equal(kvgen.load(edit_config(folder, **changes)).logits(IDS), expected)


def test_keys_that_play_no_part_are_listed(tiny_folder: Callable[..., Path]) -> None:
    ignored = kvgen.load(tiny_folder("gpt2")).ignored_keys
    assert "embd_pdrop" in ignored and "n_embd" not in ignored


def test_stop_ids_are_those_of_every_file(tmp_path: Path) -> None:
    folder = edit_config(tiny.write_checkpoint(tmp_path, NAME), eos_token_id=[3, 4])
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert kvgen.load(folder).stop_ids == {3, 4, 5}


@pytest.mark.parametrize("option", ["backend", "dtype", "cache_dtype"])
def test_an_unknown_choice_is_refused(option: str, tiny_folder: Callable[..., Path]) -> None:
    with pytest.raises(kvgen.errors.UsageError, match="'f99' is not one of auto, "):
        kvgen.load(tiny_folder("gpt2"), **{option: "f99"})
