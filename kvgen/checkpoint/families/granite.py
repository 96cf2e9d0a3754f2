"""Granite (dense): Llama with four multipliers. Source: transformers, models/granite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import with_rope
from kvgen.checkpoint.families.shared import LLAMA_READS, llama_sources, sizes
from kvgen.engine.config import ModelConfig


def _config(keys: Keys) -> ModelConfig:
    numbers = sizes(keys, layers=32, heads=32, width=4096, ff=11008, vocabulary=32000, context=2048)
    config = ModelConfig(
        **with_rope(numbers, keys),
        norm="rms",
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
        embed_scale=keys.number("embedding_multiplier", 1.0),
        residual_scale=keys.number("residual_multiplier", 1.0),
        logit_scale=1 / (keys.number("logits_scaling", 1.0) or float("nan")),  # a divisor
    )
    scale = keys.number("attention_multiplier", 1.0)
    return replace(config, attn_scales=(scale,) * config.n_layers)


def _sources(keys: Keys) -> Mapping[str, Source]:
    return llama_sources(
        attention_bias=keys.flag("attention_bias", False), mlp_bias=keys.flag("mlp_bias", False)
    )


GRANITE = Family(
    model_type="granite",
    config=_config,
    sources=_sources,
    reads=LLAMA_READS
    | {
        "attention_bias",
        "mlp_bias",
        "attention_multiplier",
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
    },
    tied=False,
)
