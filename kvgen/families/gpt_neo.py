"""GPT-Neo and the TinyStories models. Source: transformers, models/gpt_neo."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.config import ModelConfig
from kvgen.families.base import Family, Keys, Source
from kvgen.families.shared import split_width


def _config(keys: Keys) -> ModelConfig:
    n_layers = keys.count("num_layers", 24)
    n_heads = keys.count("num_heads", 16)
    d_model = keys.count("hidden_size", 2048)
    window = keys.count("window_size", 256)
    kinds = keys.pattern("attention_types", [[["global", "local"], 12]])
    if len(kinds) != n_layers or not set(kinds) <= {"global", "local"}:
        raise keys.wrong("attention_types", f"{n_layers} layers of global and local")
    return ModelConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=split_width(d_model, n_heads),
        d_model=d_model,
        d_ff=keys.count("intermediate_size", 4 * d_model),
        vocab_size=keys.count("vocab_size", 50257),
        max_context=keys.count("max_position_embeddings", 2048),
        norm="layer",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        mlp="plain",
        activation=keys.activation("activation_function", "gelu_new"),
        attn_scales=(1.0,) * n_layers,  # scores are not scaled
        windows=tuple(window if kind == "local" else None for kind in kinds),
    )


def _sources(_: Keys) -> Mapping[str, Source]:
    layer = "h.{layer}."
    return {
        "embed": Source("wte"),
        "positions": Source("wpe"),
        "attn_norm": Source(f"{layer}ln_1", bias=True),
        "q": Source(f"{layer}attn.attention.q_proj"),
        "k": Source(f"{layer}attn.attention.k_proj"),
        "v": Source(f"{layer}attn.attention.v_proj"),
        "o": Source(f"{layer}attn.attention.out_proj", bias=True),
        "mlp_norm": Source(f"{layer}ln_2", bias=True),
        "up": Source(f"{layer}mlp.c_fc", bias=True),
        "down": Source(f"{layer}mlp.c_proj", bias=True),
        "final_norm": Source("ln_f", bias=True),
        "head": Source("lm_head"),
    }


GPT_NEO = Family(
    model_type="gpt_neo",
    config=_config,
    sources=_sources,
    tokenizer="GPT2Tokenizer",
    inert=frozenset({"attention_layers"}),  # attention_types written out
)
