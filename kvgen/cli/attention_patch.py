"""`kvgen inspect-attention --patch`: every patch run, and their map."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kvgen.atomic_write import write_file
from kvgen.cli.attention_inside import InsideFlags, positions_of
from kvgen.cli.attention_options import Selection, Span
from kvgen.cli.options import DisplayFlags
from kvgen.cli.output import Destination, make_canvas, note, show, write_text
from kvgen.cli.progress import counting

if TYPE_CHECKING:
    from kvgen.attention.patch import PatchMap
    from kvgen.model import Model


def patch_and_show(
    model: Model,
    prompt_ids: list[int],
    source_ids: list[int],
    flags: InsideFlags,
    selection: Selection,
    positions: Span,
    *,
    display: DisplayFlags,
    output: Destination,
    quiet: bool,
) -> None:
    """Run every patch, and show the map: on the screen, as JSON, or as a file of either.

    Raises KeyboardInterrupt behind a map of the patches that were run before it came.
    """
    site = flags.site or "head"
    places = positions_of(len(prompt_ids), positions)
    config = model.config
    n_columns = {
        "head": len(selection.heads),
        "kv-head": config.n_kv_heads,
        "residual": len(places),
    }[site]
    with counting("patching", len(selection.layers) * n_columns, quiet=quiet) as advance:
        found = model.patch(
            prompt_ids,
            source_ids,
            site=site,
            layers=selection.layers,
            heads=None if selection.all_heads else selection.heads,
            positions=places,
            token=flags.token,
            against=flags.against,
            on_patch=advance,
        )
    if output.kind == "json":
        content = json.dumps(_as_json(model, found)) + "\n"
    else:
        from dataclasses import replace

        from kvgen.render.canvas import token_label
        from kvgen.render.draw import draw
        from kvgen.render.patch import patch_view

        canvas = make_canvas(**display._asdict())
        canvas = canvas if output.kind == "screen" else replace(canvas, mode="glyphs")

        def token_text(token: int) -> str:
            return token_label(model.token_bytes(token), canvas, 10).strip()

        view = patch_view(found, token_text, canvas)
        if output.kind == "screen":
            show(view, canvas)
        content = draw(view, canvas)
    if output.path is not None:
        write_file(output.path, content.encode())
        from kvgen.render.numbers import counted

        n_layers, n_columns = found.patched.shape
        column = {"head": "head", "kv-head": "kv head", "residual": "position"}[site]
        sizes = f"{counted(n_layers, 'layer')} x {counted(n_columns, column)}"
        note(f"{output.path}: patches of {sizes}")
    elif output.kind != "screen":
        write_text(content)
    if found.interrupted:
        raise KeyboardInterrupt


def _as_json(model: Model, found: PatchMap) -> dict[str, Any]:
    """All numbers of a map; a patch that was not run is null."""
    from dataclasses import fields

    from kvgen.attention.extras import listed

    numbers = {field.name: listed(getattr(found, field.name)) for field in fields(found)}
    return {"model": model.name, **numbers, "effects": listed(found.effects)}
