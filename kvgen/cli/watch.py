"""`kvgen generate --watch`: one head's live attention row under the text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvgen.engine.places import check_number, parse_address
from kvgen.errors import UsageError
from kvgen.visible import visible

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.piece import Piece

_ROW_LINES = 8


class Watch:
    """One head while a text is generated: its queries, and the cache that they read."""

    def __init__(self, model: Model, place: str, *, n_positions: int) -> None:
        """`place` is LAYER.HEAD. Raises UsageError for another, and without a terminal."""
        from kvgen.engine.trace import Capture
        from kvgen.session import Session

        if sys.stdout is None or not sys.stdout.isatty():
            raise UsageError("--watch draws on a terminal, but stdout is not one: leave it out")
        layer, head = parse_address(place)
        if head is None:
            raise UsageError(f"--watch {place}: give a layer and a head, such as 2.3")
        self.layer = check_number(layer, range(model.config.n_layers), "layer")
        self.head = check_number(head, range(model.config.n_heads), "head")
        self._model = model
        capture = Capture(model.config, [self.layer], n_positions, heads=[self.head])
        self.session = Session(model.engine, n_positions, capture=capture)

    def shown(self, pieces: Iterator[Piece], prompt_ids: list[int]) -> Iterator[Piece]:
        """The same pieces; each is drawn, with the row that chose it, before it is passed on."""
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text

        from kvgen.attention.steps import explain_query
        from kvgen.cli.output import make_canvas
        from kvgen.render.steps import live_row

        tokenizer = self._model.require_tokenizer()
        text, n_prompt = "", len(prompt_ids)
        tokens = [tokenizer.token_bytes(token) for token in prompt_ids]
        console = Console(file=sys.stdout)
        canvas = make_canvas(color="auto", width=None, ascii_only=False)
        with Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False,
            redirect_stderr=False,
        ) as live:  # fmt: skip
            for piece in pieces:
                trace = self.session.recording(n_prompt=n_prompt)
                row = explain_query(trace.layers[0], self.head, trace.length - 1)
                text += piece.text
                view = live_row(
                    row.weights, tokens, layer=self.layer, head=self.head, n_prompt=n_prompt,
                    canvas=canvas,
                )  # fmt: skip
                room = max(1, console.height - _ROW_LINES)  # of a longer text its end
                lines = Text(visible(text)).wrap(console, console.width)[-room:]
                live.update(Group(*lines, Text(), view), refresh=True)
                tokens.append(tokenizer.token_bytes(piece.token))
                yield piece
