"""GPT-NeoX and Pythia. Source: transformers, models/gpt_neox."""

from __future__ import annotations

from collections.abc import Mapping

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.rope import RopeStyle, with_rope
from kvgen.checkpoint.families.shared import LLAMA_READS, per_head_part, sizes
from kvgen.engine.config import ModelConfig

# transformers 4.45 and later write copies under the usual names, which nobody reads.
_ROPE = RopeStyle(
    theta_key="rotary_emb_base", partial=0.25, partial_key="rotary_pct", rounds_up=True
)


def _config(keys: Keys) -> ModelConfig:
    numbers = sizes(
        keys,
        layers=44,
        heads=64,
        width=6144,
        ff=24576,
        vocabulary=50432,
        context=2048,
        grouped=False,
        own_head_dim=False,
        divides=True,
    )
    # A `head_dim` says how much RoPE turns, though heads are width / heads whatever it says.
    rope_dim = keys.or_none(keys.whole, "head_dim", None) or numbers["head_dim"]
    return ModelConfig(
        **with_rope(numbers, keys, _ROPE, head_dim=rope_dim),
        norm="layer",
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        mlp="plain",
        activation=keys.activation("hidden_act", "gelu"),
        parallel_residual=keys.flag("use_parallel_residual", True),
    )


def _sources(keys: Keys) -> Mapping[str, Source]:
    layer = "layers.{layer}."
    bias = keys.flag("attention_bias", True)
    fused = f"{layer}attention.query_key_value"  # rows go head by head, not q | k | v
    return {
        "embed": Source("embed_in"),
        "attn_norm": Source(f"{layer}input_layernorm", bias=True),
        "q": Source(fused, bias=bias, take=per_head_part(0)),
        "k": Source(fused, bias=bias, take=per_head_part(1)),
        "v": Source(fused, bias=bias, take=per_head_part(2)),
        "o": Source(f"{layer}attention.dense", bias=bias),
        "mlp_norm": Source(f"{layer}post_attention_layernorm", bias=True),
        "up": Source(f"{layer}mlp.dense_h_to_4h", bias=True),
        "down": Source(f"{layer}mlp.dense_4h_to_h", bias=True),
        "final_norm": Source("final_layer_norm", bias=True),
        "head": Source("embed_out"),
    }


GPT_NEOX = Family(
    model_type="gpt_neox",
    config=_config,
    sources=_sources,
    tokenizer="GPTNeoXTokenizer",
    reads=LLAMA_READS - {"rms_norm_eps", "rope_theta", "num_key_value_heads"}
    | {
        "attention_bias",
        "layer_norm_eps",
        "rotary_emb_base",
        "rotary_pct",
        "use_parallel_residual",
    },
    tied=False,
    renamed=(("lm_head.", "embed_out."),),
)
