"""SmolLM3: Llama in which some layers have no positions. Source: transformers, models/smollm3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import RopeStyle, with_rope
from kvgen.checkpoint.families.shared import (
    FULL,
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
        layers=36,
        heads=16,
        width=2048,
        ff=11008,
        vocabulary=128256,
        context=32768,
        kv_heads=4,
    )
    n_layers = numbers["n_layers"]
    interval = keys.whole("no_rope_layer_interval", 4)
    # 1 = RoPE, 0 = none, whatever the name says.
    turns = keys.or_none(keys.wholes, "no_rope_layers", None)
    if turns is None and not interval:
        raise keys.wrong("no_rope_layer_interval", "another number than 0")
    if turns is None:
        turns = tuple(int((layer + 1) % interval != 0) for layer in range(n_layers))
    if len(turns) < n_layers:
        raise keys.wrong("no_rope_layers", f"{n_layers} of 0 and 1")
    turns = turns[:n_layers]
    slides = keys.flag("use_sliding_window", False)
    pattern = [FULL if turn or not slides else SLIDING for turn in turns]
    window = keys.or_none(keys.whole, "sliding_window", None)
    windows = read_windows(keys, n_layers, size=window, pattern=pattern)
    config = ModelConfig(
        **with_rope(numbers, keys, RopeStyle(theta=2e6)),
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


SMOLLM3 = Family(
    model_type="smollm3",
    config=_config,
    sources=_sources,
    reads=LLAMA_READS
    | {
        "attention_bias",
        "mlp_bias",
        "layer_types",
        "no_rope_layer_interval",
        "no_rope_layers",
        "sliding_window",
        "use_sliding_window",
    },
    tied=True,
)
