"""What many families have in common: sizes, RoPE, windows, rows of fused tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvgen.checkpoint.families.base import Source, Take
from kvgen.checkpoint.families.keys import Keys
from kvgen.engine.config import ModelConfig
from kvgen.errors import CheckpointError

FULL, SLIDING = "full_attention", "sliding_attention"
# What every family with RoPE reads, and few do not call so; see `Family.reads`.
LLAMA_READS = frozenset({
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "original_max_position_embeddings",
})  # fmt: skip
MOST_LAYERS = 2**16  # far beyond any model; a layer costs time before its tensors are looked for


def split_width(d_model: int, n_heads: int, *, divides: bool = True) -> int:
    """The head size where a config gives none.

    Raises CheckpointError where heads do not divide, and the reference implementation minds.
    """
    if d_model < n_heads or (divides and d_model % n_heads):
        raise CheckpointError(f"config.json: {n_heads} heads do not divide a width of {d_model}")
    return d_model // n_heads


def sizes(
    keys: Keys,
    *,
    layers: int,
    heads: int,
    width: int,
    ff: int,
    vocabulary: int,
    context: int,
    kv_heads: int | None = None,
    kv_null: bool = True,
    grouped: bool = True,
    head_dim: int | None = None,
    own_head_dim: bool = True,
    split_if: tuple[int | None, ...] = (),
    divides: bool = False,
    ff_key: str = "intermediate_size",
) -> dict[str, Any]:
    """The sizes of a ModelConfig under the names that most families use; heads scale by 1/sqrt(D).

    The first arguments are the class defaults of the reference implementation, for keys that a file
    leaves out. The others say how it reads: whether key/value heads may be fewer (`grouped`) and
    null means as many (`kv_null`); whether it has a `head_dim` (`own_head_dim`), and which values
    of that mean width / heads (`split_if`); whether heads must divide the width (`divides`).
    """
    n_layers = keys.count("num_hidden_layers", layers, below=MOST_LAYERS)
    n_heads = keys.count("num_attention_heads", heads)
    d_model = keys.count("hidden_size", width)
    if own_head_dim:
        if "head_dim" in keys:
            head_dim = None if keys.is_one_of("head_dim", split_if) else keys.count("head_dim")
        keys.mark("head_dim")
    if divides or head_dim is None:
        split = split_width(d_model, n_heads, divides=divides)
        head_dim = split if head_dim is None else head_dim
    n_kv_heads = n_heads
    if grouped and kv_null:
        n_kv_heads = keys.or_none(keys.count, "num_key_value_heads", kv_heads) or n_heads
    elif grouped:
        n_kv_heads = keys.count("num_key_value_heads", kv_heads)
    return {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "d_model": d_model,
        "d_ff": keys.count(ff_key, ff),
        "vocab_size": keys.count("vocab_size", vocabulary),
        "max_context": keys.count("max_position_embeddings", context),
        "attn_scales": (head_dim**-0.5,) * n_layers,
    }


def read_types(keys: Keys, n_layers: int) -> list[str] | None:
    """`layer_types`, by which a layer sees all keys or a window; None where it is absent."""
    return keys.strings(
        "layer_types", count=n_layers, choices=(FULL, SLIDING), older={"attention": FULL}
    )


def read_windows(
    keys: Keys, n_layers: int, *, size: int | None, pattern: list[str], typed: bool = True
) -> tuple[int | None, ...]:
    """The window of each layer, `size` keys, from `layer_types` or from the family's own pattern.

    Without a size the pattern has no windows. Without `typed` the reference implementation goes by
    its pattern whatever `layer_types` says.
    """
    types = read_types(keys, n_layers)
    if types is None or (not typed and size is not None):
        types = pattern if size is not None else []
    if SLIDING not in types:
        return ()
    if size is None or size < 1:
        raise keys.wrong("sliding_window", "a positive whole number: layers have a window")
    return tuple(min(size, 2**24) if kind == SLIDING else None for kind in types)


def block(index: int, n_blocks: int, *, of: str) -> Take:
    """The i-th of equal blocks, each as large as the projection named by `of`: q or up."""

    def take(config: ModelConfig) -> tuple[int, slice]:
        rows = config.n_heads * config.head_dim if of == "q" else config.d_ff
        return n_blocks * rows, slice(index * rows, (index + 1) * rows)

    return take


def qkv_part(part: str) -> Take:
    """q, k or v out of one tensor that holds them one after another."""

    def take(config: ModelConfig) -> tuple[int, slice]:
        queries = config.n_heads * config.head_dim
        keys = config.n_kv_heads * config.head_dim
        start = {"q": 0, "k": queries, "v": queries + keys}[part]
        return queries + 2 * keys, slice(start, start + (queries if part == "q" else keys))

    return take


def per_head_part(index: int) -> Take:
    """q, k or v out of one tensor that holds them head by head: (heads, 3, D)."""

    def take(config: ModelConfig) -> tuple[int, npt.NDArray[np.intp]]:
        H, D = config.n_heads, config.head_dim
        return 3 * H * D, np.arange(3 * H * D).reshape(H, 3, D)[:, index].reshape(-1)

    return take


def halves_from_pairs(of: str) -> Take:
    """Rows of q or k for a RoPE that turns neighbours (2i, 2i+1), put so that halves are turned."""

    def take(config: ModelConfig) -> tuple[int, npt.NDArray[np.intp]]:
        D = config.head_dim
        n_heads = config.n_heads if of == "q" else config.n_kv_heads
        rows = np.arange(n_heads * D).reshape(n_heads, D // 2, 2)
        return n_heads * D, rows.swapaxes(1, 2).reshape(-1)

    return take


def llama_sources(
    *,
    attention_bias: bool = False,
    output_bias: bool | None = None,
    mlp_bias: bool = False,
    norm_bias: bool = False,
    plus_one: bool = False,
) -> dict[str, Source]:
    """The tensor names that Llama began and most families keep.

    `attention_bias` is that of q, k and v, and of the output too unless `output_bias` says else.
    """
    layer = "layers.{layer}."
    attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
    if output_bias is None:
        output_bias = attention_bias

    def norm(name: str) -> Source:
        return Source(name, bias=norm_bias, plus_one=plus_one)

    return {
        "embed": Source("embed_tokens"),
        "attn_norm": norm(f"{layer}input_layernorm"),
        "q": Source(f"{attention}q_proj", bias=attention_bias),
        "k": Source(f"{attention}k_proj", bias=attention_bias),
        "v": Source(f"{attention}v_proj", bias=attention_bias),
        "o": Source(f"{attention}o_proj", bias=output_bias),
        "mlp_norm": norm(f"{layer}post_attention_layernorm"),
        "gate": Source(f"{mlp}gate_proj", bias=mlp_bias),
        "up": Source(f"{mlp}up_proj", bias=mlp_bias),
        "down": Source(f"{mlp}down_proj", bias=mlp_bias),
        "final_norm": norm("norm"),
        "head": Source("lm_head"),
    }


def head_norms(*, bias: bool = False, plus_one: bool = False) -> dict[str, Source]:
    """Norms of queries and keys under their usual names."""
    return {
        f"{name}_norm": Source(
            f"layers.{{layer}}.self_attn.{name}_norm", bias=bias, plus_one=plus_one
        )
        for name in ("q", "k")
    }
