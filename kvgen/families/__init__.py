"""The families that kvgen knows, by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvgen.errors import CheckpointError
from kvgen.families.base import Family, Keys, Source
from kvgen.families.gpt2 import GPT2
from kvgen.families.llama import LLAMA

__all__ = ["FAMILIES", "Family", "Keys", "Source", "find"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2, LLAMA)}


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
