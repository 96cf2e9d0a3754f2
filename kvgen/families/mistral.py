"""Mistral 7B and its relatives: a sliding window. Source: transformers, models/mistral."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.config import ModelConfig
from kvgen.families.base import Family, Keys, Source
from kvgen.families.shared import SLIDING, llama_sources, read_windows, sizes, with_rope


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
    )
    n_layers = numbers["n_layers"]
    return ModelConfig(
        **with_rope(numbers, keys),
        windows=read_windows(keys, n_layers, pattern=[SLIDING] * n_layers, window=4096),
        norm="rms",
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
    )


def _sources(_: Keys) -> Mapping[str, Source]:
    return llama_sources()


MISTRAL = Family(model_type="mistral", config=_config, sources=_sources)
