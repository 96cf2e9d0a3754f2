"""What many families have in common: sizes, RoPE, windows, rows of fused tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kvgen.config import ModelConfig, RopeConfig
from kvgen.errors import CheckpointError
from kvgen.families.base import Keys, Source, Take

FULL, SLIDING = "full_attention", "sliding_attention"


def split_width(d_model: int, n_heads: int) -> int:
    """The head size where a config gives none. Raises CheckpointError where heads do not divide."""
    if d_model % n_heads:
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
    head_dim: int | None = None,
    ff_key: str = "intermediate_size",
) -> dict[str, Any]:
    """The sizes of a ModelConfig under the names that most families use; heads scale by 1/sqrt(D).

    The arguments are the class defaults of the reference implementation, for keys that a file
    leaves out.
    """
    n_layers = keys.count("num_hidden_layers", layers)
    n_heads = keys.count("num_attention_heads", heads)
    d_model = keys.count("hidden_size", width)
    if keys.has("head_dim") or head_dim is not None:
        head_dim = keys.count("head_dim", head_dim)
    else:
        head_dim = split_width(d_model, n_heads)
    return {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": keys.count("num_key_value_heads", kv_heads or n_heads),
        "head_dim": head_dim,
        "d_model": d_model,
        "d_ff": keys.count(ff_key, ff),
        "vocab_size": keys.count("vocab_size", vocabulary),
        "max_context": keys.count("max_position_embeddings", context),
        "attn_scales": (head_dim**-0.5,) * n_layers,
    }


def with_rope(
    numbers: Mapping[str, Any],
    keys: Keys,
    *,
    theta: float = 10000.0,
    partial: float = 1.0,
    theta_key: str = "rope_theta",
    partial_key: str = "partial_rotary_factor",
) -> dict[str, Any]:
    """The sizes with one RoPE for all layers, and the context that its scaling reaches."""
    rope = read_rope(
        keys,
        head_dim=numbers["head_dim"],
        max_context=numbers["max_context"],
        theta=theta,
        partial=partial,
        theta_key=theta_key,
        partial_key=partial_key,
    )
    return {
        **numbers,
        "rope": (rope,) * numbers["n_layers"],
        "max_context": reach(rope, numbers["max_context"]),
    }


def reach(rope: RopeConfig, max_context: int) -> int:
    """Positions that a scaled RoPE is meant for, where the config may name the original ones."""
    if rope.kind in ("dynamic", "yarn"):
        return max(max_context, int(rope.factor * rope.original_context))
    return max_context


def read_rope(
    keys: Keys,
    *,
    head_dim: int,
    max_context: int,
    theta: float = 10000.0,
    partial: float = 1.0,
    theta_key: str = "rope_theta",
    partial_key: str = "partial_rotary_factor",
    parameters: Keys | None = None,
) -> RopeConfig:
    """RoPE in either dialect of transformers.

    v4 writes `rope_theta` and a partial factor beside `rope_scaling`; v5 writes all of it into
    `rope_parameters`. `parameters` takes the place of that object where there are several.
    """
    theta = keys.number(theta_key, theta)
    partial = keys.number(partial_key, partial)
    original = keys.count("original_max_position_embeddings", max_context)
    scaling = parameters or keys.nested("rope_parameters") or keys.nested("rope_scaling")
    if keys.same("rope_parameters", "rope_scaling"):
        keys.mark("rope_scaling")
    if scaling is None:
        return RopeConfig(theta=theta, dim=int(head_dim * partial))
    theta = scaling.number("rope_theta", theta)
    dim = int(head_dim * scaling.number("partial_rotary_factor", partial))
    original = scaling.count("original_max_position_embeddings", original)
    kind = scaling.word("rope_type", scaling.word("type", "default"))
    if kind == "default":
        rope = RopeConfig(theta=theta, dim=dim)
    elif kind == "linear":
        rope = RopeConfig(theta=theta, dim=dim, kind="linear", factor=scaling.number("factor"))
    elif kind == "dynamic":
        rope = RopeConfig(
            theta=theta,
            dim=dim,
            kind="dynamic",
            factor=scaling.number("factor"),
            original_context=max_context,
        )
    elif kind == "llama3":
        rope = RopeConfig(
            theta=theta,
            dim=dim,
            kind="llama3",
            factor=scaling.number("factor"),
            low=scaling.number("low_freq_factor"),
            high=scaling.number("high_freq_factor"),
            original_context=original,
        )
    elif kind == "yarn":
        rope = _read_yarn(scaling, theta=theta, dim=dim, original=original, context=max_context)
    elif kind in ("longrope", "su"):
        rope = _read_longrope(scaling, theta=theta, dim=dim, original=original, context=max_context)
    else:
        raise CheckpointError(
            f"{scaling.where}: rope type {kind!r} is not supported; "
            "kvgen knows default, linear, dynamic, llama3, yarn and longrope"
        )
    scaling.mark("finetuned")  # how the model came about
    scaling.refuse_unread(every=True)
    return rope


def _read_yarn(scaling: Keys, *, theta: float, dim: int, original: int, context: int) -> RopeConfig:
    factor = scaling.number("factor", context / original)
    magnitude = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1
    scale, scale_all = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    if scale and scale_all and factor > 1:
        magnitude = (0.1 * scale * math.log(factor) + 1) / (0.1 * scale_all * math.log(factor) + 1)
    return RopeConfig(
        theta=theta,
        dim=dim,
        kind="yarn",
        factor=factor,
        low=scaling.number("beta_slow", 1.0),
        high=scaling.number("beta_fast", 32.0),
        original_context=original,
        truncate=scaling.flag("truncate", True),
        magnitude=scaling.number("attention_factor", magnitude),
    )


def _read_longrope(
    scaling: Keys, *, theta: float, dim: int, original: int, context: int
) -> RopeConfig:
    factor = scaling.number("factor", context / original)
    magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeConfig(
        theta=theta,
        dim=dim,
        kind="longrope",
        original_context=original,
        magnitude=scaling.number("attention_factor", magnitude),
        short_factors=scaling.numbers("short_factor"),
        long_factors=scaling.numbers("long_factor"),
    )


def read_windows(
    keys: Keys, n_layers: int, *, pattern: list[str], window: int | None = None
) -> tuple[int | None, ...]:
    """The window of each layer from `layer_types`, or from the family's own pattern.

    `window` is the default where the config has no `sliding_window`; null means none.
    """
    size = keys.or_none(keys.count, "sliding_window", window)
    if size is None:
        return ()
    types = keys.strings("layer_types", count=n_layers, choices=(FULL, SLIDING)) or pattern
    windows = tuple(size if kind == SLIDING else None for kind in types)
    return windows if any(windows) else ()


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
