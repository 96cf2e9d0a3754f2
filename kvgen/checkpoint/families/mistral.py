"""Mistral 7B and its relatives: a sliding window. Source: transformers, models/mistral."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import with_rope
from kvgen.checkpoint.families.shared import (
    LLAMA_READS,
    SLIDING,
    llama_sources,
    read_windows,
    sizes,
)
from kvgen.engine.config import ModelConfig


def _config(keys: Keys) -> ModelConfig:
    numbers = sizes(
        keys,
        layers=32,
        heads=32,
        width=4096,
        ff=14336,
        vocabulary=32000,
        context=131072,
        kv_heads=8,
        kv_null=False,
        split_if=(None, 0),
    )
    n_layers = numbers["n_layers"]
    return ModelConfig(
        **with_rope(numbers, keys),
        windows=read_windows(
            keys,
            n_layers,
            size=keys.or_none(keys.whole, "sliding_window", 4096),
            pattern=[SLIDING] * n_layers,
        ),
        norm="rms",
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
    )


def _sources(_: Keys) -> Mapping[str, Source]:
    return llama_sources()


MISTRAL = Family(
    model_type="mistral",
    config=_config,
    sources=_sources,
    reads=LLAMA_READS | {"sliding_window", "layer_types"},
    tied=False,
)
