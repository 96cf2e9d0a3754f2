"""The views and files of `kvgen inspect-attention`, of a recording made now or read again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvgen.atomic_write import write_file
from kvgen.choices import ARRAY_FILES, FIGURES
from kvgen.cli.attention_inside import InsideFlags, inside_views
from kvgen.cli.attention_numbers import NumberFlags, head_sums, similarities, weighted_vectors
from kvgen.cli.attention_options import MapFlags, Selection
from kvgen.cli.options import DisplayFlags
from kvgen.cli.output import Destination, make_canvas, note, show, write_text
from kvgen.cli.page_options import PageFlags, open_page
from kvgen.cli.prompt import PromptFlags
from kvgen.engine.places import check_number
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvgen.recording import Recording
    from kvgen.render.canvas import Canvas
    from kvgen.render.views import Shown

FORMATS = ("json", "txt")  # what can be printed


@dataclass(frozen=True, slots=True)
class Views:
    """Which part of a recording to draw, and how."""

    selection: Selection
    map_flags: MapFlags
    number_flags: NumberFlags
    inside: InsideFlags
    steps: bool
    page: PageFlags
    display: DisplayFlags

    @property
    def layers(self) -> list[int]:
        """The layers to draw; a rollout, which goes through all of them, has one map: the last."""
        layers = list(self.selection.layers)
        of_last = self.map_flags.show == "rollout" and self.selection.all_layers
        return layers[-1:] if of_last else layers

    def shown(self) -> Shown:
        """The part of a recording that is named, for the views and figures of it."""
        from kvgen.render.attention import USUAL_PANELS
        from kvgen.render.views import Shown

        selection = self.selection
        return Shown(
            layers=None if selection.all_layers else self.layers,
            heads=None if selection.all_heads else selection.heads,
            view=self.map_flags.view(),
            metrics=self.map_flags.metrics or USUAL_PANELS,
        )


def saved_file(flags: PromptFlags) -> Path | None:
    """The saved recording that PROMPT names, if there is such a file."""
    path = Path(flags.prompt or "")
    return path if path.suffix in ARRAY_FILES and path.is_file() else None


def deliver(seen: Recording, views: Views, output: Destination) -> None:
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
        if views.page.opens:
            open_page(output.path)
        _tell(seen, views, output.path)


def _check_ranges(seen: Recording, views: Views) -> None:
    """Raise UsageError for rows, columns, queries or decode steps that the recording lacks."""
    trace = seen.run.trace
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


def _content(seen: Recording, views: Views, canvas: Canvas, *, kind: str) -> bytes:
    """The bytes of a file of that kind."""
    if kind == "txt":
        from rich.console import Group

        from kvgen.render.canvas import Canvas
        from kvgen.render.draw import draw

        plain = Canvas(canvas.width, "glyphs")
        return draw(Group(*_drawn(seen, views, plain)), plain).encode()
    from kvgen.recording_file import file_content

    page = views.page
    return file_content(
        seen.parts, kind, shown=views.shown(), detail=page.detail, most_bytes=page.max_size
    )


def _tell(seen: Recording, views: Views, path: str) -> None:
    """Say on stderr what a file holds, and how exact it is."""
    from kvgen.render.attention import verify_line
    from kvgen.render.numbers import counted

    drawn = Path(path).suffix in (".txt", *FIGURES)  # the other files hold all that was recorded
    n_layers = len(views.layers) if drawn else len(seen.layers)
    n_heads = len(views.selection.heads) if drawn else len(seen.heads)
    sizes = (n_layers, "layer"), (n_heads, "head"), (len(seen.token_bytes), "token")
    note(f"{path}: {' x '.join(counted(n, what) for n, what in sizes)}")
    note(verify_line(seen.run))


def _drawn(seen: Recording, views: Views, canvas: Canvas) -> list[RenderableType]:
    """The views that the selection asks for, and the line of verification."""
    from rich.text import Text

    from kvgen.render.attention import verify_line

    selection, numbers = views.selection, views.number_flags
    if views.inside.needs_everything:
        drawn = inside_views(seen, views.inside, selection, views.map_flags.queries, canvas)
    elif numbers.similarity:
        drawn = similarities(seen.run.trace, selection, canvas)
    elif numbers.summed_query is not None:
        drawn = head_sums(seen, selection, query=numbers.summed_query, canvas=canvas)
    elif selection.query is not None:
        drawn = _explanations(seen, selection, numbers, selection.query, canvas)
    elif views.map_flags.show == "rollout":
        drawn = _rollouts(seen, views, canvas)
    elif views.steps:
        drawn = _decode_steps(seen, selection, canvas)
    else:
        from kvgen.render.views import views as chosen_views

        return chosen_views(seen.run, seen.token_bytes, views.shown(), canvas, names=seen.names)
    return [*drawn, Text(verify_line(seen.run), "dim")]


def _rollouts(seen: Recording, views: Views, canvas: Canvas) -> list[RenderableType]:
    """For each selected layer, else the last: how much of each token arrives through all layers."""
    from kvgen.render.head_map import head_map

    view = views.map_flags.view()
    head = views.selection.heads[0]  # any of them, since all are combined
    return [
        head_map(seen.run, seen.token_bytes, layer=layer, head=head, canvas=canvas, view=view)
        for layer in views.layers
    ]


def _decode_steps(seen: Recording, selection: Selection, canvas: Canvas) -> list[RenderableType]:
    """The decode steps of each head, one after another."""
    from kvgen.render.steps import decode_steps

    trace = seen.run.trace
    return [
        decode_steps(trace, seen.token_bytes, layer=layer, head=head, canvas=canvas)
        for layer in selection.layers
        for head in selection.heads
    ]


def _explanations(
    seen: Recording, selection: Selection, numbers: NumberFlags, query: int, canvas: Canvas
) -> list[RenderableType]:
    """One query in the heads that were named, else in the one that writes most for it."""
    from kvgen.attention.residual import strongest_head
    from kvgen.attention.steps import explain_query
    from kvgen.render.explain import explanation
    from kvgen.render.predicted import predicts

    recording = seen.run
    query = check_number(query, range(recording.trace.length), "query", owner="run")
    places = [(layer, head) for layer in selection.layers for head in selection.heads]
    if selection.all_heads:
        places = [
            strongest_head(recording.trace, recording.residual_norms, query, layer=layer)
            for layer in ([None] if selection.all_layers else selection.layers)
        ]
    trace, tokens = recording.trace, seen.token_bytes
    drawn: list[RenderableType] = []
    for layer, head in places:
        explained = explain_query(trace.layer(layer), head, query)
        drawn.append(
            explanation(
                trace,
                tokens,
                explained,
                layer=layer,
                head=head,
                query=query,
                canvas=canvas,
                chosen=selection.all_heads,
                predicted=predicts(recording, query, seen.names, canvas),
            )
        )
        if numbers.n_numbers is not None:
            drawn.append(
                weighted_vectors(
                    trace.layer(layer),
                    tokens,
                    explained,
                    head=head,
                    n_numbers=numbers.n_numbers,
                    canvas=canvas,
                )
            )
    return drawn
