"""A view as the text that a terminal or a file gets."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType
from rich.segment import Segment, Segments

from kvgen.render.canvas import Canvas
from kvgen.visible import visible


def draw(view: RenderableType, canvas: Canvas) -> str:
    """A view as text, with colours where the canvas has them.

    Its words are taken as they are: no markup, no emoji codes, and visible throughout.
    """
    buffer = io.StringIO()
    colored = canvas.mode == "color"
    console = Console(
        file=buffer,
        width=canvas.width,
        force_terminal=colored,
        color_system=canvas.colors if colored else None,
        no_color=not colored,  # decided already: --color wins over the environment
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        force_jupyter=False,  # which would show the view at once
    )
    # The styles become escape sequences when they are printed: the text is looked at before.
    lines = console.render_lines(view, console.options.update(overflow="fold"), pad=False)
    console.print(
        Segments(
            [
                Segment(visible(part.text), part.style)
                for line in lines
                for part in (*line, Segment.line())
            ]
        ),
        end="",
    )
    text = buffer.getvalue()
    if not colored:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    if canvas.mode == "ascii":
        text = text.replace(" · ", " - ").replace("·", ".").replace("…", "~")
        text = text.encode("ascii", "backslashreplace").decode()
    return text
