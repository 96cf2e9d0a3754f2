"""StarCoder2: Llama attention, plain MLP, LayerNorm. Source: transformers, models/starcoder2."""

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
        layers=30,
        heads=24,
        width=3072,
        ff=12288,
        vocabulary=49152,
        context=4096,
        kv_heads=2,
        kv_null=False,
        split_if=(None, 0),
    )
    n_layers = numbers["n_layers"]
    return ModelConfig(
        **with_rope(numbers, keys),
        windows=read_windows(
            keys,
            n_layers,
            size=keys.or_none(keys.whole, "sliding_window", None),
            pattern=[SLIDING] * n_layers,
            typed=False,
        ),
        norm="layer",
        norm_eps=keys.number("norm_epsilon", 1e-5),
        mlp="plain",
        activation=keys.activation("hidden_act", "gelu_pytorch_tanh"),
    )


def _sources(keys: Keys) -> Mapping[str, Source]:
    bias = keys.flag("use_bias", True)
    names = llama_sources(attention_bias=bias, norm_bias=True)
    del names["gate"]
    return names | {
        "up": Source("layers.{layer}.mlp.c_fc", bias=bias),
        "down": Source("layers.{layer}.mlp.c_proj", bias=bias),
    }


STARCODER2 = Family(
    model_type="starcoder2",
    config=_config,
    sources=_sources,
    tokenizer="GPT2Tokenizer",
    reads=LLAMA_READS - {"rms_norm_eps"} | {"norm_epsilon", "sliding_window", "use_bias"},
    tied=True,
    # Left over from an earlier implementation: widths of arithmetic, and what is always so here.
    inert=frozenset({"norm_type", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"}),
)
