"""OPT. Source: transformers, models/opt."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.shared import sizes
from kvgen.engine.config import ModelConfig

_OFFSET = 2  # the first two rows of the position table belong to padding


def _config(keys: Keys) -> ModelConfig:
    numbers = sizes(
        keys,
        layers=12,
        heads=12,
        width=768,
        ff=3072,
        vocabulary=50272,
        context=2048,
        ff_key="ffn_dim",
        grouped=False,
        own_head_dim=False,
        divides=True,
    )
    if not keys.flag("do_layer_norm_before", True):
        raise keys.wrong("do_layer_norm_before", "true: norms after the blocks are not supported")
    if keys.flag("_remove_final_layer_norm", False):
        raise keys.wrong("_remove_final_layer_norm", "false")
    projected = keys.or_none(keys.whole, "word_embed_proj_dim", None)
    if projected not in (None, numbers["d_model"]):
        raise keys.wrong("word_embed_proj_dim", f"the width {numbers['d_model']}")
    return ModelConfig(
        **numbers,
        norm="layer",
        norm_eps=1e-5,
        mlp="plain",
        activation=keys.activation("activation_function", "relu"),
    )


def _positions(config: ModelConfig) -> tuple[int, slice]:
    return config.max_context + _OFFSET, slice(_OFFSET, None)


def _sources(keys: Keys) -> Mapping[str, Source]:
    bias = keys.flag("enable_bias", True)
    layer, attention = "decoder.layers.{layer}.", "decoder.layers.{layer}.self_attn."
    if not keys.flag("layer_norm_elementwise_affine", True):
        raise keys.wrong("layer_norm_elementwise_affine", "true")
    return {
        "embed": Source("decoder.embed_tokens"),
        "positions": Source("decoder.embed_positions", take=_positions),
        "attn_norm": Source(f"{layer}self_attn_layer_norm", bias=True),
        "q": Source(f"{attention}q_proj", bias=bias),
        "k": Source(f"{attention}k_proj", bias=bias),
        "v": Source(f"{attention}v_proj", bias=bias),
        "o": Source(f"{attention}out_proj", bias=bias),
        "mlp_norm": Source(f"{layer}final_layer_norm", bias=True),
        "up": Source(f"{layer}fc1", bias=bias),
        "down": Source(f"{layer}fc2", bias=bias),
        "final_norm": Source("decoder.final_layer_norm", bias=True),
        "head": Source("lm_head"),
    }


OPT = Family(
    model_type="opt",
    config=_config,
    sources=_sources,
    tokenizer="GPT2Tokenizer",
    reads=frozenset(
        {
            "vocab_size",
            "hidden_size",
            "ffn_dim",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "activation_function",
            "do_layer_norm_before",
            "_remove_final_layer_norm",
            "word_embed_proj_dim",
            "enable_bias",
            "layer_norm_elementwise_affine",
            "tie_word_embeddings",
        }
    ),
    tied=True,
)
