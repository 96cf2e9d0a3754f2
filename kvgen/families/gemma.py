"""Gemma 1, 2 and 3. Sources: transformers, models/gemma, models/gemma2, models/gemma3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvgen.config import Activation, ModelConfig
from kvgen.families.base import Family, Keys, Source
from kvgen.families.shared import (
    FULL,
    SLIDING,
    head_norms,
    llama_sources,
    reach,
    read_rope,
    read_windows,
    sizes,
    with_rope,
)

# Norms are stored as what is added to 1, embeddings are multiplied by sqrt(width).


def _common(keys: Keys, numbers: Mapping[str, Any]) -> dict[str, Any]:
    if keys.has("use_bidirectional_attention") and keys.flag("use_bidirectional_attention"):
        raise keys.wrong("use_bidirectional_attention", "false: this decoder is causal")
    keys.mark("use_bidirectional_attention")
    return {
        "norm": "rms",
        "norm_eps": keys.number("rms_norm_eps", 1e-6),
        "mlp": "gated",
        "activation": _activation(keys),
        "embed_scale": numbers["d_model"] ** 0.5,
    }


def _activation(keys: Keys) -> Activation:
    """The released files say `gelu` and mean the tanh form; `hidden_activation` wins over it."""
    old = keys.activation("hidden_act", "gelu_pytorch_tanh")
    chosen = keys.activation("hidden_activation", "gelu_pytorch_tanh")
    if keys.has("hidden_activation"):
        return chosen
    return "gelu_tanh" if old == "gelu" else old


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
        head_dim=256,
    )
    return ModelConfig(**with_rope(numbers, keys), **_common(keys, numbers))


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
        head_dim=256,
    )
    scale = keys.number("query_pre_attn_scalar", 256) ** -0.5
    return numbers | {"attn_scales": (scale,) * numbers["n_layers"]} | _common(keys, numbers)


def _gemma2_config(keys: Keys) -> ModelConfig:
    numbers = _later_numbers(keys, vocabulary=256000, context=8192)
    keys.twin("sliding_window_size", "sliding_window")  # the 9B and 27B say it twice
    n_layers = numbers["n_layers"]
    return ModelConfig(
        **with_rope(numbers, keys),
        windows=read_windows(
            keys, n_layers, pattern=([SLIDING, FULL] * n_layers)[:n_layers], window=4096
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


def _gemma3_config(keys: Keys) -> ModelConfig:
    numbers = _later_numbers(keys, vocabulary=262208, context=131072)
    n_layers, context = numbers["n_layers"], numbers["max_context"]
    every = keys.count("sliding_window_pattern", 6)
    keys.mark("_sliding_window_pattern")  # written beside layer_types, read by nobody
    pattern = [SLIDING if (layer + 1) % every else FULL for layer in range(n_layers)]
    windows = read_windows(keys, n_layers, pattern=pattern, window=4096)
    parameters = keys.nested("rope_parameters")
    local_theta = keys.number("rope_local_base_freq", 10000.0)
    full, local = (
        read_rope(
            keys,
            head_dim=numbers["head_dim"],
            max_context=context,
            theta=1e6,
            parameters=parameters.nested(FULL) if parameters else None,
        ),
        read_rope(
            parameters or Keys({}),
            head_dim=numbers["head_dim"],
            max_context=context,
            theta=local_theta,
            parameters=parameters.nested(SLIDING) if parameters else None,
        ),
    )
    if parameters is not None:
        parameters.refuse_unread(every=True)
    numbers["max_context"] = reach(full, context)
    return ModelConfig(
        **numbers,
        rope=tuple(full if window is None else local for window in windows or [None] * n_layers),
        windows=windows,
        qk_norm="head",
        attn_softcap=keys.or_none(keys.number, "attn_logit_softcapping", None),
        logit_softcap=keys.or_none(keys.number, "final_logit_softcapping", None),
    )


def _gemma3_sources(keys: Keys) -> Mapping[str, Source]:
    return {**_gemma2_sources(keys), **head_norms(plus_one=True)}


GEMMA = Family(model_type="gemma", config=_gemma_config, sources=_gemma_sources)
GEMMA2 = Family(model_type="gemma2", config=_gemma2_config, sources=_gemma2_sources)
GEMMA3_TEXT = Family(model_type="gemma3_text", config=_gemma3_config, sources=_gemma3_sources)
GEMMA3 = Family(
    model_type="gemma3",
    config=_gemma3_config,
    sources=_gemma3_sources,
    text_key="text_config",
    ignored=("vision_tower.", "multi_modal_projector."),
)
