"""OLMo 2: norms after the blocks. Source: transformers, models/olmo2."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import with_rope
from kvgen.checkpoint.families.shared import LLAMA_READS, head_norms, llama_sources, sizes
from kvgen.engine.config import ModelConfig


def _config(keys: Keys) -> ModelConfig:
    numbers = sizes(keys, layers=32, heads=32, width=4096, ff=11008, vocabulary=50304, context=2048)
    return ModelConfig(
        **with_rope(numbers, keys),
        norm="rms",
        norm_eps=keys.number("rms_norm_eps", 1e-5),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
        qk_norm="whole",
    )


def _sources(keys: Keys) -> Mapping[str, Source]:
    names = llama_sources(attention_bias=keys.flag("attention_bias", False)) | head_norms()
    del names["attn_norm"], names["mlp_norm"]
    return names | {
        "post_attn_norm": Source("layers.{layer}.post_attention_layernorm"),
        "post_mlp_norm": Source("layers.{layer}.post_feedforward_layernorm"),
    }


OLMO2 = Family(
    model_type="olmo2",
    config=_config,
    sources=_sources,
    reads=LLAMA_READS | {"attention_bias"},
    tied=False,
)
