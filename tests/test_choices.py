"""Choices are written once: click's options, kvgen.load and the types all take them from there."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import click
import pytest

import kvgen
from kvgen import choices, loading
from kvgen.choices import LoadOptions, names
from kvgen.cli.options import Several
from kvgen.errors import UsageError
from tests.command import COMMANDS

KINDS = {
    "backend": choices.BackendChoice,
    "dtype": choices.DTypeChoice,
    "cache_dtype": choices.CacheDTypeChoice,
    "prefill": choices.PrefillName,
}


@pytest.mark.parametrize("command", ["generate", "bench", "verify", "inspect-attention"])
@pytest.mark.parametrize("name", KINDS)
def test_a_command_takes_the_choices_that_load_takes(command: str, name: str) -> None:
    option = next(each for each in COMMANDS[command].params if each.name == name)
    kind: Any = option.type
    if isinstance(kind, Several):
        kind = kind._one
    assert isinstance(kind, click.Choice)
    assert tuple(kind.choices) == names(KINDS[name])
    assert get_type_hints(loading.load)[name] == KINDS[name]


def test_load_keeps_its_signature() -> None:
    parameters = inspect.signature(kvgen.load).parameters.values()
    assert [(each.name, each.default) for each in parameters] == [
        ("path_or_id", None), ("backend", "auto"), ("dtype", "auto"), ("cache_dtype", "auto"),
        ("prefill", "exact"), ("threads", None), ("mmap", None), ("revision", None),
    ]  # fmt: skip
    defaults = LoadOptions()
    assert all(getattr(defaults, each.name) == each.default for each in list(parameters)[1:-1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backend": "gpu"}, "backend 'gpu' is not one of auto, numpy, numba"),
        ({"dtype": "int3"}, "dtype 'int3' is not one of auto, f32, bf16, f16, int8"),
        ({"cache_dtype": None}, "cache dtype None is not one of auto, f32, f16, int8"),
        ({"prefill": ["fast"]}, r"prefill \['fast'\] is not one of exact, fast, stepwise"),
        ({"threads": 0}, "threads must be a whole number from 1 to 1024, not 0"),
        ({"mmap": "no"}, "mmap must be True, False or None, not 'no'"),
        ({"threads": "4"}, "threads must be a whole number from 1 to 1024, not '4'"),
    ],
)
def test_options_outside_the_choices_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LoadOptions(**wrong)
    with pytest.raises(UsageError, match=message):
        kvgen.load(**wrong)
