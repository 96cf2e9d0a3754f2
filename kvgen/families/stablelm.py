"""StableLM: Llama names with LayerNorm and partial RoPE. Source: transformers, models/stablelm."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.config import ModelConfig
from kvgen.families.base import Family, Keys, Source
from kvgen.families.shared import llama_sources, sizes, with_rope


def _config(keys: Keys) -> ModelConfig:
    numbers = sizes(
        keys,
        layers=32,
        heads=32,
        width=2560,
        ff=6912,
        vocabulary=50304,
        context=4096,
        kv_heads=32,
    )
    return ModelConfig(
        **with_rope(numbers, keys, partial=0.25),
        norm="layer",
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
        parallel_residual=keys.flag("use_parallel_residual", False),
        qk_norm="head" if keys.flag("qk_layernorm", False) else None,
    )


def _sources(keys: Keys) -> Mapping[str, Source]:
    names = llama_sources(
        attention_bias=keys.flag("use_qkv_bias", False), output_bias=False, norm_bias=True
    )
    if keys.flag("use_parallel_residual", False):
        del names["mlp_norm"]  # the attention's serves both
    if keys.flag("qk_layernorm", False):
        layer = "layers.{layer}.self_attn."
        names["q_norm"] = Source(f"{layer}q_layernorm.norms.{{head}}")
        names["k_norm"] = Source(f"{layer}k_layernorm.norms.{{head}}")
    return names


STABLELM = Family(model_type="stablelm", config=_config, sources=_sources)
