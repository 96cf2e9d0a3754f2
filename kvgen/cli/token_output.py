"""What `kvgen generate` can say of each new token: log-probabilities, colours, lines of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kvgen.cli.options import Command, bundle
from kvgen.cli.output import PaintedProse, Prose, make_canvas, note, stderr_is_terminal, write_text
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.piece import Piece

MOST_LOGPROBS = 20


class TokenFlags(NamedTuple):
    """What to say of each new token."""

    logprobs: int | None  # how many of the likeliest tokens; None: no log-probabilities
    show_probs: bool
    as_jsonl: bool

    def check(self, *, as_json: bool, watch: str | None) -> None:
        """Raise UsageError for options that exclude each other."""
        chosen = {"--json": as_json, "--jsonl": self.as_jsonl, "--watch": watch is not None}
        shown = [name for name, given in chosen.items() if given]
        if self.as_jsonl and len(shown) > 1:
            other = next(name for name in shown if name != "--jsonl")
            raise UsageError(f"--jsonl and {other} exclude each other: leave one out")
        if self.show_probs and shown:
            raise UsageError(f"--show-probs and {shown[0]} exclude each other: leave one out")
        if self.logprobs is not None and not (as_json or self.as_jsonl):
            raise UsageError(
                "--logprobs needs --json or --jsonl: add one of them, or use --show-probs"
            )


def token_options() -> Callable[[Command], Command]:
    """Flags for what to say of each new token."""
    return bundle(
        TokenFlags,
        "token_flags",
        click.option(
            "--logprobs",
            metavar="N",
            type=click.IntRange(0, MOST_LOGPROBS),
            help="With --json or --jsonl: log-probabilities of each new token and of the N "
            f"likeliest ones (0 to {MOST_LOGPROBS}), natural logarithms, before any sampling "
            "filter.",
        ),
        click.option(
            "--show-probs",
            is_flag=True,
            help="Colour new tokens by probability; without colours print it behind each token. A "
            "character of several tokens gets the product.",
        ),
        click.option(
            "--jsonl",
            "as_jsonl",
            is_flag=True,
            help="Print a line of JSON for each new token as it comes, and the object of --json "
            "as the last line.",
        ),
    )


def logprob_entries(model: Model, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Log-probabilities of new tokens and of the likeliest ones, for JSON."""
    return [
        {
            "id": piece.token,
            "token": model.token_text(piece.token),
            "logprob": piece.logprob,
            "top": _top(model, piece),
        }
        for piece in pieces
    ]


def write_json_line(model: Model, piece: Piece, *, with_top: bool) -> None:
    """A line of JSON for a new token to stdout."""
    entry: dict[str, Any] = {"id": piece.token, "text": piece.text, "logprob": piece.logprob}
    if with_top:
        entry["top"] = _top(model, piece)
    write_text(json.dumps(entry) + "\n")


def _top(model: Model, piece: Piece) -> list[list[Any]]:
    return [[token, model.token_text(token), logprob] for token, logprob in piece.top]


class ProbabilityProse:
    """New text on stdout, each token in the colour of its probability or with the number behind it.

    Text that several tokens give together, such as one character of several tokens or what was held
    back for a stop text, has the product of their probabilities.
    """

    def __init__(self) -> None:
        self._canvas = make_canvas(color="auto", width=None, ascii_only=False)
        self._colored = self._canvas.mode == "color"
        self._painted, self._plain = PaintedProse(), Prose()
        self._logprob = 0.0  # of tokens whose text has not come

    def write(self, text: str) -> None:
        """Text that is not new, such as the prompt."""
        (self._painted if self._colored else self._plain).write(text)

    def write_piece(self, piece: Piece) -> None:
        """The next token."""
        from kvgen.render.probability import marked, painted

        self._logprob += piece.logprob
        if not piece.text:
            return
        probability, self._logprob = math.exp(self._logprob), 0.0
        if self._colored:
            paint = partial(painted, probability=probability, canvas=self._canvas)
            self._painted.write(piece.text, paint)
        else:
            self._plain.write(marked(piece.text, probability))

    def end(self) -> None:
        """No more pieces come, or none for now."""
        (self._painted if self._colored else self._plain).end()

    def explain(self) -> None:
        """The legend on stderr."""
        from kvgen.render.draw import draw
        from kvgen.render.probability import probability_legend

        legend = probability_legend(self._canvas)
        if not self._colored:
            note(legend.plain)
        elif stderr_is_terminal():
            with suppress(OSError):
                click.echo(draw(legend, self._canvas), err=True, nl=False, color=True)
        else:
            note("probability of each new token: from dark (0) to bright (1)")
