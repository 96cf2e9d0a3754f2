"""Keys of config.json: which of them a family reads, and what each value of them means.

What must be equal here was held against transformers 5.24.0, which gives the same logits for both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvgen
from kvgen.checkpoint.families import FAMILIES, Keys, find, read_config
from kvgen.checkpoint.families.rope import ROPE_KEYS
from kvgen.errors import CheckpointError
from kvgen.facts import read_facts
from tests import tiny
from tests.configs import CONFIGS

IDS = tiny.make_ids(40)
ABSENT = object()
Changes = dict[str, Any]
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_LONG = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.2, 2.0, 4.0, 9.0]}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def with_changes(name: str, changes: Changes) -> dict[str, Any]:
    config = CONFIGS[name] | changes
    return {key: value for key, value in config.items() if value is not ABSENT}


def logits(folder: Path, name: str, changes: Changes) -> np.ndarray:
    """Of the tiny model with these keys changed."""
    tiny.write_checkpoint(folder, name)
    (folder / "config.json").write_text(json.dumps(with_changes(name, changes)))
    return kvgen.load(folder, backend="numpy").logits(IDS)


# What each of these says is what the second says, where it is there, or the unchanged config.
SAME: list[tuple[str, Changes, Changes]] = [
    # counts that may be 0, negative, null or beyond the layers
    ("qwen2", {"max_window_layers": 0}, {}),
    ("qwen2", {"sliding_window": 0}, {}),
    ("qwen3", {"max_window_layers": -1}, {}),
    ("qwen2_window", {"max_window_layers": 0}, {"layer_types": [_SLIDING] * 4}),
    ("qwen2_window", {"max_window_layers": -3}, {"max_window_layers": 0}),
    ("qwen2_window", {"max_window_layers": 99}, {"use_sliding_window": False}),
    ("qwen2_window", {"sliding_window": None}, {"use_sliding_window": False}),
    ("qwen2", {"layer_types": ["attention"] * 4}, {}),
    ("phi", {"num_key_value_heads": None}, {"num_key_value_heads": ABSENT}),
    ("smollm3", {"no_rope_layer_interval": -4}, {}),
    ("smollm3", {"no_rope_layer_interval": 0, "no_rope_layers": [1, 1, 1, 0, 1]}, {}),
    ("smollm3", {"no_rope_layers": [2, -1, 1, 0, 7, 0, 0]}, {}),
    ("smollm3", {"no_rope_layers": None}, {}),
    ("smollm3", {"sliding_window": 0}, {}),
    ("smollm3_window", {"layer_types": [_FULL, _SLIDING, _FULL, _FULL, _SLIDING]}, {}),
    (
        "smollm3_window",
        {"layer_types": [_FULL, _SLIDING, _FULL, _FULL, _SLIDING], "use_sliding_window": False},
        {},
    ),
    ("gemma3", {"sliding_window_pattern": -6}, {}),
    ("gemma3", {"sliding_window_pattern": 6.0}, {}),
    ("gemma2", {"sliding_window": 0, "layer_types": [_FULL] * 4}, {"sliding_window": 999}),
    ("mistral", {"sliding_window": 2**31}, {"sliding_window": None}),
    ("mistral_global", {"head_dim": 0}, {}),
    ("gpt2", {"n_inner": None}, {"n_inner": ABSENT}),
    ("gpt_neo", {"attention_types": None}, {}),
    ("opt", {"word_embed_proj_dim": None}, {}),
    ("cohere", {"use_qk_norm": None}, {}),
    # the usual names win over a family's own, and what is written out over what it was made from
    ("gpt2", {"n_head": 4, "num_attention_heads": 5, "n_embd": ABSENT, "hidden_size": 40}, {}),
    ("gpt_neo", {"num_layers": ABSENT, "num_hidden_layers": 4, "num_attention_heads": 5}, {}),
    ("gpt_neo", {"attention_types": [[["local"], 4]]}, {}),
    # a part of a head is turned only where the reference asks for it
    ("llama_gqa", {"partial_rotary_factor": 0.5}, {}),
    ("gemma3", {"partial_rotary_factor": 0.5}, {}),
    ("gpt_neox", {"partial_rotary_factor": 0.5, "rope_theta": 5.0, "num_key_value_heads": 1}, {}),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.25}, "rotary_pct": 1.0}, {}),
    ("gpt_neox", {"head_dim": 8}, {"rotary_pct": 0.125}),
    ("stablelm", {"head_dim": 16}, {}),
    ("opt", {"head_dim": 3, "num_key_value_heads": 5, "rope_theta": 3.0}, {}),
    ("gemma", {"hidden_activation": "silu"}, {}),
    ("gemma2", {"hidden_act": "relu"}, {}),
    ("gemma3", {"attn_logit_softcapping": 1.0}, {}),
    # RoPE under its old names and its new ones, and what goes before what
    ("llama_gqa", {"rope_scaling": _YARN | {"attn_factor": 0.9}}, {"rope_parameters": _YARN}),
    ("llama_gqa", {"rope_scaling": _YARN, "rope_parameters": {"rope_theta": 5.0}},
     {"rope_scaling": _YARN}),
    ("llama_gqa", {"rope_scaling": _YARN | {"beta_fast": 0, "beta_slow": None}},
     {"rope_scaling": _YARN | {"beta_fast": 32, "beta_slow": 1}}),
    ("llama_gqa", {"rope_scaling": _YARN | {"truncate": None}},
     {"rope_scaling": _YARN | {"truncate": False}}),
    ("llama_gqa", {"rope_scaling": _YARN | {"factor": None}}, {"rope_scaling": _YARN}),
    ("llama_gqa", {"rope_scaling": _YARN | {"original_max_position_embeddings": 64.0}},
     {"rope_scaling": _YARN}),
    ("llama_gqa", {"rope_scaling": _LLAMA3, "original_max_position_embeddings": 16},
     {"rope_scaling": _LLAMA3 | {"original_max_position_embeddings": 16}}),
    ("llama_gqa", {"rope_scaling": {"rope_type": "default", "factor": 3.0, "beta_fast": 2}}, {}),
    ("llama_gqa", {"rope_scaling": {"type": "linear", "factor": 2, "mscale": 3}},
     {"rope_scaling": {"type": "linear", "factor": 2}}),
    ("phi3_longrope", {"rope_scaling": _LONG | {"type": "yarn"}}, {}),
    ("phi3_longrope",
     {"rope_scaling": _LONG | {"type": "longrope", "original_max_position_embeddings": 9}}, {}),
    ("gemma3", {"rope_scaling": {"type": "linear", "factor": 8.0}}, {}),
    ("gemma3", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, {}),
    ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
     {"rope_parameters": {_FULL: {"rope_type": "linear", "factor": 8.0}}}),
    # keys of other models, left over
    ("qwen2", {"attention_bias": True, "use_flash_attention_2": True}, {}),
    ("qwen2", {"attention_bias": False, "attention_probs_dropout_prob": 0.1}, {}),
    ("phi", {"rms_norm_eps": 0.5}, {}),
    ("stablelm", {"rms_norm_eps": 0.5}, {}),
    ("cohere", {"rms_norm_eps": 0.5}, {}),
    ("llama_gqa", {"sliding_window": 5, "layer_norm_eps": 0.5}, {}),
    ("starcoder2", {"layer_types": [_FULL, _SLIDING] * 2}, {}),
    ("gpt2", {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "meaning"), SAME, ids=[f"{name}-{list(keys)}" for name, keys, _ in SAME]
)
def test_a_key_means_what_it_means_to_the_reference(
    name: str, changes: Changes, meaning: Changes, tmp_path: Path
) -> None:
    found = logits(tmp_path / "a", name, changes)
    np.testing.assert_array_equal(found, logits(tmp_path / "b", name, meaning))


# transformers fails on each of these too, but for some that its checks let through by accident.
REFUSED: list[tuple[str, Changes, str]] = [
    ("qwen2_window", {"sliding_window": 0}, "sliding_window should be a positive whole number"),
    ("qwen2", {"sliding_window": 2.0}, "sliding_window should be a whole number, not 2.0"),
    ("qwen2", {"max_window_layers": None}, "max_window_layers should be a whole number, not None"),
    ("qwen2", {"layer_types": [_SLIDING] * 4}, "sliding_window should be a positive"),
    ("qwen2", {"layer_types": [_FULL] * 3}, "layer_types should be 4 of"),
    ("qwen2", {"head_dim": None}, "head_dim should be a positive whole number, not None"),
    ("mistral", {"num_key_value_heads": None}, "num_key_value_heads should be a positive"),
    ("llama_gqa", {"hidden_size": 54.0}, "hidden_size should be a positive whole number"),
    ("llama_gqa", {"rope_theta": None}, "rope_theta should be a number, not None"),
    ("gemma2", {"sliding_window": None}, "sliding_window should be a whole number"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar should be a positive"),
    ("gemma3", {"query_pre_attn_scalar": -4}, "query_pre_attn_scalar should be a positive"),
    ("gemma2", {"query_pre_attn_scalar": 24.5}, "query_pre_attn_scalar should be a whole number"),
    ("gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern should be another number"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval should be another number"),
    ("stablelm", {"head_dim": 8}, "head_dim should be width / heads, 16, not 8"),
    ("llama_linear", {"partial_rotary_factor": 0.5}, "partial_rotary_factor should be 1: "),
    ("phi", {"partial_rotary_factor": None}, "partial_rotary_factor should be a number"),
    ("phi", {"partial_rotary_factor": float("nan")}, "partial_rotary_factor should be a part"),
    ("phi", {"partial_rotary_factor": -1}, "partial_rotary_factor should be a part of a head"),
    ("gpt_neox", {"rotary_pct": 1.5}, "RoPE cannot turn more than a head's size"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear' is not"),
    ("phi3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "short_factor is missing"),
    ("llama_yarn", {"rope_parameters": _YARN | {"rope_theta": 1}}, "yarn divides by log"),
    ("llama_yarn", {"rope_parameters": {"rope_type": "yarn"}}, "factor should be a number"),
    ("llama_yarn", {"rope_parameters": _YARN | {"beta_fast": -1}}, "bounds must be positive"),
    ("llama_yarn", {"rope_parameters": _YARN | {"factor": 1e-29, "rope_theta": 1e-29}},
     "angles beyond what float32 can hold"),
    ("llama_yarn",
     {"rope_parameters": _YARN | {"factor": 2.718281828459045, "mscale": 1, "mscale_all_dim": -10}},
     "mscale_all_dim should be another number: it divides by 0"),
    ("llama_gqa", {"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}},
     "dynamic divides by the turned numbers - 2"),
    ("llama_dynamic", {"rope_scaling": {"type": "dynamic", "factor": 1e29}},
     "angles beyond what float32 can hold"),
    ("phi3_longrope", {"original_max_position_embeddings": 1}, "an original context of 1"),
    ("llama_gqa", {"num_hidden_layers": 2**16 - 1}, "there are only 29 tensors"),
    ("llama_gqa", {"num_hidden_layers": 2**23}, "num_hidden_layers should be a positive whole"),
    ("cohere", {"num_attention_heads": 2**23, "num_key_value_heads": 1, "head_dim": 2**23},
     "are beyond any model"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True is not understood"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    REFUSED,
    ids=[f"{name}-{list(keys.items())}"[:80] for name, keys, _ in REFUSED],
)
def test_a_value_that_no_model_can_have_is_refused(
    name: str, changes: Changes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as failure:
        logits(tmp_path, name, changes)
    assert str(failure.value).isprintable()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_reference_is_read_or_refused(family: str) -> None:
    """What a family lists as read by the reference is implemented, or refused where it is set."""
    text = "gemma3_text" if family == "gemma3" else family
    config = next(config for config in CONFIGS.values() if config["model_type"] == text)
    keys = Keys(config)
    FAMILIES[family].config(keys)
    FAMILIES[family].sources(keys)
    asked = FAMILIES[family].reads & keys.read
    for key in FAMILIES[family].reads - asked - {"tie_word_embeddings"}:
        with pytest.raises(CheckpointError):
            read_config(FAMILIES[text], config | {key: "odd"})
    assert "vocab_size" in asked and "max_position_embeddings" in FAMILIES[family].reads


def test_keys_of_other_models_are_named_in_one_note() -> None:
    config = CONFIGS["qwen3"] | {
        "rope_scaling": _YARN | {"attn_factor": 0.87},
        "layer_norm_eps": 1e-5,
        "pretraining_tp": 1,
    }
    reading = read_config(find(config), config)
    assert reading.notes == (
        "config.json: qwen3 models do not read rope_scaling.attn_factor, layer_norm_eps: ignored",
    )
    assert {"layer_norm_eps", "pretraining_tp"} <= set(reading.ignored)


def test_info_tells_of_keys_that_are_ignored(tmp_path: Path) -> None:
    logits(tmp_path, "llama_gqa", {"sliding_window": 4096})
    assert read_facts(tmp_path).notes == (
        "config.json: llama models do not read sliding_window: ignored",
    )


def test_a_key_that_nobody_knows_is_refused_inside_rope_too(tmp_path: Path) -> None:
    assert "spread" not in ROPE_KEYS
    for changes in ({"rope_scaling": _YARN | {"spread": 2}}, {"rope_spread": 2}):
        with pytest.raises(CheckpointError, match="spread = 2 is not understood"):
            logits(tmp_path, "llama_gqa", changes)


def test_a_long_value_is_cut_short_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as failure:
        logits(tmp_path, "llama_gqa", {"rope_scaling": list(range(10**5)), "hidden_act": "a\nb"})
    assert len(str(failure.value)) < 200
