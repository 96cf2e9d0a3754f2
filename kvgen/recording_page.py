"""A recording as a page: its tokens as labels, and a summary for readers without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvgen.attention.contributions import Contributions
from kvgen.attention.lens import Lens
from kvgen.attention.record import RecordedRun
from kvgen.page.bundle import page
from kvgen.page.content import MOST_BYTES, Detail, content_of
from kvgen.render.canvas import Canvas, token_label
from kvgen.render.views import Shown, drawn_file

_LABEL_CELLS = 24  # of the longest label of a token
_CANVAS = Canvas(100, "glyphs")


def recording_page(
    run: RecordedRun,
    tokens: Sequence[bytes],
    names: Mapping[int, bytes],
    facts: Mapping[str, Any],
    *,
    lens: Lens | None,
    contributions: Contributions | None,
    detail: Detail = "auto",
    detailed_layers: Sequence[int] | None = None,
    most_bytes: int = MOST_BYTES,
) -> str:
    """One HTML file that needs nothing else; for the arguments see `content_of`.

    Raises UsageError where it would be larger than `most_bytes`.
    """
    content = content_of(
        run,
        [_label(token) for token in tokens],
        {token: _label(name) for token, name in names.items()},
        facts,
        lens=lens,
        contributions=contributions,
        detail=detail,
        detailed_layers=detailed_layers,
        most_bytes=most_bytes,
    )
    summary = drawn_file(run, tokens, Shown(), kind="txt", width=_CANVAS.width, names=names)
    title = f"Attention of {facts.get('model', 'a model')}"
    return page(content, title=title, summary=summary.decode())


def _label(token: bytes) -> str:
    return token_label(token, _CANVAS, _LABEL_CELLS).rstrip()
