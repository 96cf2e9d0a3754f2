"""Structured output of `kvgen generate`: a JSON schema, a regular expression or a grammar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kvgen.cli.options import Command, bundle
from kvgen.cli.output import note
from kvgen.errors import KvgenError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvgen.model import Model
    from kvgen.piece import Piece
    from kvgen.text.constraint import Constraint


class StructuredFlags(NamedTuple):
    """What the text has to match; at most one of them."""

    json_schema: str | None
    regex: str | None
    grammar: str | None

    def check(self, *, ignore_eos: bool) -> None:
        """Raise UsageError for options that exclude each other."""
        given = [f"--{name.replace('_', '-')}" for name in self._given()]
        if ignore_eos:
            given.append("--ignore-eos")
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} exclude each other: leave one out")

    def build(self, model: Model) -> Constraint | None:
        """The constraint for a model; None where no option asks for one.

        Raises UsageError where a file cannot be read, or what it holds cannot be used.
        """
        for name, value in self._given().items():
            in_file = not (name == "regex" or (name == "json_schema" and value.startswith("{")))
            where = value if in_file else f"--{name.replace('_', '-')}"
            source = _read(value) if in_file else value
            return model.constraint(**{name: source}, where=where)
        return None

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}


def structured_options() -> Callable[[Command], Command]:
    """Flags for text that has to match a schema, a pattern or a grammar."""
    return bundle(
        StructuredFlags,
        "structured_flags",
        click.option(
            "--json-schema",
            metavar="FILE",
            help="Generate JSON that matches the JSON schema of this file, or of this text where "
            "it begins with {. At most one of this, --regex and --grammar, which need the extra "
            "kvgen[structured]; -n is then as many as fit, up to 1024. Where -n ends the run, the "
            "text is closed in time. Where -n is too small for that, or --stop cuts the text, the "
            "exit code is 1. Of `format` only the form is kept: every year has a February 29.",
        ),
        click.option(
            "--regex",
            metavar="PATTERN",
            help="Generate text that matches this regular expression from its beginning to its "
            "end (syntax of Rust's regex, without look-around).",
        ),
        click.option(
            "--grammar",
            metavar="FILE",
            help="Generate text that matches the grammar of this file, in the Lark syntax that "
            "llguidance reads; it begins with the rule start.",
        ),
    )


def note_closed_early(
    constraint: Constraint | None, pieces: Sequence[Piece], *, n_asked: int, context_full: bool
) -> None:
    """Say that the text would have gone on."""
    if constraint is None or not pieces or not (pieces[-1].closed_early and pieces[-1].whole):
        return
    cause, advice = f"-n {n_asked} was reached", "raise -n for more"
    if context_full:
        cause, advice = "the context is full", "shorten the prompt for more"
    note(f"{cause}: the text was closed early to match the {constraint.name}; {advice}")


def require_whole(
    constraint: Constraint | None, pieces: Sequence[Piece], *, context_full: bool
) -> None:
    """Raise KvgenError where the text was cut before it matches."""
    if constraint is None or not pieces or pieces[-1].whole:
        return
    if pieces[-1].finish_reason == "stop":
        cause, advice = "a --stop text has cut it", "leave --stop out"
    else:
        cut = "the context ends" if context_full else "-n has cut it"
        cause = f"{cut} after {len(pieces)} tokens"
        advice = "shorten the prompt" if context_full else "raise -n"
        shortest = constraint.n_shortest()
        if shortest is not None and shortest > len(pieces):
            advice += f"; the shortest text known takes {shortest} tokens"
        else:
            bounds = "bound strings and arrays with maxLength and maxItems"
            is_schema = constraint.kind == "json-schema"
            advice += f", or {bounds if is_schema else 'let the text end earlier'}"
    raise KvgenError(f"the text does not match the {constraint.name} yet, since {cause}: {advice}")


def constraint_as_json(constraint: Constraint | None, pieces: Sequence[Piece]) -> dict[str, Any]:
    """What was asked for, and whether the text is whole; empty without a constraint."""
    if constraint is None:
        return {}
    last = pieces[-1] if pieces else None
    return {
        "constraint": constraint.kind,
        "whole": bool(last and last.whole),
        "closed_early": bool(last and last.closed_early),
    }


def _read(name: str) -> str:
    """A file's text. Raises UsageError where it cannot be read."""
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError:  # also a name that holds NUL
        raise UsageError(f"{name}: is not valid UTF-8") from None
