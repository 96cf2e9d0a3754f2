"""What a position predicts, and the token that came next, in words."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from kvgen.attention.record import RecordedRun
from kvgen.render.canvas import Canvas, quoted
from kvgen.render.layout import flow


def next_token(run: RecordedRun, query: int) -> tuple[int, float] | None:
    """The token behind a position and its probability there; None where there is none."""
    ids = run.trace.token_ids
    token = ids[query + 1] if query + 1 < len(ids) else run.sampled_last
    if token is None or run.predictions is None:
        return None
    return token, float(run.predictions.next_probabilities[query])


def predicts(
    run: RecordedRun, query: int, names: Mapping[int, bytes], canvas: Canvas
) -> list[Text]:
    """A line of the likeliest next tokens of a position; nothing where they were not recorded."""
    found = run.predictions
    if found is None:
        return []
    candidates = [
        f"{quoted(int(token), names, canvas)} {probability:.2f}"
        for token, probability in zip(
            found.ids[query], found.probabilities[query].tolist(), strict=True
        )
    ]
    words = [f"row {query} predicts: {candidates[0]}", *candidates[1:]]
    came = next_token(run, query)
    more = []
    if came is not None:
        token, probability = came
        more = [Text(f"next came {quoted(token, names, canvas)} {probability:.2f}")]
    return [flow([flow(words, canvas.width, between=", "), *more], canvas.width, between=" · ")]
