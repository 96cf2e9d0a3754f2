"""GPT-Neo and the TinyStories models. Source: transformers, models/gpt_neo."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.shared import MOST_LAYERS, split_width
from kvgen.engine.config import ModelConfig


def _config(keys: Keys) -> ModelConfig:
    # The usual names (attribute_map in the reference) are set after the family's own, and win.
    n_layers = keys.count_of("num_hidden_layers", "num_layers", 24, below=MOST_LAYERS)
    n_heads = keys.count_of("num_attention_heads", "num_heads", 16)
    d_model = keys.count("hidden_size", 2048)
    window = keys.count("window_size", 256)
    kinds = keys.or_none(keys.pattern, "attention_types", None) or ["global", "local"] * 12
    # `attention_types` written out; where a file has both, this one wins.
    if "attention_layers" in keys:
        kinds = keys.strings("attention_layers", count=n_layers, choices=("global", "local")) or []
    if len(kinds) != n_layers or not set(kinds) <= {"global", "local"}:
        raise keys.wrong("attention_types", f"{n_layers} layers of global and local")
    return ModelConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=split_width(d_model, n_heads),
        d_model=d_model,
        d_ff=keys.or_none(keys.count, "intermediate_size", None) or 4 * d_model,
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
    reads=frozenset(
        {
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_hidden_layers",
            "num_heads",
            "num_attention_heads",
            "max_position_embeddings",
            "attention_types",
            "attention_layers",
            "window_size",
            "intermediate_size",
            "activation_function",
            "layer_norm_epsilon",
            "tie_word_embeddings",
        }
    ),
    tied=True,
)
