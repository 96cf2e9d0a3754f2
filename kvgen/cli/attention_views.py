"""What `kvgen inspect-attention` shows of a recording, made now or read from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kvgen.cli.attention_options import AS_IT_IS, MapFlags, PlaceFlags
from kvgen.cli.options import DisplayFlags
from kvgen.cli.output import draw, make_canvas, note, show, write_file
from kvgen.cli.prompt import PromptFlags
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvgen.attention.record import Recording
    from kvgen.render.canvas import Canvas
    from kvgen.render.head_map import MapView

SAVED = (".npz", ".safetensors")  # what can be shown again
FIGURES = (".png", ".svg", ".pdf")
KINDS = (*SAVED, ".json", ".txt", *FIGURES)


class Seen(NamedTuple):
    """A recording with all that is said of it, whether it was made now or read from a file."""

    recording: Recording
    tokens: list[bytes]
    facts: dict[str, Any]


class Wanted(NamedTuple):
    """What to show of a recording."""

    place: PlaceFlags
    map_flags: MapFlags
    steps: bool

    def resolved(self, layers: list[int], heads: list[int]) -> Wanted:
        """The same with -l and -H as plain numbers: `-2` is of all that a model has."""
        layer, head = (
            None if spec is None else ",".join(map(str, numbers))
            for spec, numbers in (
                (self.place.layer_spec, layers),
                (self.place.head_spec, heads),
            )
        )
        return self._replace(place=self.place._replace(layer_spec=layer, head_spec=head))

    def check(self, output: str | None) -> None:
        """Raise UsageError for what does not go together, on the screen or in such a file."""
        layer, head, query = self.place.layer_spec, self.place.head_spec, self.place.query_spec
        kind = ".txt" if output is None else Path(output).suffix
        drawn = kind == ".txt"
        rolled = self.map_flags.show == "rollout"
        of_a_map = self.map_flags._replace(metrics=None) != AS_IT_IS
        if output is not None and kind not in KINDS:
            raise UsageError(f"{output}: the file's name must end in {', '.join(KINDS)}")
        if head is not None and layer is None and drawn:
            raise UsageError("-H needs -l: which layer's head?")
        if rolled and (head is not None or query is not None or self.steps):
            raise UsageError("rollout is of all heads and layers: leave out -H, --explain, --steps")
        if (layer is not None or query is not None) and self.map_flags.metrics is not None:
            raise UsageError("--metric is of the summary: leave out -l and --explain")
        if of_a_map and not rolled and layer is None and drawn:
            raise UsageError("the summary is no map: --show and the like need -l")
        if self.steps and (layer is None or head is None or query is not None):
            raise UsageError("--steps is of one head: add -l and -H, and leave out --explain")
        if query is not None and not drawn:
            raise UsageError("--explain draws: leave it out, or write a .txt file")
        if of_a_map and not drawn and kind not in FIGURES:
            raise UsageError(f"{kind} holds the maps as they are: leave out --show and the like")


def saved_file(flags: PromptFlags) -> Path | None:
    """The file that PROMPT names, if it is one that -o has written."""
    path = Path(flags.prompt or "")
    return path if path.suffix in SAVED and path.is_file() else None


def read_saved(path: Path) -> Seen:
    """A saved recording and its diagnostics. Raises KvgenError where it is none."""
    from kvgen.attention.export import read_export

    saved = read_export(path)
    return Seen(saved.recording, saved.tokens, saved.meta)


def deliver(seen: Seen, wanted: Wanted, output: str | None, display: DisplayFlags) -> None:
    """Draw what is wanted, or write it to a file."""
    from rich.console import Group

    from kvgen.render.attention import verify_line
    from kvgen.render.canvas import Canvas

    trace = seen.recording.trace
    layer_spec, head_spec, _, _ = wanted.place
    if wanted.steps and trace.length == trace.n_prompt:
        raise UsageError("there are no decode steps: ask for some with -n 2 or more")
    view = wanted.map_flags.view()
    for name, span in (("queries", view.queries), ("keys", view.keys)):
        if not range(trace.length)[slice(*span)]:
            raise UsageError(f"--{name}: none of 0-{trace.length - 1} are chosen")
    layers = _recorded(layer_spec, [layer.layer for layer in trace.layers], "layer")
    if view.show == "rollout" and layer_spec is None:
        layers = layers[-1:]
    heads = _recorded(head_spec, list(trace.heads), "head")
    kind = Path(output or "").suffix.removeprefix(".")
    canvas = make_canvas(**display._asdict())
    if kind == "txt":
        canvas = Canvas(canvas.width, "glyphs")
    if output is not None and kind != "txt":
        write_file(output, _file(seen, layers, heads, canvas, view, kind=kind))
    else:
        views = _views(seen, wanted, view, canvas, layers=layers, heads=heads)
        if output is None:
            for shown in views:
                show(shown, canvas)
            return
        write_file(output, draw(Group(*views), canvas).encode())
    note(f"{output}: {len(layers)} layers x {len(heads)} heads x {len(seen.tokens)} tokens")
    note(verify_line(seen.recording))


def _file(
    seen: Seen, layers: list[int], heads: list[int], canvas: Canvas, view: MapView, *, kind: str
) -> bytes:
    """The bytes of a figure, or of a recording of the layers that there are."""
    if f".{kind}" in FIGURES:
        from kvgen.render.canvas import token_label
        from kvgen.render.plot import attention_figure

        labels = [token_label(token, canvas, 10).strip() for token in seen.tokens]
        return attention_figure(
            seen.recording, labels, layers=layers, heads=heads, view=view, kind=kind
        )
    from kvgen.attention.export import export

    return export(seen.recording, seen.tokens, facts=seen.facts, kind=kind)


def _views(
    seen: Seen,
    wanted: Wanted,
    view: MapView,
    canvas: Canvas,
    *,
    layers: list[int],
    heads: list[int],
) -> list[RenderableType]:
    """The summary, a layer's heads, one map, or one query: what the indices ask for."""
    from rich.text import Text

    from kvgen.render.attention import USUAL_PANELS, layer_grid, summary, verify_line
    from kvgen.render.head_map import head_map
    from kvgen.render.steps import decode_steps

    recording, tokens = seen.recording, seen.tokens
    layer_spec, head_spec, query_spec, _ = wanted.place
    views: list[RenderableType] = []
    if query_spec is not None:
        query = _query(query_spec, len(tokens))
        views = _explanations(seen, wanted.place, query, canvas, layers=layers, heads=heads)
    elif layer_spec is None and view.show != "rollout":
        metrics = wanted.map_flags.metrics or USUAL_PANELS
        views.append(summary(recording, canvas, metrics=metrics))
    else:
        for layer in layers:
            if head_spec is None and view.show != "rollout":
                views.append(
                    layer_grid(recording, layer=layer, heads=heads, canvas=canvas, view=view)
                )
                continue
            for head in heads[:1] if view.show == "rollout" else heads:
                views.append(
                    decode_steps(recording.trace, tokens, layer=layer, head=head, canvas=canvas)
                    if wanted.steps
                    else head_map(
                        recording, tokens, layer=layer, head=head, canvas=canvas, view=view
                    )
                )
    return [*views, Text(verify_line(recording), "dim")]


def _explanations(
    seen: Seen,
    place: PlaceFlags,
    query: int,
    canvas: Canvas,
    *,
    layers: list[int],
    heads: list[int],
) -> list[RenderableType]:
    """One query in the heads that are named, else in the one that writes most for it."""
    from kvgen.attention.residual import strongest_head
    from kvgen.attention.steps import explain_query
    from kvgen.render.explain import explanation

    recording = seen.recording
    places = [(layer, head) for layer in layers for head in heads]
    if place.head_spec is None:
        places = [
            strongest_head(recording.trace, recording.written, query, layer=layer)
            for layer in (layers if place.layer_spec is not None else [None])
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
            chosen=place.head_spec is None,
        )
        for layer, head in places
    ]


def indices_of(spec: str | None, count: int, what: str) -> list[int]:
    """The numbers that `5`, `0-3,7`, `-1` or `all` name, in that order; None is all, too.

    Raises UsageError for what cannot be read or is out of range.
    """
    if spec is None or spec == "all":
        return list(range(count))
    chosen: list[int] = []
    for part in spec.split(","):
        match = re.fullmatch(r"(-[0-9]{1,6})|([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
        if match is None:
            raise UsageError(f"{what} {part!r} is not a number, a range like 0-3, or all")
        first = int(match[1] or match[2])
        last = int(match[3]) if match[3] is not None else first
        if not -count <= first <= last < count:
            raise UsageError(f"{what} {part}: this model has {what}s 0-{count - 1}")
        chosen += [index % count for index in range(first, last + 1)]
    return list(dict.fromkeys(chosen))


def _recorded(spec: str | None, there: list[int], what: str) -> list[int]:
    """What a spec names of the layers or heads that there are."""
    named = there if spec is None or spec == "all" else indices_of(spec, max(there) + 1, what)
    if missing := [number for number in named if number not in there]:
        raise UsageError(f"{what} {missing[0]} was not recorded: there are {there}")
    return named


def _query(spec: str, count: int) -> int:
    if spec == "last":
        return count - 1
    if re.fullmatch("-?[0-9]{1,6}", spec) is None or not -count <= int(spec) < count:
        raise UsageError(f"query {spec}: this run has queries 0-{count - 1}, or last")
    return int(spec) % count
