"""Llama 1 to 3, SmolLM2, TinyLlama. Source: transformers, models/llama."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.config import ModelConfig
from kvgen.families.base import Family, Keys, Source, split_width


def _config(keys: Keys) -> ModelConfig:
    n_layers = keys.count("num_hidden_layers", 32)
    n_heads = keys.count("num_attention_heads", 32)
    d_model = keys.count("hidden_size", 4096)
    head_dim = keys.count("head_dim") if keys.has("head_dim") else split_width(d_model, n_heads)
    max_context = keys.count("max_position_embeddings", 2048)
    return ModelConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=keys.count("num_key_value_heads", n_heads),
        head_dim=head_dim,
        d_model=d_model,
        d_ff=keys.count("intermediate_size", 11008),
        vocab_size=keys.count("vocab_size", 32000),
        max_context=max_context,
        norm="rms",
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
        rope=keys.rope(default_theta=10000.0, max_context=max_context),
        attn_scales=(head_dim**-0.5,) * n_layers,
    )


def _sources(keys: Keys) -> Mapping[str, Source]:
    attention_bias = keys.flag("attention_bias", False)
    mlp_bias = keys.flag("mlp_bias", False)
    return {
        "embed": Source("embed_tokens"),
        "attn_norm": Source("layers.{layer}.input_layernorm"),
        "q": Source("layers.{layer}.self_attn.q_proj", bias=attention_bias),
        "k": Source("layers.{layer}.self_attn.k_proj", bias=attention_bias),
        "v": Source("layers.{layer}.self_attn.v_proj", bias=attention_bias),
        "o": Source("layers.{layer}.self_attn.o_proj", bias=attention_bias),
        "mlp_norm": Source("layers.{layer}.post_attention_layernorm"),
        "gate": Source("layers.{layer}.mlp.gate_proj", bias=mlp_bias),
        "up": Source("layers.{layer}.mlp.up_proj", bias=mlp_bias),
        "down": Source("layers.{layer}.mlp.down_proj", bias=mlp_bias),
        "final_norm": Source("norm"),
        "head": Source("lm_head"),
    }


LLAMA = Family(model_type="llama", config=_config, sources=_sources)
