"""A recording as a file of any kind: arrays, JSON, a text, a figure, or a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvgen.attention.export import export
from kvgen.attention.saved import SavedRecording
from kvgen.choices import FIGURES, RECORDING_FILES, Detail
from kvgen.errors import UsageError
from kvgen.page.bundle import page
from kvgen.page.content import MOST_BYTES, content_of
from kvgen.page.document import NOTEBOOK_BYTES, Page
from kvgen.render.canvas import Canvas, token_label
from kvgen.render.views import Shown, drawn_file

_LABEL_CELLS = 24  # of the longest label of a token in a page
_CANVAS = Canvas(100, "glyphs")


def kind_of(path: Path) -> str:
    """The kind of file that a name's ending asks for. Raises UsageError for another ending."""
    if path.suffix not in RECORDING_FILES:
        raise UsageError(f"{path}: the name must end in {', '.join(RECORDING_FILES)}")
    return path.suffix[1:]


def file_content(
    saved: SavedRecording,
    kind: str,
    *,
    shown: Shown,
    width: int = _CANVAS.width,
    detail: Detail = "auto",
    most_bytes: int = MOST_BYTES,
) -> bytes:
    """The bytes of a file of that kind.

    `shown` is for texts and figures, and says which layers a page that cannot hold all of them has
    in full. Raises UsageError for a figure or a page that would be too large.
    """
    if kind == "html":
        return page_text(saved, shown.layers, detail=detail, most_bytes=most_bytes).encode()
    if kind == "txt" or f".{kind}" in FIGURES:
        return drawn_file(
            saved.recording, saved.tokens, shown, kind=kind, width=width, names=saved.names
        )
    return export(
        saved.recording,
        saved.tokens,
        facts=saved.meta,
        kind=kind,
        lens=saved.lens,
        contributions=saved.contributions,
        names=saved.names,
    )


def page_text(
    saved: SavedRecording,
    detailed_layers: Sequence[int] | None = None,
    *,
    detail: Detail = "auto",
    most_bytes: int = MOST_BYTES,
) -> str:
    """One HTML file that needs nothing else; for the arguments see `content_of`."""
    content = content_of(
        saved.recording,
        [_label(token) for token in saved.tokens],
        {token: _label(name) for token, name in saved.names.items()},
        saved.meta,
        more=saved.page_facts,
        lens=saved.lens,
        contributions=saved.contributions,
        detail=detail,
        detailed_layers=detailed_layers,
        most_bytes=most_bytes,
    )
    summary = drawn_file(
        saved.recording, saved.tokens, Shown(), kind="txt", width=_CANVAS.width, names=saved.names
    )
    title = f"Attention of {saved.meta.get('model', 'a model')}"
    return page(content, title=title, summary=summary.decode())


def notebook_page(saved: SavedRecording, height: int) -> Page:
    """A page for a notebook, which stays below 8 MiB. Raises UsageError where that cannot be."""
    return Page(page_text(saved, most_bytes=NOTEBOOK_BYTES), height)


def _label(token: bytes) -> str:
    return token_label(token, _CANVAS, _LABEL_CELLS).rstrip()
