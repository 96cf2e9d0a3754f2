"""Phi-1, 1.5 and 2, and Phi-3 and 4-mini. Sources: transformers, models/phi and models/phi3."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.config import ModelConfig
from kvgen.families.base import Family, Keys, Source
from kvgen.families.shared import (
    SLIDING,
    block,
    llama_sources,
    qkv_part,
    read_windows,
    sizes,
    with_rope,
)


def _phi_config(keys: Keys) -> ModelConfig:
    numbers = sizes(keys, layers=24, heads=32, width=2048, ff=8192, vocabulary=51200, context=2048)
    return ModelConfig(
        **with_rope(numbers, keys, partial=0.5),
        norm="layer",
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        mlp="plain",
        activation=keys.activation("hidden_act", "gelu_new"),
        parallel_residual=True,
        qk_norm="head" if keys.flag("qk_layernorm", False) else None,
    )


def _phi_sources(keys: Keys) -> Mapping[str, Source]:
    layer = "layers.{layer}."
    names = {
        "embed": Source("embed_tokens"),
        "attn_norm": Source(f"{layer}input_layernorm", bias=True),  # the MLP's as well
        "q": Source(f"{layer}self_attn.q_proj", bias=True),
        "k": Source(f"{layer}self_attn.k_proj", bias=True),
        "v": Source(f"{layer}self_attn.v_proj", bias=True),
        "o": Source(f"{layer}self_attn.dense", bias=True),
        "up": Source(f"{layer}mlp.fc1", bias=True),
        "down": Source(f"{layer}mlp.fc2", bias=True),
        "final_norm": Source("final_layernorm", bias=True),
        "head": Source("lm_head", bias=True),
    }
    if keys.flag("qk_layernorm", False):
        names["q_norm"] = Source(f"{layer}self_attn.q_layernorm", bias=True)
        names["k_norm"] = Source(f"{layer}self_attn.k_layernorm", bias=True)
    return names


def _phi3_config(keys: Keys) -> ModelConfig:
    numbers = sizes(keys, layers=32, heads=32, width=3072, ff=8192, vocabulary=32064, context=4096)
    n_layers = numbers["n_layers"]
    return ModelConfig(
        **with_rope(numbers, keys),
        windows=read_windows(keys, n_layers, pattern=[SLIDING] * n_layers),
        norm="rms",
        norm_eps=keys.number("rms_norm_eps", 1e-5),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
    )


def _phi3_sources(_: Keys) -> Mapping[str, Source]:
    fused, gated = "layers.{layer}.self_attn.qkv_proj", "layers.{layer}.mlp.gate_up_proj"
    return llama_sources() | {
        "q": Source(fused, take=qkv_part("q")),
        "k": Source(fused, take=qkv_part("k")),
        "v": Source(fused, take=qkv_part("v")),
        "gate": Source(gated, take=block(0, 2, of="up")),
        "up": Source(gated, take=block(1, 2, of="up")),
    }


PHI = Family(model_type="phi", config=_phi_config, sources=_phi_sources, tokenizer="GPT2Tokenizer")
PHI3 = Family(model_type="phi3", config=_phi3_config, sources=_phi3_sources)
