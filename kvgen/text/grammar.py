"""JSON schemas and regular expressions as grammars in the Lark syntax of llguidance, with limits.

Forced text is turned off (`no_forcing`): by default llguidance offers, where only one text can
follow, the single token that it expects the tokenizer to make of it. A tokenizer that puts a space
before a text or has special tokens in it would make other tokens; and the model knows how it
spells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from kvgen.errors import UsageError
from kvgen.text.example_text import example_text

_MOST_CHARACTERS = 256 * 1024  # of a schema or grammar
_LONGEST_PATTERN = 8192  # characters: twice as many took 1 GiB
_MOST_EXAMPLES = 8  # of the patterns of one schema or grammar
_TERMINAL = re.compile(r'/((?:\\.|[^/\\\n])+)/|"((?:\\.|[^"\\\n])+)"')  # of Lark: one of both
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
# JSON on one line as Python, and so most text that models learn from, writes it. Free white space
# would let a model go on with spaces forever.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def as_lark(kind: str, source: Any, where: str) -> str:
    """The grammar of a JSON schema, a regular expression, or a grammar in that syntax.

    Raises UsageError where it is too large, or where a schema is no JSON.
    """
    if kind == "json-schema":
        schema = _read_schema(source, where)
        return f"start: %json {json.dumps(schema)}{_NO_FORCING}"
    if not isinstance(source, str):
        raise UsageError(f"{where}: is {type(source).__name__}; it must be text")
    if kind == "regex":
        _check_pattern(source, where)
        from llguidance import regex_to_lark

        return f"start: /{regex_to_lark(source)}/{_NO_FORCING}"
    _check_size(source, where)
    return source + _NO_FORCING


def example_texts(kind: str, source: Any) -> list[str]:
    """Short texts that match the patterns of what `as_lark` takes; in a schema, as in JSON."""
    if kind == "regex":
        texts = [example_text(source)]
    elif kind == "grammar":
        texts = [example_text(one) if one else other for one, other in _TERMINAL.findall(source)]
        texts.append("".join(text or "" for text in texts))  # as of a single rule
    else:
        parts = _parts(json.loads(source) if isinstance(source, str) else source)
        patterns = [part["pattern"] for part in parts if isinstance(part.get("pattern"), str)]
        found = map(example_text, dict.fromkeys(patterns))
        texts = [json.dumps(text, ensure_ascii=False)[1:-1] for text in found if text]
    return [text for text in texts if text][-_MOST_EXAMPLES:]


def reason_of(error: str) -> str:
    """What is wrong, out of llguidance's many lines."""
    if found := re.search(r"^error: (.+)$", error, re.MULTILINE):  # of a regular expression
        return found[1]
    text = re.split(r"\n\s*\d+ \| |\n?<non-verbose/>|\n<state>", error)[0]
    text = re.sub(r'^at 1\(8\): failed to (compile JSON schema|parse "%json"): ', "", text)
    text = re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", text)
    text = re.sub(r"\. Enable 'coerce_one_of'.*", ": use anyOf", text)
    return text.strip()


def _read_schema(source: Any, where: str) -> Any:
    """The schema with our style of white space, unless it names another one in `x-guidance`."""
    if isinstance(source, str):
        _check_size(source, where)
        try:
            source = json.loads(source, parse_constant=_refuse)
        except RecursionError:
            raise UsageError(f"{where}: is nested too deeply") from None
        except ValueError as error:
            raise UsageError(f"{where}: is not JSON: {error}") from None
    try:
        text = json.dumps(source, allow_nan=False)
        _check_size(text, where)
        schema = json.loads(text, object_hook=lambda part: _checked_part(part, where))
    except RecursionError:
        raise UsageError(f"{where}: is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: is not JSON: {error}") from None
    for part in _parts(schema):
        _check_count(part, where)
        if part.get("uniqueItems") is False:  # says nothing, but the library refuses the key
            del part["uniqueItems"]
    schema = _closed(schema)
    if schema is True:  # anything
        schema = {}
    if not isinstance(schema, dict):
        return schema
    style = schema.get("x-guidance")
    return schema | {"x-guidance": _STYLE | (style if isinstance(style, dict) else {})}


def _checked_part(part: dict[str, Any], where: str) -> dict[str, Any]:
    patterns = [part.get("pattern")]
    if isinstance(part.get("patternProperties"), dict):
        patterns += part["patternProperties"]
    for pattern in patterns:
        if isinstance(pattern, str):
            _check_pattern(pattern, where)
    return part


def _check_count(part: dict[str, Any], where: str) -> None:
    """Refuse several properties with free names: the library lets a name come twice."""
    least, required = part.get("minProperties"), part.get("required")
    named = len(required) if isinstance(required, list) else 0
    free = "patternProperties" in part or part.get("additionalProperties") is not False
    if isinstance(least, (int, float)) and least > max(1, named) and free:
        raise UsageError(
            f"{where}: minProperties {least} cannot be kept, since names may come twice: list "
            "names in properties and required, or leave minProperties out"
        )


_JOINING = ("anyOf", "oneOf", "$ref", "not", "if", "dependentSchemas")
_OF_OBJECTS = ("properties", "required", "minProperties")


def _closed(schema: Any) -> Any:
    """The schema with no other properties than it names, where it does not ask for others.

    A schema lets further properties in unless it says `additionalProperties`, and a model may go
    on with new ones forever. What matches the closed schema matches the open one. Where schemas are
    joined, one may name what the other lacks: then nothing is closed.

    >>> _closed({"properties": {"a": True}})
    {'properties': {'a': True}, 'additionalProperties': False}
    """
    parts = list(_parts(schema))
    if any(map(_is_joined, parts)):
        return schema
    for part in parts:
        names = part.get("properties")
        says = any(key in part for key in ("additionalProperties", "patternProperties"))
        if isinstance(names, dict) and not says and "minProperties" not in part:
            required = part.get("required", [])
            if isinstance(required, list) and all(name in names for name in map(str, required)):
                part["additionalProperties"] = False
    return schema


def _is_joined(part: dict[str, Any]) -> bool:
    of_objects = any(key in part for key in _OF_OBJECTS)
    return "allOf" in part or (of_objects and any(key in part for key in _JOINING))


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and the schemas in it; examples and constants may look like some, but are none."""
    if not isinstance(schema, dict):
        return
    yield schema
    inner = [schema.get(name) for name in ("items", "additionalProperties")]
    for name in ("allOf", "anyOf", "oneOf", "prefixItems"):
        inner += schema[name] if isinstance(schema.get(name), list) else []
    for name in ("properties", "patternProperties", "$defs", "definitions"):
        inner += schema[name].values() if isinstance(schema.get(name), dict) else []
    for part in inner:
        yield from _parts(part)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_pattern(pattern: str, where: str) -> None:
    if len(pattern) > _LONGEST_PATTERN:
        raise UsageError(
            f"{where}: a pattern has {len(pattern):,} characters; it may have {_LONGEST_PATTERN:,}"
        )


def _check_size(text: str, where: str) -> None:
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(f"{where}: has {len(text):,} characters; it may have {_MOST_CHARACTERS:,}")
