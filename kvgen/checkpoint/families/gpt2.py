"""GPT-2 and its distilled sizes. Source: transformers, models/gpt2."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.checkpoint.families.base import Family, Source, Take
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.shared import MOST_LAYERS, block, split_width
from kvgen.engine.config import ModelConfig


def _config(keys: Keys) -> ModelConfig:
    # The usual names (attribute_map in the reference) are set after the family's own, and win.
    n_layers = keys.count_of("num_hidden_layers", "n_layer", 12, below=MOST_LAYERS)
    n_heads = keys.count_of("num_attention_heads", "n_head", 12)
    d_model = keys.count_of("hidden_size", "n_embd", 768)
    head_dim = split_width(d_model, n_heads)
    scale = head_dim**-0.5 if keys.flag("scale_attn_weights", True) else 1.0
    by_layer = keys.flag("scale_attn_by_inverse_layer_idx", False)
    return ModelConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=head_dim,
        d_model=d_model,
        d_ff=keys.or_none(keys.count, "n_inner", None) or 4 * d_model,
        vocab_size=keys.count("vocab_size", 50257),
        max_context=keys.count_of("max_position_embeddings", "n_positions", 1024),
        norm="layer",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        mlp="plain",
        activation=keys.activation("activation_function", "gelu_new"),
        attn_scales=tuple(scale / (i + 1) if by_layer else scale for i in range(n_layers)),
    )


def _sources(_: Keys) -> Mapping[str, Source]:
    def conv1d(name: str, take: Take | None = None) -> Source:
        return Source(f"h.{{layer}}.{name}", bias=True, transposed=True, take=take)

    return {
        "embed": Source("wte"),
        "positions": Source("wpe"),
        "attn_norm": Source("h.{layer}.ln_1", bias=True),
        "q": conv1d("attn.c_attn", block(0, 3, of="q")),  # q, k and v are thirds of the output
        "k": conv1d("attn.c_attn", block(1, 3, of="q")),
        "v": conv1d("attn.c_attn", block(2, 3, of="q")),
        "o": conv1d("attn.c_proj"),
        "mlp_norm": Source("h.{layer}.ln_2", bias=True),
        "up": conv1d("mlp.c_fc"),
        "down": conv1d("mlp.c_proj"),
        "final_norm": Source("ln_f", bias=True),
        "head": Source("lm_head"),
    }


GPT2 = Family(
    model_type="gpt2",
    config=_config,
    sources=_sources,
    tokenizer="GPT2Tokenizer",
    reads=frozenset(
        {
            "vocab_size",
            "n_embd",
            "hidden_size",
            "n_layer",
            "num_hidden_layers",
            "n_head",
            "num_attention_heads",
            "n_positions",
            "max_position_embeddings",
            "n_inner",
            "activation_function",
            "layer_norm_epsilon",
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "add_cross_attention",
            "tie_word_embeddings",
        }
    ),
    tied=True,
)
