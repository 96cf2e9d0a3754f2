"""The views of a recording by what is chosen of it, on a canvas or as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.record import RecordedRun
from kvgen.render.attention import USUAL_PANELS, layer_grid, summary, verify_line
from kvgen.render.canvas import Canvas, token_label
from kvgen.render.draw import draw
from kvgen.render.head_map import MapView, head_map
from kvgen.render.plot import attention_figure, check_figures

_LABEL_CELLS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What to show of a recording: all at a glance, layers by their heads, or single maps."""

    layers: Sequence[int] | None = None  # None: all of them at a glance
    heads: Sequence[int] | None = None  # None: all heads of a layer as small maps
    view: MapView = field(default_factory=MapView)
    metrics: Sequence[str] = USUAL_PANELS  # of the glance


def views(
    run: RecordedRun,
    tokens: Sequence[bytes],
    shown: Shown,
    canvas: Canvas,
    *,
    names: Mapping[int, bytes] | None = None,
) -> list[RenderableType]:
    """The chosen views, and the line of verification; `names` as in `head_map`."""
    heads = run.trace.heads if shown.heads is None else shown.heads
    drawn: list[RenderableType] = []
    if shown.layers is None:
        drawn.append(summary(run, canvas, metrics=shown.metrics))
    for layer in shown.layers or ():
        if shown.heads is None:
            drawn.append(
                layer_grid(run, tokens, layer=layer, heads=heads, canvas=canvas, view=shown.view)
            )
        else:
            drawn += [
                head_map(
                    run, tokens, layer=layer, head=head, canvas=canvas, view=shown.view, names=names
                )
                for head in heads
            ]
    return [*drawn, Text(verify_line(run), "dim")]


def figure_file(run: RecordedRun, tokens: Sequence[bytes], shown: Shown, *, kind: str) -> bytes:
    """The maps of the chosen layers and heads as a figure: png, svg or pdf.

    Raises UsageError where they are too many, or matplotlib is not installed.
    """
    layers = [layer.layer for layer in run.trace.layers] if shown.layers is None else shown.layers
    heads = run.trace.heads if shown.heads is None else shown.heads
    check_figures(n_maps=len(layers) * len(heads))
    canvas = Canvas(100, "glyphs")  # a figure has all characters
    return attention_figure(
        run,
        [token_label(token, canvas, _LABEL_CELLS).strip() for token in tokens],
        layers=list(layers),
        heads=list(heads),
        view=shown.view,
        kind=kind,
    )


def drawn_file(
    run: RecordedRun,
    tokens: Sequence[bytes],
    shown: Shown,
    *,
    kind: str,
    width: int,
    names: Mapping[int, bytes],
) -> bytes:
    """The chosen views as a text of that width (txt), or as a figure (png, svg, pdf)."""
    if kind != "txt":
        return figure_file(run, tokens, shown, kind=kind)
    canvas = Canvas(width, "glyphs")
    return draw(Group(*views(run, tokens, shown, canvas, names=names)), canvas).encode()
