"""Gemma 1, 2 and 3. Sources: transformers, models/gemma, models/gemma2, models/gemma3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import ROPE_KEYS, RopeStyle, reach, read_rope, with_rope
from kvgen.checkpoint.families.shared import (
    FULL,
    LLAMA_READS,
    SLIDING,
    head_norms,
    llama_sources,
    read_windows,
    sizes,
)
from kvgen.engine.config import Activation, ModelConfig

# Norms are stored as what is added to 1, embeddings are multiplied by sqrt(width).


def _common(keys: Keys, numbers: Mapping[str, Any], activation: Activation) -> dict[str, Any]:
    return {
        "norm": "rms",
        "norm_eps": keys.number("rms_norm_eps", 1e-6),
        "mlp": "gated",
        "activation": activation,
        "embed_scale": numbers["d_model"] ** 0.5,
    }


def _gemma_config(keys: Keys) -> ModelConfig:
    numbers = sizes(
        keys,
        layers=28,
        heads=16,
        width=3072,
        ff=24576,
        vocabulary=256000,
        context=8192,
        kv_heads=16,
        kv_null=False,
        head_dim=256,
    )
    activation = keys.activation("hidden_act", "gelu_pytorch_tanh")
    if activation == "gelu":  # the released files say so and mean the tanh form
        activation = "gelu_tanh"
    return ModelConfig(**with_rope(numbers, keys), **_common(keys, numbers, activation))


def _gemma_sources(keys: Keys) -> Mapping[str, Source]:
    return llama_sources(attention_bias=keys.flag("attention_bias", False), plus_one=True)


def _later_numbers(keys: Keys, *, vocabulary: int, context: int) -> dict[str, Any]:
    """What Gemma 2 and 3 share: another attention scale, soft caps."""
    numbers = sizes(
        keys,
        layers=26,
        heads=8,
        width=2304,
        ff=9216,
        vocabulary=vocabulary,
        context=context,
        kv_heads=4,
        kv_null=False,
        head_dim=256,
        divides=True,
    )
    scalar = keys.whole("query_pre_attn_scalar", 256)
    if scalar < 1:
        raise keys.wrong("query_pre_attn_scalar", "a positive whole number")
    activation = keys.activation("hidden_activation", "gelu_pytorch_tanh")
    scales = {"attn_scales": (scalar**-0.5,) * numbers["n_layers"]}
    return numbers | scales | _common(keys, numbers, activation)


def _gemma2_config(keys: Keys) -> ModelConfig:
    numbers = _later_numbers(keys, vocabulary=256000, context=8192)
    keys.twin("sliding_window_size", "sliding_window")  # the 9B and 27B say it twice
    n_layers = numbers["n_layers"]
    return ModelConfig(
        **with_rope(numbers, keys),
        windows=read_windows(
            keys,
            n_layers,
            size=keys.whole("sliding_window", 4096),
            pattern=([SLIDING, FULL] * n_layers)[:n_layers],
        ),
        attn_softcap=keys.or_none(keys.number, "attn_logit_softcapping", 50.0),
        logit_softcap=keys.or_none(keys.number, "final_logit_softcapping", 30.0),
    )


def _gemma2_sources(keys: Keys) -> Mapping[str, Source]:
    """Norms before and after each block; the usual name of the second one means the first's end."""
    layer = "layers.{layer}."
    return llama_sources(attention_bias=keys.flag("attention_bias", False), plus_one=True) | {
        "post_attn_norm": Source(f"{layer}post_attention_layernorm", plus_one=True),
        "mlp_norm": Source(f"{layer}pre_feedforward_layernorm", plus_one=True),
        "post_mlp_norm": Source(f"{layer}post_feedforward_layernorm", plus_one=True),
    }


# Of layers that see all keys, and of those with a window.
_GEMMA3_STYLES = (RopeStyle(theta=1e6), RopeStyle(theta_key="rope_local_base_freq"))


def _gemma3_ropes(keys: Keys) -> tuple[Keys, Keys]:
    """What config.json says of RoPE for layers that see all keys, and for those with a window.

    `rope_parameters` holds an object for each; `rope_scaling` is laid over the first.
    """
    parameters = keys.nested("rope_parameters")
    scaling = keys.nested("rope_scaling")
    objects = parameters or Keys({}, where=keys.where)
    full, local = (
        objects.nested(kind) or Keys({}, where=objects.where) for kind in (FULL, SLIDING)
    )
    if scaling is not None:
        if parameters is not None and FULL not in parameters:
            raise keys.not_understood("rope_scaling")
        beneath = full if parameters is not None else Keys({"rope_type": "default"})
        full = scaling.over(beneath)
    objects.refuse_all_unread(known=ROPE_KEYS)
    return full, local


def _gemma3_config(keys: Keys) -> ModelConfig:
    numbers = _later_numbers(keys, vocabulary=262208, context=131072)
    n_layers, context = numbers["n_layers"], numbers["max_context"]
    every = keys.whole("sliding_window_pattern", 6, loose=True)
    if not every and not keys.has("layer_types"):
        raise keys.wrong("sliding_window_pattern", "another number than 0")
    keys.mark("_sliding_window_pattern")  # written beside layer_types, read by nobody
    pattern = [SLIDING if (layer + 1) % (every or 1) else FULL for layer in range(n_layers)]
    windows = read_windows(keys, n_layers, size=keys.whole("sliding_window", 4096), pattern=pattern)
    full, local = (
        read_rope(
            keys,
            scaling,
            head_dim=numbers["head_dim"],
            max_context=context,
            style=style,
            nested=True,
        )
        for scaling, style in zip(_gemma3_ropes(keys), _GEMMA3_STYLES, strict=True)
    )
    numbers["max_context"] = reach(full, context)
    return ModelConfig(
        **numbers,
        rope=tuple(full if window is None else local for window in windows or [None] * n_layers),
        windows=windows,
        qk_norm="head",
        logit_softcap=keys.or_none(keys.number, "final_logit_softcapping", None),
    )


def _gemma3_sources(keys: Keys) -> Mapping[str, Source]:
    return {**_gemma2_sources(keys), **head_norms(plus_one=True)}


GEMMA = Family(
    model_type="gemma",
    config=_gemma_config,
    sources=_gemma_sources,
    reads=LLAMA_READS | {"attention_bias", "use_bidirectional_attention"},
    tied=True,
)
_LATER_READS = LLAMA_READS - {"hidden_act"} | {
    "attention_bias",
    "final_logit_softcapping",
    "hidden_activation",
    "layer_types",
    "query_pre_attn_scalar",
    "sliding_window",
    "use_bidirectional_attention",
}
GEMMA2 = Family(
    model_type="gemma2",
    config=_gemma2_config,
    sources=_gemma2_sources,
    reads=_LATER_READS | {"attn_logit_softcapping"},
    tied=True,
)
GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    config=_gemma3_config,
    sources=_gemma3_sources,
    reads=_LATER_READS | {"rope_local_base_freq", "sliding_window_pattern"},
    tied=True,
)
GEMMA3 = replace(
    GEMMA3_TEXT,
    model_type="gemma3",
    text_key="text_config",
    ignored=("vision_tower.", "multi_modal_projector."),
)
