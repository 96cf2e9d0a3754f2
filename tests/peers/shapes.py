"""The models that are compared: shapes, configurations and random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

# Shapes of 15M llama2.c models, the default model, SmolLM2-135M, Qwen2.5-0.5B, and GPT-2 124M.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 6, "width": 288, "heads": 6, "kv_heads": 6, "ff": 768, "vocabulary": 32000},
    "default": {
        "layers": 8, "width": 320, "heads": 8, "kv_heads": 4, "ff": 864, "vocabulary": 4096,
    },
    "smol": {
        "layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "ff": 1536, "vocabulary": 49152,
    },
    "qwen": {
        "layers": 24, "width": 896, "heads": 14, "kv_heads": 2, "ff": 4864, "vocabulary": 151936,
    },
    "gpt2": {"layers": 12, "width": 768, "heads": 12, "ff": 3072, "vocabulary": 50257},
}  # fmt: skip
CONTEXT, GPT2_CONTEXT = 2048, 1024
REAL = "smollm2"  # a real checkpoint, of whatever size, goes by this name
# kvgen's (and the checkpoint's) name of a tensor, and GGUF's.
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def tensors(shape: dict[str, Any]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Checkpoint name, GGUF name and float32 numbers of every tensor, the same at every call."""
    random = np.random.default_rng(0)
    C, F, D = shape["width"], shape["ff"], shape["width"] // shape["heads"]
    keys = shape["kv_heads"] * D
    sizes = {
        "q_proj": (C, C), "k_proj": (keys, C), "v_proj": (keys, C), "o_proj": (C, C),
        "gate_proj": (F, C), "up_proj": (F, C), "down_proj": (C, F),
    }  # fmt: skip

    def numbers(*size: int) -> np.ndarray:
        return random.standard_normal(size, np.float32) * np.float32(0.04)

    yield "model.embed_tokens.weight", "token_embd.weight", numbers(shape["vocabulary"], C)
    yield "model.norm.weight", "output_norm.weight", np.ones(C, np.float32)
    for layer in range(shape["layers"]):
        for ours, theirs in LAYER.items():
            size = sizes.get(ours.split(".")[-1])
            weight = np.ones(C, np.float32) if size is None else numbers(*size)
            yield f"model.layers.{layer}.{ours}.weight", f"blk.{layer}.{theirs}.weight", weight


def gpt2_tensors(shape: dict[str, Any]) -> Iterator[tuple[str, str, np.ndarray]]:
    """What `tensors` gives, for GPT-2: biases everywhere, learned positions, matrices [out, in]."""
    random = np.random.default_rng(0)
    C, F = shape["width"], shape["ff"]
    sizes = {"attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "mlp.c_fc": (F, C)}
    sizes |= {"mlp.c_proj": (C, F)}

    def numbers(*size: int) -> np.ndarray:
        return random.standard_normal(size, np.float32) * np.float32(0.04)

    yield "transformer.wte.weight", "token_embd.weight", numbers(shape["vocabulary"], C)
    yield "transformer.wpe.weight", "position_embd.weight", numbers(GPT2_CONTEXT, C)
    yield "transformer.ln_f.weight", "output_norm.weight", np.ones(C, np.float32)
    yield "transformer.ln_f.bias", "output_norm.bias", np.zeros(C, np.float32)
    for layer in range(shape["layers"]):
        for ours, theirs in GPT2_LAYER.items():
            size = sizes.get(ours)
            weight = np.ones(C, np.float32) if size is None else numbers(*size)
            bias = numbers(C if size is None else size[0])
            yield f"transformer.h.{layer}.{ours}.weight", f"blk.{layer}.{theirs}.weight", weight
            yield f"transformer.h.{layer}.{ours}.bias", f"blk.{layer}.{theirs}.bias", bias


def config_of(name: str) -> dict[str, Any]:
    """The config.json of a model."""
    shape = SHAPES[name]
    if name == "gpt2":
        return {
            "model_type": "gpt2", "n_embd": shape["width"], "n_head": shape["heads"],
            "n_layer": shape["layers"], "n_positions": GPT2_CONTEXT,
            "vocab_size": shape["vocabulary"], "layer_norm_epsilon": 1e-5,
            "architectures": ["GPT2LMHeadModel"],
        }  # fmt: skip
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": shape["width"], "intermediate_size": shape["ff"],
        "max_position_embeddings": CONTEXT, "num_attention_heads": shape["heads"],
        "num_hidden_layers": shape["layers"], "num_key_value_heads": shape["kv_heads"],
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "vocab_size": shape["vocabulary"],
    }  # fmt: skip
