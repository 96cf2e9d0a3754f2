"""Command R (dense): parallel blocks, RoPE on neighbours. Source: transformers, models/cohere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import RopeStyle, with_rope
from kvgen.checkpoint.families.shared import (
    LLAMA_READS,
    halves_from_pairs,
    head_norms,
    llama_sources,
    sizes,
)
from kvgen.engine.config import ModelConfig


def _normalises(keys: Keys) -> bool:
    """Whether queries and keys have norms; null means no."""
    return keys.or_none(keys.flag, "use_qk_norm", False) or False


def _config(keys: Keys) -> ModelConfig:
    numbers = sizes(
        keys, layers=40, heads=64, width=8192, ff=22528, vocabulary=256000, context=8192
    )
    config = ModelConfig(
        **with_rope(numbers, keys, RopeStyle(theta=500000.0)),
        norm="layer",
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
        parallel_residual=True,
        qk_norm="head" if _normalises(keys) else None,
    )
    return replace(config, logit_scale=keys.number("logit_scale", 0.0625))


def _sources(keys: Keys) -> Mapping[str, Source]:
    names = llama_sources(attention_bias=keys.flag("attention_bias", False))
    del names["mlp_norm"]  # the attention's serves both
    norms = head_norms() if _normalises(keys) else {}
    # Numbers of a head are put so that halves are turned; a norm's scales move along.
    for slot, source in {**norms, "q": names["q"], "k": names["k"]}.items():
        names[slot] = source._replace(take=halves_from_pairs(slot[0]))
    return names


COHERE = Family(
    model_type="cohere",
    config=_config,
    sources=_sources,
    tokenizer="CohereTokenizer",
    reads=LLAMA_READS - {"rms_norm_eps"}
    | {"layer_norm_eps", "logit_scale", "use_qk_norm", "attention_bias"},
    tied=True,
)
