"""The families that kvgen knows, by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from kvgen.checkpoint.families.base import Family, Source
from kvgen.checkpoint.families.cohere import COHERE
from kvgen.checkpoint.families.gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_TEXT
from kvgen.checkpoint.families.gpt2 import GPT2
from kvgen.checkpoint.families.gpt_neo import GPT_NEO
from kvgen.checkpoint.families.gpt_neox import GPT_NEOX
from kvgen.checkpoint.families.granite import GRANITE
from kvgen.checkpoint.families.keys import Keys
from kvgen.checkpoint.families.llama import LLAMA
from kvgen.checkpoint.families.mistral import MISTRAL
from kvgen.checkpoint.families.olmo2 import OLMO2
from kvgen.checkpoint.families.opt import OPT
from kvgen.checkpoint.families.phi import PHI, PHI3
from kvgen.checkpoint.families.qwen import QWEN2, QWEN3
from kvgen.checkpoint.families.rope import ROPE_KEYS
from kvgen.checkpoint.families.shared import FULL, read_types
from kvgen.checkpoint.families.smollm3 import SMOLLM3
from kvgen.checkpoint.families.stablelm import STABLELM
from kvgen.checkpoint.families.starcoder2 import STARCODER2
from kvgen.engine.config import ModelConfig
from kvgen.errors import CheckpointError
from kvgen.visible import one_line

__all__ = ["FAMILIES", "Family", "Keys", "Reading", "Source", "find", "read_config"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        COHERE,
        GEMMA,
        GEMMA2,
        GEMMA3,
        GEMMA3_TEXT,
        GPT2,
        GPT_NEO,
        GPT_NEOX,
        GRANITE,
        LLAMA,
        MISTRAL,
        OLMO2,
        OPT,
        PHI,
        PHI3,
        QWEN2,
        QWEN3,
        SMOLLM3,
        STABLELM,
        STARCODER2,
    )
}


def find(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises CheckpointError where kvgen knows none."""
    model_type = config.get("model_type")
    if model_type is None:
        raise CheckpointError("config.json: model_type is missing, so the family is unknown")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not supported; "
            f"kvgen knows {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


# What any model may have had in its config.json by the base class of transformers: training,
# generation and encoders, nothing that a decoder computes by.
_OF_ANY_MODEL = frozenset(
    {"add_cross_attention", "cross_attention_hidden_size", "renormalize_logits", "sequence_bias"}
)
_KNOWN = _OF_ANY_MODEL.union(ROPE_KEYS, *(family.reads for family in FAMILIES.values()))


class Reading(NamedTuple):
    """A config.json as its family understands it."""

    config: ModelConfig
    sources: Mapping[str, Source]
    tied: bool | None  # what the file says of tie_word_embeddings, None where it says nothing
    notes: tuple[str, ...]  # what a user should know
    ignored: tuple[str, ...]  # keys that play no part


def read_config(family: Family, raw: Mapping[str, Any]) -> Reading:
    """Read every key of a config.json that plays a part.

    Raises CheckpointError for a key that may change the arithmetic and is not understood. A key
    that only other models read changes nothing here, as in the reference implementation: a note
    names it.
    """
    keys = Keys(raw)
    text = keys.nested(family.text_key) if family.text_key else keys
    if text is None:
        raise CheckpointError(f"config.json: {family.text_key} is missing")
    eos = keys.token_ids("eos_token_id") or text.token_ids("eos_token_id")
    config = replace(family.config(text), eos_ids=eos)
    sources = family.sources(text)
    if (
        set(read_types(text, config.n_layers) or [FULL]) != {FULL}
        and "sliding_window" not in family.reads
    ):
        raise text.not_understood("layer_types")
    says = next((each for each in (keys, text) if each.has("tie_word_embeddings")), None)
    tied = None if says is None else says.flag("tie_word_embeddings")
    for each in dict.fromkeys((keys, text)):
        each.refuse_unread(
            reads=family.reads if each is text else frozenset(), known=_KNOWN, inert=family.inert
        )
    notes: tuple[str, ...] = ()
    if keys.left_out:
        names = ", ".join(dict.fromkeys(keys.left_out))
        notes = (f"config.json: {family.model_type} models do not read {names}: ignored",)
    ignored = dict.fromkeys(keys.unread() + text.unread() + keys.left_out)
    return Reading(config, sources, tied, notes, tuple(map(one_line, ignored)))
