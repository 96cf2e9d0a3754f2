"""Phi-1, 1.5 and 2, and Phi-3 and 4-mini. Sources: transformers, models/phi and models/phi3."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import RopeStyle, with_rope
from kvgen.checkpoint.families.shared import (
    LLAMA_READS,
    SLIDING,
    block,
    llama_sources,
    qkv_part,
    read_windows,
    sizes,
)
from kvgen.engine.config import ModelConfig


def _phi_config(keys: Keys) -> ModelConfig:
    numbers = sizes(keys, layers=24, heads=32, width=2048, ff=8192, vocabulary=51200, context=2048)
    return ModelConfig(
        **with_rope(numbers, keys, RopeStyle(partial=0.5)),
        norm="layer",
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        mlp="plain",
        activation=keys.activation("hidden_act", "gelu_new"),
        parallel_residual=True,
        qk_norm="head" if keys.flag("qk_layernorm", False) else None,
    )


def _phi_sources(keys: Keys) -> Mapping[str, Source]:
    layer = "layers.{layer}."
    names = {
        "embed": Source("embed_tokens"),
        "attn_norm": Source(f"{layer}input_layernorm", bias=True),  # the MLP's as well
        "q": Source(f"{layer}self_attn.q_proj", bias=True),
        "k": Source(f"{layer}self_attn.k_proj", bias=True),
        "v": Source(f"{layer}self_attn.v_proj", bias=True),
        "o": Source(f"{layer}self_attn.dense", bias=True),
        "up": Source(f"{layer}mlp.fc1", bias=True),
        "down": Source(f"{layer}mlp.fc2", bias=True),
        "final_norm": Source("final_layernorm", bias=True),
        "head": Source("lm_head", bias=True),
    }
    if keys.flag("qk_layernorm", False):
        names["q_norm"] = Source(f"{layer}self_attn.q_layernorm", bias=True)
        names["k_norm"] = Source(f"{layer}self_attn.k_layernorm", bias=True)
    return names


_PHI3_ROPE = RopeStyle(
    partial=1.0,
    rounds_up=True,
    original=4096,
    kinds=("default", "longrope"),
    older=(("su", "longrope"), ("yarn", "longrope")),  # as the first files said
)


def _phi3_config(keys: Keys) -> ModelConfig:
    numbers = sizes(keys, layers=32, heads=32, width=3072, ff=8192, vocabulary=32064, context=4096)
    n_layers = numbers["n_layers"]
    return ModelConfig(
        **with_rope(numbers, keys, _PHI3_ROPE),
        windows=read_windows(
            keys,
            n_layers,
            size=keys.or_none(keys.whole, "sliding_window", None),
            pattern=[SLIDING] * n_layers,
            typed=False,
        ),
        norm="rms",
        norm_eps=keys.number("rms_norm_eps", 1e-5),
        mlp="gated",
        activation=keys.activation("hidden_act", "silu"),
    )


def _phi3_sources(_: Keys) -> Mapping[str, Source]:
    fused, gated = "layers.{layer}.self_attn.qkv_proj", "layers.{layer}.mlp.gate_up_proj"
    return llama_sources() | {
        "q": Source(fused, take=qkv_part("q")),
        "k": Source(fused, take=qkv_part("k")),
        "v": Source(fused, take=qkv_part("v")),
        "gate": Source(gated, take=block(0, 2, of="up")),
        "up": Source(gated, take=block(1, 2, of="up")),
    }


PHI = Family(
    model_type="phi",
    config=_phi_config,
    sources=_phi_sources,
    tokenizer="GPT2Tokenizer",
    reads=LLAMA_READS - {"rms_norm_eps"}
    | {"layer_norm_eps", "partial_rotary_factor", "qk_layernorm"},
    tied=False,
)
PHI3 = Family(
    model_type="phi3",
    config=_phi3_config,
    sources=_phi3_sources,
    reads=LLAMA_READS | {"partial_rotary_factor", "sliding_window"},
    tied=False,
)
