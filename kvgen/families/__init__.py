"""The families that kvgen knows, by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvgen.errors import CheckpointError
from kvgen.families.base import Family, Keys, Source
from kvgen.families.cohere import COHERE
from kvgen.families.gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_TEXT
from kvgen.families.gpt2 import GPT2
from kvgen.families.gpt_neo import GPT_NEO
from kvgen.families.gpt_neox import GPT_NEOX
from kvgen.families.granite import GRANITE
from kvgen.families.llama import LLAMA
from kvgen.families.mistral import MISTRAL
from kvgen.families.olmo2 import OLMO2
from kvgen.families.opt import OPT
from kvgen.families.phi import PHI, PHI3
from kvgen.families.qwen import QWEN2, QWEN3
from kvgen.families.smollm3 import SMOLLM3
from kvgen.families.stablelm import STABLELM
from kvgen.families.starcoder2 import STARCODER2

__all__ = ["FAMILIES", "Family", "Keys", "Source", "find"]

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
