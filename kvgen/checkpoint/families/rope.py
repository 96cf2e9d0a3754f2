"""RoPE out of a config.json, in either dialect of transformers and as its families read it.

Source: transformers, modeling_rope_utils.py (standardize_rope_params and the functions of each
kind) and the `convert_rope_params_to_dict` of the families' configuration files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvgen.checkpoint.families.keys import Keys
from kvgen.engine.config import RopeConfig, RopeKind
from kvgen.errors import CheckpointError

# Keys of any kind of RoPE, and those that people write beside them: read where the kind has them,
# passed over elsewhere, as in transformers (_check_received_keys warns).
ROPE_KEYS = frozenset({
    "rope_theta", "rope_type", "type", "partial_rotary_factor", "factor",
    "original_max_position_embeddings", "attention_factor", "attn_factor", "beta_fast", "beta_slow",
    "extrapolation_factor", "finetuned", "truncate", "mscale", "mscale_all_dim", "short_factor",
    "long_factor", "short_mscale", "long_mscale", "low_freq_factor", "high_freq_factor",
    "mrope_section",
})  # fmt: skip
_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeStyle:
    """What a family makes of the keys that speak of RoPE."""

    theta: float = 10000.0  # where the file has none
    theta_key: str = "rope_theta"
    partial: float | None = None  # part of a head that is turned; None: always all of it
    partial_key: str = "partial_rotary_factor"
    rounds_up: bool = False  # an odd number of a head's numbers is made even, else refused
    original: int | None = None  # context before scaling that the class has, a file's object or not
    kinds: tuple[RopeKind, ...] = _KINDS
    older: tuple[tuple[str, RopeKind], ...] = ()  # other names of a kind


def with_rope(
    numbers: Mapping[str, Any],
    keys: Keys,
    style: RopeStyle = RopeStyle(),
    *,
    head_dim: int | None = None,
) -> dict[str, Any]:
    """The sizes with one RoPE for all layers, and the context that its scaling reaches.

    `head_dim` is the head size that RoPE goes by, where it is not the heads' own.
    """
    rope = read_rope(
        keys,
        keys.first_object("rope_scaling", "rope_parameters"),
        head_dim=head_dim or numbers["head_dim"],
        max_context=numbers["max_context"],
        style=style,
    )
    return {
        **numbers,
        "rope": (rope,) * numbers["n_layers"],
        "max_context": reach(rope, numbers["max_context"]),
    }


def reach(rope: RopeConfig | None, max_context: int) -> int:
    """Positions that a scaled RoPE is meant for, where the config may name the original ones."""
    if rope is not None and rope.kind in ("dynamic", "yarn"):
        return max(max_context, int(min(rope.factor * rope.original_context, 2**24)))
    return max_context


def read_rope(
    keys: Keys,
    scaling: Keys,
    *,
    head_dim: int,
    max_context: int,
    style: RopeStyle,
    nested: bool = False,
) -> RopeConfig | None:
    """The RoPE that `scaling` describes, with what stands beside it in `keys`; None turns nothing.

    Where there are several such objects (`nested`), those of layer types, the reference looks for
    fewer keys beside them.
    """
    if "rope_theta" in scaling:
        theta = scaling.number("rope_theta")
    else:
        theta = keys.number(style.theta_key, style.theta)
    keys.mark(style.theta_key)
    word = scaling.word("rope_type" if "rope_type" in scaling else "type", "default")
    scaling.mark("type")
    named = dict(style.older).get(word, word)
    kind = next((each for each in style.kinds if each == named), None)
    if kind is None:
        raise CheckpointError(
            f"{scaling.where}: rope type {word!r} is not supported; "
            f"kvgen knows {', '.join(style.kinds[:-1])} and {style.kinds[-1]} here"
        )
    turned = _turned(keys, scaling, head_dim=head_dim, style=style, kind=kind)
    numbers: dict[str, Any] = {}
    original = max_context
    if kind in ("llama3", "yarn", "longrope"):
        # What stands beside the object goes before what is in it.
        beside = not nested and (_ORIGINAL in keys or style.original is not None)
        place, default = (keys, style.original) if beside else (scaling, max_context)
        scaling.mark(_ORIGINAL)
        original = place.whole(_ORIGINAL, default, loose=style.original is None)
        if not 0 < original < 2**24:
            raise place.wrong(_ORIGINAL, "a positive whole number")
        numbers["original_context"] = original
    keys.mark(_ORIGINAL)
    if kind in ("linear", "dynamic", "llama3"):
        numbers["factor"] = scaling.number("factor")
    if kind == "dynamic":
        numbers["original_context"] = max_context
    elif kind == "llama3":
        numbers["low"] = scaling.number("low_freq_factor")
        numbers["high"] = scaling.number("high_freq_factor")
    elif kind == "yarn":
        numbers |= _read_yarn(scaling, original=original, context=max_context, nested=nested)
    elif kind == "longrope":
        numbers |= _read_longrope(scaling, original=original, context=max_context)
    scaling.refuse_all_unread(known=ROPE_KEYS)
    if turned == 0:
        return None
    dim = turned + turned % 2
    if turned % 2 and not (style.rounds_up and kind not in ("yarn", "longrope")):
        raise CheckpointError(
            f"config.json: RoPE needs an even head size (or part of it), not {turned}"
        )
    return RopeConfig(
        theta=theta, dim=dim, kind=kind, divisor=turned if turned % 2 else 0, **numbers
    )


def _turned(keys: Keys, scaling: Keys, *, head_dim: int, style: RopeStyle, kind: str) -> int:
    """How many numbers of a head are turned."""
    if style.partial is None and kind == "default":
        return head_dim  # whatever a partial factor says: it is left unread
    place, name = keys, style.partial_key
    if "partial_rotary_factor" in scaling:
        place, name = scaling, "partial_rotary_factor"
    keys.mark(style.partial_key)
    if style.partial is None and place is keys and not keys.has(name):
        return head_dim
    partial = place.number(name, style.partial)
    if not 0 <= partial <= 2:
        raise place.wrong(name, "a part of a head, from 0 to 1")
    turned = int(head_dim * partial)
    if style.partial is None and turned != head_dim:
        raise place.wrong(name, f"1: these models turn whole heads, also with {kind} scaling")
    return turned


def _read_yarn(scaling: Keys, *, original: int, context: int, nested: bool) -> dict[str, Any]:
    factor = scaling.number("factor") if scaling.has("factor") else context / original
    if "factor" not in scaling:
        raise scaling.wrong("factor", "a number, or null for that of the contexts")
    magnitude = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1
    scale, scale_all = (
        scaling.or_none(scaling.number, name, None) for name in ("mscale", "mscale_all_dim")
    )
    own = scaling.or_none(scaling.number, "attention_factor", None)
    if scale and scale_all and factor > 1 and own is None:
        divisor = 0.1 * scale_all * math.log(factor) + 1
        if divisor == 0:
            raise scaling.wrong("mscale_all_dim", "another number: it divides by 0")
        magnitude = (0.1 * scale * math.log(factor) + 1) / divisor
    return {
        "factor": factor,
        "low": scaling.or_none(scaling.number, "beta_slow", None) or 1.0,
        "high": scaling.or_none(scaling.number, "beta_fast", None) or 32.0,
        "truncate": nested or scaling.truth("truncate", True),
        "magnitude": magnitude if own is None else own,
    }


def _read_longrope(scaling: Keys, *, original: int, context: int) -> dict[str, Any]:
    factor = scaling.or_none(scaling.number, "factor", None)
    if factor is None:
        factor = context / original
    magnitude = scaling.or_none(scaling.number, "attention_factor", None)
    if magnitude is None and factor <= 1:
        magnitude = 1.0
    elif magnitude is None:
        if original == 1:
            raise CheckpointError(
                f"{scaling.where}: an original context of 1 has no logarithm to divide by"
            )
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "magnitude": magnitude,
        "short_factors": scaling.numbers("short_factor"),
        "long_factors": scaling.numbers("long_factor"),
    }
