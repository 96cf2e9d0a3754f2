"""Qwen2, Qwen2.5 and Qwen3 (dense). Sources: transformers, models/qwen2 and models/qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import with_rope
from kvgen.checkpoint.families.shared import (
    FULL,
    LLAMA_READS,
    SLIDING,
    head_norms,
    llama_sources,
    read_windows,
    sizes,
)
from kvgen.engine.config import ModelConfig


def _numbers(keys: Keys, head_dim: int | None = None) -> dict[str, Any]:
    numbers = sizes(
        keys,
        layers=32,
        heads=32,
        width=4096,
        ff=22016,
        vocabulary=151936,
        context=32768,
        kv_heads=32,
        head_dim=head_dim,
    )
    n_layers = numbers["n_layers"]
    first = keys.whole("max_window_layers", 28)
    pattern = [SLIDING if layer >= first else FULL for layer in range(n_layers)]
    window = keys.or_none(keys.whole, "sliding_window", 4096)
    if not keys.flag("use_sliding_window", False):
        window = None
    windows = read_windows(keys, n_layers, size=window, pattern=pattern)
    return {
        **with_rope(numbers, keys),
        "windows": windows,
        "norm": "rms",
        "norm_eps": keys.number("rms_norm_eps", 1e-6),
        "mlp": "gated",
        "activation": keys.activation("hidden_act", "silu"),
    }


def _qwen2_config(keys: Keys) -> ModelConfig:
    return ModelConfig(**_numbers(keys))


def _qwen2_sources(_: Keys) -> Mapping[str, Source]:
    return llama_sources(attention_bias=True, output_bias=False)  # no key says so


def _qwen3_config(keys: Keys) -> ModelConfig:
    return ModelConfig(**_numbers(keys, 128), qk_norm="head")


def _qwen3_sources(keys: Keys) -> Mapping[str, Source]:
    return llama_sources(attention_bias=keys.flag("attention_bias", False)) | head_norms()


_WINDOWS = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
QWEN2 = Family(
    model_type="qwen2",
    config=_qwen2_config,
    sources=_qwen2_sources,
    tokenizer="Qwen2Tokenizer",
    reads=LLAMA_READS | _WINDOWS,
    tied=False,
)
QWEN3 = Family(
    model_type="qwen3",
    config=_qwen3_config,
    sources=_qwen3_sources,
    tokenizer="Qwen2Tokenizer",
    reads=LLAMA_READS | _WINDOWS | {"attention_bias"},
    tied=False,
)
