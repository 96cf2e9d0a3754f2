"""What `kvgen inspect-attention` shows of a recording, made now or read from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kvgen.cli.options import DisplayFlags
from kvgen.cli.output import draw, make_canvas, note, show, write_file
from kvgen.cli.prompt import PromptFlags
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvgen.attention.diagnostics import Diagnostics
    from kvgen.attention.record import Recording
    from kvgen.render.canvas import Canvas

SAVED = (".npz", ".safetensors")  # what can be shown again
FIGURES = (".png", ".svg", ".pdf")
KINDS = (*SAVED, ".json", ".txt", *FIGURES)


class Seen(NamedTuple):
    """A recording with all that is said of it, whether it was made now or read from a file."""

    recording: Recording
    found: Diagnostics
    tokens: list[bytes]
    heads: list[int]  # that there are
    facts: dict[str, Any]


def saved_file(flags: PromptFlags) -> Path | None:
    """The file that PROMPT names, if it is one that -o has written."""
    path = Path(flags.prompt or "")
    return path if path.suffix in SAVED and path.is_file() else None


def read_saved(path: Path) -> Seen:
    """A saved recording and its diagnostics. Raises KvgenError where it is none."""
    from kvgen.attention.diagnostics import diagnose
    from kvgen.attention.export import read_export

    saved = read_export(path)
    found = diagnose(saved.recording.trace, probe=saved.meta.get("probe"))
    return Seen(saved.recording, found, saved.tokens, saved.heads, saved.meta)


def deliver(
    seen: Seen,
    layer_spec: str | None,
    head_spec: str | None,
    query_spec: str | None,
    output: str | None,
    display: DisplayFlags,
    *,
    steps: bool,
) -> None:
    """Draw what the indices ask for, or write it to a file."""
    from rich.console import Group

    from kvgen.render.attention import verify_line
    from kvgen.render.canvas import Canvas

    trace = seen.recording.trace
    if steps and trace.length == trace.n_prompt:
        raise UsageError("there are no decode steps: ask for some with -n 2 or more")
    there = [layer.layer for layer in trace.layers]
    layers = there if layer_spec is None else indices_of(layer_spec, max(there) + 1, "layer")
    if missing := [layer for layer in layers if layer not in there]:
        raise UsageError(f"layer {missing[0]} was not recorded: there are {there}")
    heads = seen.heads if head_spec is None else indices_of(head_spec, max(seen.heads) + 1, "head")
    kind = Path(output or "").suffix.removeprefix(".")
    canvas = make_canvas(**display._asdict())
    if kind == "txt":
        canvas = Canvas(canvas.width, "glyphs")
    if output is not None and kind != "txt":
        write_file(output, _file(seen, layers, heads, canvas, kind=kind))
    else:
        views = _views(
            seen,
            canvas,
            layers=layers if layer_spec is not None else [],
            heads=heads,
            one_map=head_spec is not None,
            query=None if query_spec is None else _query(query_spec, len(seen.tokens)),
            steps=steps,
        )
        if output is None:
            for view in views:
                show(view, canvas)
            return
        write_file(output, draw(Group(*views), canvas).encode())
    note(f"{output}: {len(layers)} layers x {len(heads)} heads x {len(seen.tokens)} tokens")
    note(verify_line(seen.recording))


def _file(seen: Seen, layers: list[int], heads: list[int], canvas: Canvas, *, kind: str) -> bytes:
    """The bytes of a figure, or of a recording of the layers that there are."""
    if f".{kind}" in FIGURES:
        from kvgen.render.canvas import token_label
        from kvgen.render.plot import attention_figure

        labels = [token_label(token, canvas, 10).strip() for token in seen.tokens]
        return attention_figure(seen.recording.trace, labels, layers=layers, heads=heads, kind=kind)
    from kvgen.attention.export import export

    return export(seen.recording, seen.found, seen.tokens, heads=heads, facts=seen.facts, kind=kind)


def _views(
    seen: Seen,
    canvas: Canvas,
    *,
    layers: list[int],
    heads: list[int],
    one_map: bool,
    query: int | None,
    steps: bool,
) -> list[RenderableType]:
    """What the indices ask for: the summary, a layer's heads, one map, or one query."""
    from rich.text import Text

    from kvgen.attention.steps import explain_query
    from kvgen.render.attention import head_map, layer_grid, summary, verify_line
    from kvgen.render.explain import explanation
    from kvgen.render.steps import decode_steps

    trace, found, tokens = seen.recording.trace, seen.found, seen.tokens
    views: list[RenderableType] = []
    if not layers:
        views.append(summary(trace, found, canvas))
    for layer in layers:
        if not one_map:
            views.append(layer_grid(trace, found, layer=layer, heads=heads, canvas=canvas))
        for head in heads if one_map else []:
            if steps:
                views.append(decode_steps(trace, tokens, layer=layer, head=head, canvas=canvas))
                continue
            if query is None:
                views.append(head_map(trace, tokens, found, layer=layer, head=head, canvas=canvas))
                continue
            row = explain_query(trace.layer(layer), head, query)
            views.append(
                explanation(trace, tokens, row, layer=layer, head=head, query=query, canvas=canvas)
            )
    return [*views, Text(verify_line(seen.recording), "dim")]


def indices_of(spec: str, count: int, what: str) -> list[int]:
    """The numbers that `5`, `0-3,7`, `-1` or `all` name, in that order.

    Raises UsageError for what cannot be read or is out of range.
    """
    if spec == "all":
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


def _query(spec: str, count: int) -> int:
    if spec == "last":
        return count - 1
    if re.fullmatch("-?[0-9]{1,6}", spec) is None or not -count <= int(spec) < count:
        raise UsageError(f"query {spec}: this run has queries 0-{count - 1}, or last")
    return int(spec) % count
