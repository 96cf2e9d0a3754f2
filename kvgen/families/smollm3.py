"""SmolLM3: Llama in which some layers have no positions. Source: transformers, models/smollm3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvgen.config import ModelConfig
from kvgen.families.base import Family, Keys, Source
from kvgen.families.shared import FULL, SLIDING, llama_sources, read_windows, sizes, with_rope


def _config(keys: Keys) -> ModelConfig:
    numbers = sizes(
        keys,
        layers=36,
        heads=16,
        width=2048,
        ff=11008,
        vocabulary=128256,
        context=32768,
        kv_heads=4,
    )
    n_layers = numbers["n_layers"]
    interval = keys.count("no_rope_layer_interval", 4)
    # 1 = RoPE, 0 = none, whatever the name says.
    turns = keys.numbers(
        "no_rope_layers", [int((layer + 1) % interval != 0) for layer in range(n_layers)]
    )
    if len(turns) != n_layers or not set(turns) <= {0, 1}:
        raise keys.wrong("no_rope_layers", f"{n_layers} of 0 and 1")
    slides = keys.flag("use_sliding_window", False)
    pattern = [FULL if turn else SLIDING for turn in turns]
    windows = read_windows(keys, n_layers, pattern=pattern) if slides else ()
    for name in ("sliding_window", "layer_types", "max_window_layers"):
        keys.mark(name)  # without use_sliding_window they say nothing
    config = ModelConfig(
        **with_rope(numbers, keys, theta=2e6),
        windows=windows,
        norm="rms",
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
    )
    rope = tuple(each if turn else None for each, turn in zip(config.rope, turns, strict=True))
    return replace(config, rope=rope)


def _sources(keys: Keys) -> Mapping[str, Source]:
    return llama_sources(
        attention_bias=keys.flag("attention_bias", False), mlp_bias=keys.flag("mlp_bias", False)
    )


SMOLLM3 = Family(model_type="smollm3", config=_config, sources=_sources)
