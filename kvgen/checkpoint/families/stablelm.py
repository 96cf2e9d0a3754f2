"""StableLM: Llama names with LayerNorm and partial RoPE. Source: transformers, models/stablelm."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import RopeStyle, with_rope
from kvgen.checkpoint.families.shared import LLAMA_READS, llama_sources, sizes
from kvgen.engine.config import ModelConfig


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
        kv_null=False,
        own_head_dim=False,
        divides=True,
    )
    if (keys.or_none(keys.whole, "head_dim", None) or numbers["head_dim"]) != numbers["head_dim"]:
        raise keys.wrong("head_dim", f"width / heads, {numbers['head_dim']}")
    return ModelConfig(
        **with_rope(numbers, keys, RopeStyle(partial=0.25)),
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


STABLELM = Family(
    model_type="stablelm",
    config=_config,
    sources=_sources,
    reads=LLAMA_READS - {"rms_norm_eps"}
    | {
        "layer_norm_eps",
        "partial_rotary_factor",
        "qk_layernorm",
        "use_parallel_residual",
        "use_qkv_bias",
    },
    tied=False,
)
