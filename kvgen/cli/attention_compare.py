"""`kvgen inspect-attention --compare`: the difference of two recordings, drawn or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvgen.atomic_write import write_file
from kvgen.cli.attention_options import Selection, place_of, select
from kvgen.cli.attention_request import Request
from kvgen.cli.attention_views import saved_file
from kvgen.cli.output import Destination, make_canvas, note, show, write_text
from kvgen.errors import UsageError
from kvgen.visible import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvgen.attention.difference import Difference
    from kvgen.recording import Recording
    from kvgen.render.canvas import Canvas
    from kvgen.render.difference import Sides

_LONGEST_NAME = 60  # characters of a prompt


def deliver_difference(request: Request, seen: Sequence[Recording], output: Destination) -> None:
    """Draw the difference of two recordings, print it as JSON, or write it to a file.

    Raises UsageError where they cannot be compared, or lack what was selected.
    """
    from kvgen.attention.difference import common_places, compare

    before, after = (one.run.trace for one in seen)
    layers, heads = common_places(before, after)
    place = place_of(request.place, request.edits)
    selection = select(place, layers=layers, heads=heads, owner="pair of recordings")
    for name, span in (
        ("--queries", request.map_flags.queries),
        ("--keys", request.map_flags.keys),
    ):
        if not range(before.length)[slice(*span)]:
            last = before.length - 1
            raise UsageError(f"{name}: these runs have tokens 0-{last}, choose some of them")
    difference = compare(before, after, layers=selection.layers, heads=selection.heads)
    sides = _sides(request, seen)
    canvas = make_canvas(**request.display_flags._asdict())
    if output.kind == "json":
        content = json.dumps(_as_json(difference, sides, seen)) + "\n"
    else:
        from rich.console import Group

        from kvgen.render.draw import draw

        canvas = canvas if output.kind == "screen" else replace(canvas, mode="glyphs")
        view = Group(*_drawn(request, difference, sides, selection, canvas), _verified(seen))
        if output.kind == "screen":
            show(view, canvas)
            return
        content = draw(view, canvas)
    if output.path is None:
        write_text(content)
    else:
        write_file(output.path, content.encode())
        n_layers, n_heads = len(difference.layers), len(difference.heads)
        note(f"{output.path}: {n_layers} layers x {n_heads} heads x {before.length} tokens")


def _drawn(
    request: Request,
    difference: Difference,
    sides: Sides,
    selection: Selection,
    canvas: Canvas,
) -> list[RenderableType]:
    """The views that the selection asks for."""
    from kvgen.render.difference import difference_grid, difference_map, difference_summary

    view = request.map_flags.view()
    if selection.all_layers:
        return [difference_summary(difference, sides, canvas, view=view)]
    if selection.all_heads:
        heads = selection.heads
        return [
            difference_grid(difference, sides, canvas, layer=layer, heads=heads, view=view)
            for layer in selection.layers
        ]
    return [
        difference_map(difference, sides, canvas, layer=layer, head=head, view=view)
        for layer in selection.layers
        for head in selection.heads
    ]


def _verified(seen: Sequence[Recording]) -> RenderableType:
    """How far the outputs recomputed from the compared maps are from the kernel's."""
    from rich.text import Text

    worst = max(one.run.diagnostics.recomputed for one in seen)
    return Text(f"verified: |recomputed - kernel| <= {worst:.1e} in both recordings", "dim")


def _sides(request: Request, seen: Sequence[Recording]) -> Sides:
    """The names of both, with the models where these differ, and the tokens."""
    from kvgen.render.difference import Sides

    names = [_name(one) for one in request.runs()]
    models = [f"{one.facts['model']}, {one.facts['dtype']}" for one in seen]
    if models[0] != models[1]:
        names = [f"{name} ({model})" for name, model in zip(names, models, strict=True)]
    return Sides(names=(names[0], names[1]), tokens=(seen[0].token_bytes, seen[1].token_bytes))


def _name(run: Request) -> str:
    """The prompt or the file that a run was given."""
    flags = run.prompt_flags
    given = next((text for text in flags[:3] if text is not None), "-")
    if given == "-":
        return "standard input"
    is_file = saved_file(flags) is not None or flags.prompt_file is not None
    return given if is_file else one_line(given, most=_LONGEST_NAME)


def _as_json(difference: Difference, sides: Sides, seen: Sequence[Recording]) -> dict[str, Any]:
    """The distances of rows and heads, and the greatest changes of a weight."""
    runs = {
        key: {
            "name": name,
            "model": one.facts["model"],
            "dtype": one.facts["dtype"],
            "prompt_len": one.run.trace.n_prompt,
            "token_ids": list(one.run.trace.token_ids),
            "tokens": one.tokens,
        }
        for key, name, one in zip(("before", "after"), sides.names, seen, strict=True)
    }
    return {
        **runs,
        "tokens_differ_at": sides.differing,
        "layers": list(difference.layers),
        "heads": list(difference.heads),
        "distances": difference.means.tolist(),
        "row_distances": difference.rows.tolist(),
        "changes": [weight._asdict() for weight in difference.moved],
    }
