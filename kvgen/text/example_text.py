"""A short text that matches a regular expression: what a string lacks that has to match it."""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Iterable
from typing import Any

try:
    from re import _parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse as _parser

_LONGEST = 64  # characters
_PLAIN = f"a0 {string.printable}"


def example_text(pattern: str) -> str | None:
    """A short text that matches; None where Python does not understand the pattern.

    Anchors and look-arounds are left aside: the text may match only as a part of another, or not.

    >>> example_text(r"^.*@(example|host)[.](com|net)+$")
    '@host.com'
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python means to read in another way
            text = _of(_parser.parse(pattern))
            text.encode()  # half of a pair of surrogates is no text
            return text
    except (re.error, ValueError, OverflowError, RecursionError):
        return None


def _of(items: Iterable[tuple[Any, Any]]) -> str:
    text = ""
    for kind, value in items:
        text += _one(str(kind), value)
        if len(text) > _LONGEST:
            raise ValueError("too long")
    return text


def _one(kind: str, value: Any) -> str:
    """The text of one part; `kind` is Python's name of it."""
    if kind == "LITERAL":
        return chr(value)
    if kind == "NOT_LITERAL":
        return next(char for char in _PLAIN if ord(char) != value)
    if kind == "ANY":
        return "a"
    if kind == "IN":
        return _member(value)
    if kind == "BRANCH":
        return min(map(_of, value[1]), key=len)
    if kind == "SUBPATTERN":
        return _of(value[-1])
    if kind == "ATOMIC_GROUP":
        return _of(value)
    if kind.endswith("_REPEAT"):
        least, _, items = value
        return _of(items) * min(least, _LONGEST + 1) if least else ""
    if kind in ("AT", "ASSERT", "ASSERT_NOT"):
        return ""
    raise ValueError(kind)  # a reference to a group, which no other library has


def _member(choices: list[tuple[Any, Any]]) -> str:
    """A character of a class such as [^a-c]."""
    named = "".join(
        chr(value if str(kind) == "LITERAL" else value[0])
        for kind, value in choices
        if str(kind) in ("LITERAL", "RANGE")
    )
    negated = str(choices[0][0]) == "NEGATE"
    for char in _PLAIN if negated else f"{named}{_PLAIN}":
        if negated != any(_fits(char, str(kind), value) for kind, value in choices):
            return char
    raise ValueError("no plain character")


def _fits(char: str, kind: str, value: Any) -> bool:
    if kind == "LITERAL":
        return bool(ord(char) == value)
    if kind == "RANGE":
        return bool(value[0] <= ord(char) <= value[1])
    if kind == "CATEGORY":
        name = str(value).rpartition("_")[2]
        word = char.isalnum() or char == "_"
        fits = {"DIGIT": char.isdigit(), "SPACE": char.isspace(), "WORD": word}
        return bool(fits[name] != ("_NOT_" in str(value)))
    return False  # the sign of negation
