"""Piece: one generated token as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kvgen.generate import Step
from kvgen.text.stream import TextStream

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token: its text, and what it took.

    `text` holds whole characters only, so it may be empty; a token's text may come with a later
    token's. `finish_reason` is set on the last piece.
    """

    token: int
    text: str
    logprob: float  # natural logarithm, before any sampling filter
    seconds: float
    positions: int  # positions run through the model for it, those run again included
    finish_reason: FinishReason | None
    top: tuple[tuple[int, float], ...] = ()  # as in Step
    whole: bool | None = None  # the text so far matches its constraint; None: there is none
    closed_early: bool = False  # as in Step
    constraint_seconds: float = 0.0  # of `seconds`, the part for the constraint


def pieces_of(steps: Iterator[Step], stream: TextStream | None, *, most: int) -> Iterator[Piece]:
    """The steps of a run of at most so many tokens, as text; the last one says why it ends.

    Without a stream, as for a model without a tokenizer, texts are empty.
    """
    for count, step in enumerate(steps, start=1):
        # A stop id may have a text, such as a line end: it is no part of a text that has to match.
        is_text = step.whole is None or not step.is_stop
        text = stream.push(step.token) if stream is not None and is_text else ""
        reason: FinishReason | None = None
        stopped = stream is not None and stream.stopped
        if stopped or (step.ends and not step.closed_early):
            reason = "stop"
        elif step.ends or count == most:
            reason = "length"
        if reason is not None and stream is not None:
            text += stream.finish()
        stopped = stream is not None and stream.stopped
        yield Piece(
            step.token, text, step.logprob, step.seconds, step.positions, reason, step.top,
            step.whole and not stopped,  # a stop text has cut off the end
            step.closed_early,
            step.constraint_seconds,
        )  # fmt: skip
        if reason is not None:
            return
