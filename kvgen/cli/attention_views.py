"""The views and files of `kvgen inspect-attention`, of a recording made now or read again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kvgen.choices import FIGURES
from kvgen.cli.attention_options import MapFlags, Selection
from kvgen.cli.options import DisplayFlags
from kvgen.cli.output import Destination, draw, make_canvas, note, show, write_file, write_text
from kvgen.cli.prompt import PromptFlags
from kvgen.engine.places import check_number
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvgen.attention.record import RecordedRun
    from kvgen.render.canvas import Canvas
    from kvgen.render.head_map import MapView

ARRAYS = (".npz", ".safetensors")  # the files that can be shown again
FILES = (*ARRAYS, ".json", ".txt", *FIGURES)
FORMATS = ("json", "txt")  # what can be printed


class Inspection(NamedTuple):
    """A recording with its tokens' bytes and the facts of its run."""

    recording: RecordedRun
    tokens: list[bytes]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Views:
    """Which part of a recording to draw, and how."""

    selection: Selection
    map_flags: MapFlags
    steps: bool
    display: DisplayFlags

    @property
    def layers(self) -> list[int]:
        """The layers to draw; a rollout, which goes through all of them, has one map: the last."""
        layers = list(self.selection.layers)
        of_last = self.map_flags.show == "rollout" and self.selection.all_layers
        return layers[-1:] if of_last else layers


def saved_file(flags: PromptFlags) -> Path | None:
    """The saved recording that PROMPT names, if there is such a file."""
    path = Path(flags.prompt or "")
    return path if path.suffix in ARRAYS and path.is_file() else None


def read_saved(path: Path) -> Inspection:
    """A saved recording and its diagnostics. Raises KvgenError where the file holds none."""
    from kvgen.attention.export import read_export

    saved = read_export(path)
    return Inspection(saved.recording, saved.tokens, saved.meta)


def deliver(seen: Inspection, views: Views, output: Destination) -> None:
    """Draw the selection, print it as JSON, or write it to a file."""
    _check_ranges(seen, views)
    canvas = make_canvas(**views.display._asdict())
    if output.kind == "screen":
        for view in _drawn(seen, views, canvas):
            show(view, canvas)
        return
    content = _content(seen, views, canvas, kind=output.kind)
    if output.path is None:
        write_text(content.decode())
    else:
        write_file(output.path, content)
        _tell(seen, views, output.path)


def _check_ranges(seen: Inspection, views: Views) -> None:
    """Raise UsageError for rows, columns, queries or decode steps that the recording lacks."""
    trace = seen.recording.trace
    if views.steps and trace.length == trace.n_prompt:
        raise UsageError(
            "there are no decode steps: ask for some with -n 2 or more (N new tokens take N - 1 "
            "decode steps)"
        )
    flags = views.map_flags
    for name, span in (("--queries", flags.queries), ("--keys", flags.keys)):
        if not range(trace.length)[slice(*span)]:
            raise UsageError(
                f"{name}: this run has tokens 0-{trace.length - 1}, choose some of them"
            )
    if views.selection.query is not None:
        check_number(views.selection.query, range(trace.length), "query", owner="run")


def _content(seen: Inspection, views: Views, canvas: Canvas, *, kind: str) -> bytes:
    """The bytes of a file of that kind."""
    if f".{kind}" in FIGURES:
        return _figure(seen, views, canvas, kind=kind)
    if kind == "txt":
        from rich.console import Group

        from kvgen.render.canvas import Canvas

        plain = Canvas(canvas.width, "glyphs")
        return draw(Group(*_drawn(seen, views, plain)), plain).encode()

    from kvgen.attention.export import export

    return export(seen.recording, seen.tokens, facts=seen.facts, kind=kind)


def _tell(seen: Inspection, views: Views, path: str) -> None:
    """Say on stderr what a file holds, and how exact it is."""
    from kvgen.render.attention import verify_line

    n_layers, n_heads = len(views.layers), len(views.selection.heads)
    note(f"{path}: {n_layers} layers x {n_heads} heads x {len(seen.tokens)} tokens")
    note(verify_line(seen.recording))


def _figure(seen: Inspection, views: Views, canvas: Canvas, *, kind: str) -> bytes:
    from kvgen.render.canvas import token_label
    from kvgen.render.plot import attention_figure

    return attention_figure(
        seen.recording,
        [token_label(token, canvas, 10).strip() for token in seen.tokens],
        layers=views.layers,
        heads=list(views.selection.heads),
        view=views.map_flags.view(),
        kind=kind,
    )


def _drawn(seen: Inspection, views: Views, canvas: Canvas) -> list[RenderableType]:
    """The views that the selection asks for, and the line of verification."""
    from rich.text import Text

    from kvgen.render.attention import verify_line

    selection, view = views.selection, views.map_flags.view()
    if selection.query is not None:
        drawn = _explanations(seen, selection, selection.query, canvas)
    elif view.show == "rollout":
        drawn = _rollouts(seen, views, canvas)
    elif selection.all_layers:
        drawn = _summary(seen, views.map_flags, canvas)
    elif selection.all_heads:
        drawn = _layer_grids(seen, selection, view, canvas)
    elif views.steps:
        drawn = _decode_steps(seen, selection, canvas)
    else:
        drawn = _head_maps(seen, selection, view, canvas)
    return [*drawn, Text(verify_line(seen.recording), "dim")]


def _summary(seen: Inspection, flags: MapFlags, canvas: Canvas) -> list[RenderableType]:
    """All layers and heads at a glance."""
    from kvgen.render.attention import USUAL_PANELS, summary

    return [summary(seen.recording, canvas, metrics=flags.metrics or USUAL_PANELS)]


def _layer_grids(
    seen: Inspection, selection: Selection, view: MapView, canvas: Canvas
) -> list[RenderableType]:
    """For each layer, its heads as small maps."""
    from kvgen.render.attention import layer_grid

    heads = list(selection.heads)
    return [
        layer_grid(seen.recording, seen.tokens, layer=layer, heads=heads, canvas=canvas, view=view)
        for layer in selection.layers
    ]


def _head_maps(
    seen: Inspection, selection: Selection, view: MapView, canvas: Canvas
) -> list[RenderableType]:
    """One map for each head."""
    from kvgen.render.head_map import head_map

    return [
        head_map(seen.recording, seen.tokens, layer=layer, head=head, canvas=canvas, view=view)
        for layer in selection.layers
        for head in selection.heads
    ]


def _rollouts(seen: Inspection, views: Views, canvas: Canvas) -> list[RenderableType]:
    """For each selected layer, else the last: how much of each token arrives through all layers."""
    from kvgen.render.head_map import head_map

    view = views.map_flags.view()
    head = views.selection.heads[0]  # any of them, since all are combined
    return [
        head_map(seen.recording, seen.tokens, layer=layer, head=head, canvas=canvas, view=view)
        for layer in views.layers
    ]


def _decode_steps(seen: Inspection, selection: Selection, canvas: Canvas) -> list[RenderableType]:
    """The decode steps of each head, one after another."""
    from kvgen.render.steps import decode_steps

    trace = seen.recording.trace
    return [
        decode_steps(trace, seen.tokens, layer=layer, head=head, canvas=canvas)
        for layer in selection.layers
        for head in selection.heads
    ]


def _explanations(
    seen: Inspection, selection: Selection, query: int, canvas: Canvas
) -> list[RenderableType]:
    """One query in the heads that were named, else in the one that writes most for it."""
    from kvgen.attention.residual import strongest_head
    from kvgen.attention.steps import explain_query
    from kvgen.render.explain import explanation

    recording = seen.recording
    query = check_number(query, range(recording.trace.length), "query", owner="run")
    places = [(layer, head) for layer in selection.layers for head in selection.heads]
    if selection.all_heads:
        places = [
            strongest_head(recording.trace, recording.residual_norms, query, layer=layer)
            for layer in ([None] if selection.all_layers else selection.layers)
        ]
    return [
        explanation(
            recording.trace,
            seen.tokens,
            explain_query(recording.trace.layer(layer), head, query),
            layer=layer,
            head=head,
            query=query,
            canvas=canvas,
            chosen=selection.all_heads,
        )
        for layer, head in places
    ]
