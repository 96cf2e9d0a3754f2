"""A page as a document: for a file, and for the cell of a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass

NOTEBOOK_BYTES = 8 * 2**20  # of a page in a notebook's file, at most


@dataclass(frozen=True, slots=True)
class Page:
    """One HTML file as a text; a notebook shows it in a frame that can reach nothing outside."""

    text: str
    height: int = 760  # of the frame, in pixels
    title: str = "attention of a run"  # of the frame, for screen readers

    def __repr__(self) -> str:
        return f"<Page of {len(self.text):,} characters>"

    def _repr_html_(self) -> str:
        return (
            f'<iframe sandbox="allow-scripts" style="width:100%;height:{self.height}px;border:0" '
            f'title="{html.escape(self.title)}" srcdoc="{html.escape(self.text)}"></iframe>'
        )
