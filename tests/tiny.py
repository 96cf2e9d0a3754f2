"""Tiny random checkpoints with awkward numbers, written as real files.

Weights come from NumPy's legacy generator, whose stream is frozen: the golden files hold logits
only, and `make_golden.py` rebuilds the same models for the reference implementation.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]

_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 54,
    "intermediate_size": 76,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
}
_GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 40,
    "n_layer": 3,
    "n_head": 5,
    "n_positions": 256,
    "n_ctx": 256,
    "n_inner": None,
    "vocab_size": 131,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "summary_type": "cls_index",
    "summary_proj_to_labels": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    # head size apart from width / heads, grouped queries, tied head
    "llama_gqa": _LLAMA | {"head_dim": 20},
    # a head of its own, biases everywhere, no grouping, another theta
    "llama_biased": _LLAMA
    | {
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        "rope_scaling": None,
    },
    # one key/value head for all, the smallest head, frequencies of Llama 3.1
    "llama3_mqa": _LLAMA
    | {
        "head_dim": 4,
        "num_key_value_heads": 1,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    # the newer dialect of the config, linear scaling, another activation
    "llama_linear": _LLAMA
    | {
        "head_dim": 12,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 20000.0},
    },
    "gpt2": _GPT2,
    "gpt2_inverse": _GPT2
    | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 52, "activation_function": "gelu"},
    "gpt2_unscaled": _GPT2
    | {
        "scale_attn_weights": False,
        "activation_function": "relu",
        "tie_word_embeddings": False,
    },
}


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the reference implementation saves them."""
    if config["model_type"] == "gpt2":
        return _gpt2_shapes(config)
    C, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    D = config.get("head_dim", C // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, C)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}input_layernorm.weight": (C,),
            f"{at}post_attention_layernorm.weight": (C,),
        }
        for name, out, width in (("q", q, C), ("k", kv, C), ("v", kv, C), ("o", C, q)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (out, width)
            if config.get("attention_bias"):
                shapes[f"{at}self_attn.{name}_proj.bias"] = (out,)
        for name, out, width in (("gate", F, C), ("up", F, C), ("down", C, F)):
            shapes[f"{at}mlp.{name}_proj.weight"] = (out, width)
            if config.get("mlp_bias"):
                shapes[f"{at}mlp.{name}_proj.bias"] = (out,)
    shapes["model.norm.weight"] = (C,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, C)
    return shapes


def _gpt2_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    C, V = config["n_embd"], config["vocab_size"]
    F = config["n_inner"] or 4 * C
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (V, C),
        "transformer.wpe.weight": (config["n_positions"], C),
    }
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}."
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{at}{name}.weight": (C,), f"{at}{name}.bias": (C,)}
        for name, width, out in (
            ("attn.c_attn", C, 3 * C),
            ("attn.c_proj", C, C),
            ("mlp.c_fc", C, F),
            ("mlp.c_proj", F, C),
        ):
            shapes |= {f"{at}{name}.weight": (width, out), f"{at}{name}.bias": (out,)}
    shapes |= {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}
    if config.get("tie_word_embeddings") is False:
        shapes["lm_head.weight"] = (V, C)
    return shapes


def make_tensors(config: Mapping[str, Any]) -> Tensors:
    """Float32 weights whose logits are of order one: no norm weight is 1, no bias is 0."""
    tensors = {}
    for name, shape in _shapes(config).items():
        random = np.random.RandomState(zlib.crc32(name.encode()))
        numbers = random.standard_normal(shape)
        if len(shape) > 1:
            fan_in = shape[0] if ".c_" in name else shape[1]
            numbers *= 1.5 / np.sqrt(fan_in)
        elif name.endswith("bias"):
            numbers *= 0.2
        else:
            numbers = 1 + 0.2 * numbers
        tensors[name] = numbers.astype(np.float32)
    return tensors


def make_ids(length: int, *, vocab_size: int = 131, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.RandomState(seed).randint(0, vocab_size, length).tolist()


def as_stored(tensors: Tensors, kind: str) -> Tensors:
    """The tensors rounded to F32, F16 or BF16."""
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Tensors | None = None, *, kind: str = "F32"
) -> Path:
    """A checkpoint folder with config.json and model.safetensors, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = make_tensors(config) if tensors is None else tensors
    save_file(as_stored(tensors, kind), folder / "model.safetensors")
    return folder


def write_shards(folder: Path, config: Mapping[str, Any], *, n_shards: int = 3) -> Path:
    """The same checkpoint spread over several files with an index."""
    tensors = make_tensors(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weight_map = {}
    for shard in range(n_shards):
        file = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[shard::n_shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
