"""Configurations of tiny models with awkward numbers: each family, each of its switches.

Windows are shorter than the sequences, RoPE scalings begin within them, soft caps bite, head sizes
differ from width / heads.
"""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 320,
    "bos_token_id": 0,
    "eos_token_id": 130,
    "pad_token_id": None,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "float32",
}
_LLAMA = _SMALL | {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 54,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
_GPT2: dict[str, Any] = {
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
_GPT_NEO: dict[str, Any] = {
    "model_type": "gpt_neo",
    "hidden_size": 40,
    "num_layers": 4,
    "num_heads": 5,
    "attention_types": [[["global", "local"], 2]],
    "attention_layers": ["global", "local", "global", "local"],
    "window_size": 7,
    "intermediate_size": None,
    "vocab_size": 131,
    "max_position_embeddings": 320,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_GPT_NEOX = _SMALL | {
    "model_type": "gpt_neox",
    "num_attention_heads": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
}
del _GPT_NEOX["num_key_value_heads"]
_MISTRAL = _SMALL | {
    "model_type": "mistral",
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "sliding_window": 9,
    "tie_word_embeddings": False,
}
_QWEN2 = _SMALL | {
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 21,
    "tie_word_embeddings": True,
}
_QWEN3 = _QWEN2 | {
    "model_type": "qwen3",
    "head_dim": 20,
    "attention_bias": False,
    "sliding_window": None,
    "rope_scaling": None,
}
_SMOLLM3 = _SMALL | {
    "model_type": "smollm3",
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 2000000.0,
    "rope_scaling": None,
    "num_hidden_layers": 5,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}
_GEMMA = _SMALL | {
    "model_type": "gemma",
    "head_dim": 20,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
}
_GEMMA2 = _SMALL | {
    "model_type": "gemma2",
    "head_dim": 20,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "query_pre_attn_scalar": 24,
    "sliding_window": 9,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "cache_implementation": "hybrid",
}
_GEMMA3 = _SMALL | {
    "model_type": "gemma3_text",
    "head_dim": 20,
    "num_hidden_layers": 7,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "query_pre_attn_scalar": 24,
    "sliding_window": 9,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "cache_implementation": "hybrid",
}
_PHI = _SMALL | {
    "model_type": "phi",
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "num_key_value_heads": None,
    "tie_word_embeddings": False,
}
_PHI3 = _SMALL | {
    "model_type": "phi3",
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "original_max_position_embeddings": 320,
    "sliding_window": 9,
    "attention_bias": False,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "tie_word_embeddings": False,
}
_OLMO2 = _SMALL | {
    "model_type": "olmo2",
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 500000,
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_GRANITE = _SMALL | {
    "model_type": "granite",
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 2.5,
    "tie_word_embeddings": True,
}
_STABLELM = _SMALL | {
    "model_type": "stablelm",
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "norm_eps": None,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000,
    "use_qkv_bias": False,
    "use_parallel_residual": False,
    "qk_layernorm": False,
    "tie_word_embeddings": False,
}
_COHERE = _SMALL | {
    "model_type": "cohere",
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.7,
    "rope_theta": 8000000.0,
    "use_qk_norm": False,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
_STARCODER2 = _SMALL | {
    "model_type": "starcoder2",
    "hidden_act": "gelu_pytorch_tanh",
    "norm_epsilon": 1e-5,
    "norm_type": "layer_norm",
    "mlp_type": "default",
    "rope_theta": 100000,
    "sliding_window": 9,
    "use_bias": True,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
}
_OPT: dict[str, Any] = {
    "model_type": "opt",
    "hidden_size": 48,
    "ffn_dim": 76,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "word_embed_proj_dim": 48,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "do_layer_norm_before": True,
    "activation_function": "relu",
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
    "init_std": 0.02,
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
    # theta grows with the length of the sequence
    "llama_dynamic": _LLAMA
    | {
        "head_dim": 12,
        "max_position_embeddings": 100,
        "rope_scaling": {"type": "dynamic", "factor": 3.0},
    },
    "llama_yarn": _LLAMA
    | {
        "head_dim": 20,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama_yarn_mscale": _LLAMA
    | {
        "head_dim": 20,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 1.3,
            "mscale_all_dim": 0.7,
        },
    },
    # bounds in the other order, each a number of its own
    "llama_yarn_swapped": _LLAMA
    | {
        "head_dim": 20,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 1,
            "beta_slow": 8,
        },
    },
    # no ramp: a wave is kept, or divided
    "llama3_no_ramp": _LLAMA
    | {
        "head_dim": 12,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 4.0,
            "high_freq_factor": 2.0,
            "original_max_position_embeddings": 64,
        },
    },
    "gpt_neo": _GPT_NEO,
    # the smallest head, as in the smallest TinyStories models
    "gpt_neo_small_heads": _GPT_NEO
    | {
        "num_heads": 10,
        "attention_types": [[["global"], 1], [["local"], 3]],
        "attention_layers": ["global", "local", "local", "local"],
        "intermediate_size": 52,
    },
    "gpt_neox": _GPT_NEOX,
    "gpt_neox_sequential": _GPT_NEOX
    | {
        "use_parallel_residual": False,
        "attention_bias": False,
        "rotary_pct": 0.5,
        "hidden_act": "gelu_new",
    },
    # three numbers of a head of 16 are turned, as four by the powers of three
    "gpt_neox_odd": _GPT_NEOX
    | {"rotary_pct": 0.2, "rope_scaling": {"type": "linear", "factor": 2.0}},
    # nothing is turned: no positions at all
    "gpt_neox_unturned": _GPT_NEOX | {"rotary_pct": 0.0},
    "mistral": _MISTRAL | {"head_dim": 20, "num_key_value_heads": 1},
    "mistral_global": _MISTRAL | {"sliding_window": None, "head_dim": None},
    "qwen2": _QWEN2,
    "qwen2_window": _QWEN2
    | {
        "use_sliding_window": True,
        "sliding_window": 11,
        "max_window_layers": 2,
        "tie_word_embeddings": False,
    },
    "qwen3": _QWEN3,
    "qwen3_window": _QWEN3
    | {
        "use_sliding_window": True,
        "sliding_window": 11,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "layer_types": [
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
    },
    "smollm3": _SMOLLM3 | {"no_rope_layer_interval": 4},
    "smollm3_window": _SMOLLM3
    | {
        "no_rope_layers": [1, 0, 1, 1, 0],
        "use_sliding_window": True,
        "sliding_window": 9,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "gemma": _GEMMA | {"num_key_value_heads": 1},
    "gemma2": _GEMMA2,
    "gemma2_no_caps": _GEMMA2
    | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True},
    "gemma3": _GEMMA3,
    "gemma3_parameters": {
        key: value for key, value in _GEMMA3.items() if not key.startswith("rope")
    }
    | {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        },
        "final_logit_softcapping": 3.0,
    },
    "phi": _PHI,
    "phi_qk_norm": _PHI | {"qk_layernorm": True, "num_key_value_heads": 2},
    "phi3": _PHI3,
    "phi3_longrope": _PHI3
    | {
        "sliding_window": None,
        "original_max_position_embeddings": 100,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.3, 1.6],
            "long_factor": [1.2, 2.0, 4.0, 9.0],
        },
    },
    "phi3_partial": _PHI3
    | {"partial_rotary_factor": 0.75, "num_attention_heads": 3, "num_key_value_heads": 1},
    "olmo2": _OLMO2,
    "olmo2_biased": _OLMO2 | {"attention_bias": True, "tie_word_embeddings": True},
    "granite": _GRANITE,
    "granite_biased": _GRANITE
    | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    # six heads of 8 in a width of 50
    "granite_uneven": _GRANITE | {"hidden_size": 50},
    "stablelm": _STABLELM,
    "stablelm_parallel": _STABLELM
    | {
        "use_parallel_residual": True,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.5,
    },
    "cohere": _COHERE,
    "cohere_qk_norm": _COHERE | {"use_qk_norm": True, "attention_bias": True},
    "starcoder2": _STARCODER2,
    "starcoder2_plain": _STARCODER2
    | {"use_bias": False, "sliding_window": None, "tie_word_embeddings": False},
    "opt": _OPT,
    "opt_plain": _OPT | {"enable_bias": False, "activation_function": "gelu"},
}
# RoPE's frequencies depend on the length of the sequence and change beyond 100 positions.
LENGTH_DEPENDENT = ("llama_dynamic", "phi3_longrope")
CROSSING_LENGTHS = (60, 85, 95, 98, 99, 100, 101, 102, 103, 120)
