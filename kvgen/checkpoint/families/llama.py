"""Llama 1 to 3, SmolLM2, TinyLlama. Source: transformers, models/llama."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import with_rope
from kvgen.checkpoint.families.shared import LLAMA_READS, llama_sources, sizes
from kvgen.engine.config import ModelConfig


def _config(keys: Keys) -> ModelConfig:
    numbers = sizes(
        keys,
        layers=32,
        heads=32,
        width=4096,
        ff=11008,
        vocabulary=32000,
        context=2048,
        split_if=(None,),
        divides=True,
    )
    return ModelConfig(
        **with_rope(numbers, keys),
        norm="rms",
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
    )


def _sources(keys: Keys) -> Mapping[str, Source]:
    return llama_sources(
        attention_bias=keys.flag("attention_bias", False), mlp_bias=keys.flag("mlp_bias", False)
    )


LLAMA = Family(
    model_type="llama",
    config=_config,
    sources=_sources,
    reads=LLAMA_READS | {"attention_bias", "mlp_bias"},
    tied=False,
)
