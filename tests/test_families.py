"""Families as users have them: the configs of published models, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvgen
from kvgen.checkpoint.families import FAMILIES, find, read_config
from kvgen.engine.config import ModelConfig, RopeConfig
from kvgen.errors import CheckpointError
from tests import tiny
from tests.configs import CONFIGS

IDS = tiny.make_ids(30)
_BF16 = {"torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02}
_LLAMA32_ROPE = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
# Phi-4-mini: head size 128, three quarters of it turned, so 48 factors.
_PHI4_LONG_FACTORS = [
    1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845,
    5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158,
    11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105,
    25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71,
    32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
]  # fmt: skip
_GEMMA3_4B_ROPES = (
    RopeConfig(theta=10000.0, dim=256),
    RopeConfig(theta=1000000.0, dim=256, kind="linear", factor=8.0),
)


def _sizes(
    width: int, ff: int, layers: int, heads: int, kv: int | None, vocabulary: int, context: int
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **({} if kv is None else {"num_key_value_heads": kv}),
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
    }


# The keys of published config.json files, with what they must come to.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SmolLM2-135M-Instruct": (
        _BF16 | _sizes(576, 1536, 30, 9, 3, 49152, 8192)
        | {"model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
           "hidden_act": "silu", "is_llama_config": True, "mlp_bias": False, "pretraining_tp": 1,
           "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
           "rope_theta": 100000, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
           "pad_token_id": 2, "transformers_version": "4.42.3",
           "initializer_range": 0.041666666666666664,
           "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}},
        {"head_dim": 64, "kv_floats_per_token": 2 * 30 * 3 * 64},
    ),
    "TinyLlama-1.1B-Chat-v1.0": (
        _BF16 | _sizes(2048, 5632, 22, 32, 4, 32000, 2048)
        | {"model_type": "llama", "attention_bias": False, "hidden_act": "silu",
           "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
           "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2},
        {"n_kv_heads": 4},
    ),
    "Llama-3.1-8B-Instruct": (
        _BF16 | _sizes(4096, 14336, 32, 32, 8, 128256, 131072)
        | {"model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
           "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
           "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
           "rope_scaling": _LLAMA32_ROPE | {"factor": 8.0}, "rope_theta": 500000.0,
           "tie_word_embeddings": False},
        {"head_dim": 128, "max_context": 131072},
    ),
    "Llama-3.2-1B-Instruct": (
        _BF16 | _sizes(2048, 8192, 16, 32, 8, 128256, 131072)
        | {"model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
           "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
           "hidden_act": "silu", "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
           "rope_scaling": _LLAMA32_ROPE, "rope_theta": 500000.0, "tie_word_embeddings": True},
        {"max_context": 131072},
    ),
    "gpt2": (
        {"model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1,
         "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
         "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768,
         "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
         "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
         "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
         "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
        {"d_ff": 3072, "rope": ()},
    ),
    "TinyStories-33M": (
        {"model_type": "gpt_neo", "activation_function": "gelu_new", "attention_dropout": 0,
         "attention_layers": ["global", "local", "global", "local"],
         "attention_types": [[["global", "local"], 2]], "bos_token_id": 50256, "embed_dropout": 0,
         "eos_token_id": 50256, "gradient_checkpointing": False, "hidden_size": 768,
         "initializer_range": 0.02, "intermediate_size": None, "layer_norm_epsilon": 1e-05,
         "max_position_embeddings": 2048, "num_heads": 16, "num_layers": 4, "resid_dropout": 0,
         "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
         "summary_type": "cls_index", "summary_use_proj": True, "torch_dtype": "float32",
         "use_cache": True, "vocab_size": 50257, "window_size": 256},
        {"attn_scales": (1.0,) * 4, "windows": (None, 256, None, 256), "d_ff": 3072},
    ),
    "pythia-14m": (
        _sizes(128, 512, 6, 4, None, 50304, 2048)
        | {"model_type": "gpt_neox", "attention_bias": True, "attention_dropout": 0.0,
           "classifier_dropout": 0.1, "hidden_act": "gelu", "hidden_dropout": 0.0,
           "layer_norm_eps": 1e-05, "rope_scaling": None, "rotary_emb_base": 10000,
           "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True},
        {"activation": "gelu", "parallel_residual": True},
    ),
    "pythia-70m": (
        _sizes(512, 2048, 6, 8, None, 50304, 2048)
        | {"model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
           "initializer_range": 0.02, "layer_norm_eps": 1e-05, "rotary_emb_base": 10000,
           "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
           "use_cache": True, "use_parallel_residual": True},
        {"head_dim": 64, "rope": (RopeConfig(theta=10000.0, dim=16),) * 6},
    ),
    "pythia-160m": (
        _sizes(768, 3072, 12, 12, None, 50304, 2048)
        | {"model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
           "initializer_range": 0.02, "layer_norm_eps": 1e-05, "rotary_emb_base": 10000,
           "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
           "use_cache": True, "use_parallel_residual": True},
        {"head_dim": 64, "rope": (RopeConfig(theta=10000.0, dim=16),) * 12},
    ),
    "Mistral-7B-v0.1": (
        _BF16 | _sizes(4096, 14336, 32, 32, 8, 32000, 32768)
        | {"model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-05,
           "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
           "bos_token_id": 1, "eos_token_id": 2},
        {"windows": (4096,) * 32, "head_dim": 128},
    ),
    "Mistral-7B-v0.3": (
        _BF16 | _sizes(4096, 14336, 32, 32, 8, 32768, 32768)
        | {"model_type": "mistral", "attention_dropout": 0.0, "bos_token_id": 1,
           "eos_token_id": 2, "hidden_act": "silu", "rms_norm_eps": 1e-05,
           "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False},
        {"windows": (), "head_dim": 128},
    ),
    "Qwen2.5-0.5B": (
        _BF16 | _sizes(896, 4864, 24, 14, 2, 151936, 32768)
        | {"model_type": "qwen2", "attention_dropout": 0.0, "bos_token_id": 151643,
           "eos_token_id": 151643, "hidden_act": "silu", "max_window_layers": 24,
           "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
           "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False},
        {"windows": (), "kv_floats_per_token": 24 * 256},
    ),
    "Qwen3-0.6B": (
        _BF16 | _sizes(1024, 3072, 28, 16, 8, 151936, 40960)
        | {"model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0,
           "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
           "max_window_layers": 28, "rms_norm_eps": 1e-06, "rope_scaling": None,
           "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
           "use_sliding_window": False},
        {"qk_norm": "head", "head_dim": 128},
    ),
    "SmolLM3-3B": (
        _BF16 | _sizes(2048, 11008, 36, 16, 4, 128256, 65536)
        | {"model_type": "smollm3", "attention_bias": False, "attention_dropout": 0.0,
           "hidden_act": "silu", "layer_types": ["full_attention"] * 36, "max_window_layers": 28,
           "mlp_bias": False, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
           "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None,
           "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False,
           "bos_token_id": 128000, "eos_token_id": 128012, "pad_token_id": 128004,
           "use_cache": False},
        {"windows": (), "rope": ((RopeConfig(theta=5000000.0, dim=128),) * 3 + (None,)) * 9},
    ),
    "gemma-2b": (
        _BF16 | _sizes(2048, 16384, 18, 8, 1, 256000, 8192)
        | {"model_type": "gemma", "attention_bias": False, "attention_dropout": 0.0,
           "head_dim": 256, "hidden_act": "gelu", "hidden_activation": None, "rms_norm_eps": 1e-06,
           "rope_scaling": None, "rope_theta": 10000.0, "bos_token_id": 2, "eos_token_id": 1,
           "pad_token_id": 0},
        {"activation": "gelu_tanh", "embed_scale": 2048**0.5},
    ),
    "gemma-2-2b-it": (
        _BF16 | _sizes(2304, 9216, 26, 8, 4, 256000, 8192)
        | {"model_type": "gemma2", "attention_bias": False, "attention_dropout": 0.0,
           "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid",
           "eos_token_id": [1, 107], "final_logit_softcapping": 30.0, "head_dim": 256,
           "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
           "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
           "sliding_window": 4096},
        {"attn_softcap": 50.0, "logit_softcap": 30.0, "windows": (4096, None) * 13},
    ),
    "gemma-3-270m": (
        _BF16 | _sizes(640, 2048, 18, 4, 1, 262144, 32768)
        | {"model_type": "gemma3_text", "_sliding_window_pattern": 6, "attention_bias": False,
           "attention_dropout": 0.0, "attn_logit_softcapping": None,
           "final_logit_softcapping": None, "head_dim": 256,
           "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
           "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
           "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": None,
           "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": False},
        {"windows": ((512,) * 5 + (None,)) * 3, "qk_norm": "head"},
    ),
    "gemma-3-1b-it": (
        _BF16 | _sizes(1152, 6912, 26, 4, 1, 262144, 32768)
        | {"model_type": "gemma3_text", "attention_bias": False, "attention_dropout": 0.0,
           "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid",
           "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
           "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0,
           "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
           "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
           "sliding_window_pattern": 6},
        {"windows": (((512,) * 5 + (None,)) * 5)[:26], "head_dim": 256},
    ),
    "gemma-3-4b-it: text_config": (
        {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
         "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4,
         "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
         "sliding_window_pattern": 6, "vocab_size": 262208},
        {"windows": (((1024,) * 5 + (None,)) * 6)[:34], "head_dim": 256, "max_context": 131072,
         "rope": ((_GEMMA3_4B_ROPES[:1] * 5 + _GEMMA3_4B_ROPES[1:]) * 6)[:34]},
    ),
    "phi-1": (
        _sizes(2048, 8192, 24, 32, None, 51200, 2048)
        | {"model_type": "phi", "attention_dropout": 0.0, "bos_token_id": None,
           "auto_map": {"AutoConfig": "configuration_phi.PhiConfig"}, "embd_pdrop": 0.0,
           "eos_token_id": None, "hidden_act": "gelu_new", "initializer_range": 0.02,
           "layer_norm_eps": 1e-05, "num_key_value_heads": None, "partial_rotary_factor": 0.5,
           "qk_layernorm": False, "resid_pdrop": 0.0, "rope_scaling": None, "rope_theta": 10000.0,
           "tie_word_embeddings": False, "torch_dtype": "float32"},
        {"n_kv_heads": 32, "rope": (RopeConfig(theta=10000.0, dim=32),) * 24},
    ),
    "phi-1_5": (
        _sizes(2048, 8192, 24, 32, None, 51200, 2048)
        | {"model_type": "phi", "attention_dropout": 0.0, "bos_token_id": None,
           "embd_pdrop": 0.0, "eos_token_id": None, "hidden_act": "gelu_new",
           "initializer_range": 0.02, "layer_norm_eps": 1e-05, "num_key_value_heads": None,
           "partial_rotary_factor": 0.5, "qk_layernorm": False, "resid_pdrop": 0.0,
           "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
           "torch_dtype": "float16"},
        {"parallel_residual": True, "head_dim": 64},
    ),
    "phi-2": (
        _sizes(2560, 10240, 32, 32, 32, 51200, 2048)
        | {"model_type": "phi", "attention_dropout": 0.0, "embd_pdrop": 0.0,
           "hidden_act": "gelu_new", "layer_norm_eps": 1e-05, "partial_rotary_factor": 0.4,
           "qk_layernorm": False, "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0,
           "tie_word_embeddings": False, "bos_token_id": 50256, "eos_token_id": 50256,
           "torch_dtype": "float16"},
        {"parallel_residual": True, "head_dim": 80,
         "rope": (RopeConfig(theta=10000.0, dim=32),) * 32},
    ),
    "Phi-3-mini-4k-instruct": (
        _BF16 | _sizes(3072, 8192, 32, 32, 32, 32064, 4096)
        | {"model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0,
           "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
           "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu",
           "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
           "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
           "tie_word_embeddings": False},
        {"windows": (2047,) * 32},
    ),
    "Phi-3-mini-128k-instruct": (
        _BF16 | _sizes(3072, 8192, 32, 32, 32, 32064, 131072)
        | {"model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0,
           "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu",
           "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
           "rope_scaling": {"type": "longrope", "short_factor": [1.05] * 48,
                            "long_factor": [1.07] * 48},
           "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False},
        {"max_context": 131072},
    ),
    "Phi-4-mini-instruct": (
        _BF16 | _sizes(3072, 8192, 32, 24, 8, 200064, 131072)
        | {"model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0,
           "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 199999,
           "embd_pdrop": 0.0, "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu",
           "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
           "original_max_position_embeddings": 4096, "pad_token_id": 199999,
           "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
           "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48,
                            "long_factor": _PHI4_LONG_FACTORS},
           "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True},
        {"head_dim": 128, "n_kv_heads": 8, "max_context": 131072},
    ),
    "OLMo-2-0425-1B": (
        _BF16 | _sizes(2048, 8192, 16, 16, 16, 100352, 4096)
        | {"model_type": "olmo2", "attention_bias": False, "attention_dropout": 0.0,
           "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_scaling": None,
           "rope_theta": 500000, "tie_word_embeddings": False},
        {"qk_norm": "whole"},
    ),
    "granite-3.1-2b-base": (
        _BF16 | _sizes(2048, 8192, 40, 32, 8, 49152, 131072)
        | {"model_type": "granite", "attention_bias": False, "attention_dropout": 0.1,
           "attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "hidden_act": "silu",
           "logits_scaling": 8.0, "mlp_bias": False, "residual_multiplier": 0.22,
           "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 5000000.0,
           "tie_word_embeddings": True},
        {"attn_scales": (0.015625,) * 40, "logit_scale": 0.125, "embed_scale": 12.0,
         "residual_scale": 0.22},
    ),
    "stablelm-2-1_6b": (
        _sizes(2048, 5632, 24, 32, 32, 100352, 4096)
        | {"model_type": "stablelm", "hidden_act": "silu", "layer_norm_eps": 1e-05,
           "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False,
           "use_qkv_bias": True, "bos_token_id": 100257, "eos_token_id": 100257,
           "torch_dtype": "float16"},
        {"parallel_residual": False, "rope": (RopeConfig(theta=10000.0, dim=16),) * 24},
    ),
    "opt-125m": (
        {"model_type": "opt", "_name_or_path": "facebook/opt-125m", "activation_dropout": 0.0,
         "activation_function": "relu", "attention_dropout": 0.0, "bos_token_id": 2,
         "do_layer_norm_before": True, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 3072,
         "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
         "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "prefix": "</s>",
         "torch_dtype": "float16", "vocab_size": 50272, "word_embed_proj_dim": 768},
        {"activation": "relu"},
    ),
    "c4ai-command-r-v01": (
        _sizes(8192, 22528, 40, 64, 64, 256000, 8192)
        | {"model_type": "cohere", "attention_bias": False, "hidden_act": "silu",
           "layer_norm_eps": 1e-05, "logit_scale": 0.0625, "model_max_length": 131072,
           "pool_size": 64, "rope_theta": 8000000.0, "use_qk_norm": False},
        {"logit_scale": 0.0625},
    ),
    "aya-23-8B": (
        _sizes(4096, 14336, 32, 32, 8, 256000, 8192)
        | {"model_type": "cohere", "attention_bias": False, "attention_dropout": 0.0,
           "bos_token_id": 5, "eos_token_id": 255001, "hidden_act": "silu",
           "layer_norm_eps": 1e-05, "logit_scale": 0.0625, "pad_token_id": 0, "rope_theta": 10000,
           "torch_dtype": "float16", "use_qk_norm": False},
        {"logit_scale": 0.0625, "n_kv_heads": 8, "parallel_residual": True},
    ),
    "starcoder2-3b": (
        _sizes(3072, 12288, 30, 24, 2, 49152, 16384)
        | {"model_type": "starcoder2", "activation_function": "gelu_pytorch_tanh",
           "attention_dropout": 0.1, "attention_softmax_in_fp32": True,
           "embedding_dropout": 0.1, "hidden_act": "gelu_pytorch_tanh", "mlp_type": "default",
           "norm_epsilon": 1e-05, "norm_type": "layer_norm", "residual_dropout": 0.1,
           "rope_theta": 999999.4420358813,
           "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True,
           "sliding_window": 4096, "use_bias": True},
        {"windows": (4096,) * 30},
    ),
}  # fmt: skip

# Keys of other releases of these models that repeat another key, or say what is always so.
HARMLESS = [
    ("gemma-2-2b-it", {"sliding_window_size": 4096}),  # the 9B and 27B
    ("starcoder2-3b", {"layer_norm_epsilon": 1e-05, "rms_norm_eps": 1e-05}),  # 7B and 15B
    ("pythia-70m", {"partial_rotary_factor": 0.25, "rope_theta": 10000}),  # saved again later
    ("pythia-70m", {"hidden_act": "gelu_fast"}),  # GPT-NeoX-20B
]
CONTRADICTIONS = [("gemma-2-2b-it", {"sliding_window_size": 512})]


@pytest.mark.parametrize(("name", "change"), HARMLESS)
def test_keys_that_change_nothing_are_accepted(name: str, change: dict[str, Any]) -> None:
    config, _ = PUBLISHED[name]
    assert read(config | change) is not None


@pytest.mark.parametrize(("name", "change"), CONTRADICTIONS)
def test_a_key_that_contradicts_its_twin_is_refused(name: str, change: dict[str, Any]) -> None:
    config, _ = PUBLISHED[name]
    with pytest.raises(CheckpointError, match="is not understood"):
        read(config | change)


def read(raw: dict[str, Any]) -> ModelConfig:
    """The config of a file, everything in it understood or known to change nothing."""
    return read_config(find(raw), raw).config


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_of_published_models_are_understood(name: str) -> None:
    raw, expected = PUBLISHED[name]
    config = read(raw)
    assert {key: getattr(config, key) for key in expected} == expected


def test_every_family_has_a_tiny_model() -> None:
    assert {config["model_type"] for config in CONFIGS.values()} == set(FAMILIES) - {"gemma3"}


def test_the_text_part_of_a_multimodal_model_is_the_text_model(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    tensors = {
        "language_model." + name: tensor for name, tensor in tiny.make_tensors("gemma3").items()
    }
    tensors["vision_tower.vision_model.embeddings.patch.weight"] = np.ones((3, 3), np.float32)
    tensors["multi_modal_projector.mm_input_projection_weight"] = np.ones((3, 3), np.float32)
    folder = tiny.write_checkpoint(tmp_path, "gemma3", tensors)
    config = {
        "model_type": "gemma3",
        "text_config": CONFIGS["gemma3"],
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152},
        "eos_token_id": [1, 106],
        "mm_tokens_per_image": 256,
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = kvgen.load(folder)
    assert model.stop_ids == {1, 106}
    assert "2 tensors such as multi_modal_projector.mm_input" in model.notes[0]
    expected = kvgen.load(tiny_folder("gemma3")).logits(IDS)
    np.testing.assert_array_equal(model.logits(IDS), expected)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral", {"num_local_experts": 8}, "num_local_experts = 8 is not understood"),
        ("qwen2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config = "),
        ("qwen3", {"rope_scaling": {"type": "mrope"}}, "rope type 'mrope' is not supported"),
        ("qwen3_window", {"layer_types": ["linear_attention"] * 4}, "layer_types should be 4 of"),
        ("qwen3_window", {"layer_types": [{}, [], None, 1]}, "layer_types should be 4 of"),
        ("smollm3", {"no_rope_layers": ["1"] * 5}, "a list of whole numbers"),
        ("gemma3_parameters", {"rope_parameters": {"odd": {"rope_theta": 3}}}, "odd = "),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers should be 5 of 0 and 1"),
        ("gpt_neo", {"attention_layers": ["global"] * 3}, "attention_layers should be 4 of global"),
        ("gpt_neo", {"attention_types": [[["global"], 10**15]]}, "attention_types should be"),
        ("gpt_neo", {"attention_types": [[[], 10**12]]}, "attention_types should be"),
        ("gpt_neo", {"attention_types": 3}, "attention_types should be"),
        ("opt", {"do_layer_norm_before": False}, "norms after the blocks are not supported"),
        ("opt", {"word_embed_proj_dim": 24}, "word_embed_proj_dim should be the width 48"),
        ("granite", {"logits_scaling": 0}, "scales and soft caps must be positive"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "scales and soft caps must be positive"),
        ("phi3_longrope", {"rope_scaling": {"type": "su", "short_factor": [1.0],
          "long_factor": [1.0]}}, "RoPE needs 4 short and long factors, not 1 and 1"),
        ("llama_yarn", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4,
          "beta_fast": -1, "beta_slow": 32}}, "RoPE's bounds must be positive, not 32 and -1"),
        ("phi", {"partial_rotary_factor": 0.4}, "RoPE needs an even head size .*, not 3"),
    ],
)  # fmt: skip
def test_what_a_family_does_not_understand_is_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(CONFIGS[name] | changes)


def test_all_logits_of_one_length_have_the_same_frequencies(
    tiny_folder: Callable[..., Path],
) -> None:
    """Cached and uncached agree on either side of the boundary."""
    for name in ("llama_dynamic", "phi3_longrope"):
        model = kvgen.load(tiny_folder(name))
        for length in (90, 100, 101, 110):
            ids = tiny.make_ids(length)
            np.testing.assert_allclose(
                model.logits(ids), model.logits(ids, cache=False), rtol=0, atol=5e-5
            )
    assert kvgen.load(tiny_folder("llama_dynamic")).config.max_context == 300
