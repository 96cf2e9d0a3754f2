"""The edits of `kvgen inspect-attention --what-if`: read, run on the reference engine, shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvgen.cli.options import DisplayFlags
from kvgen.cli.output import make_canvas, show, working

if TYPE_CHECKING:
    from kvgen.model import Model


def show_what_ifs(
    model: Model,
    ids: list[int],
    specs: tuple[str, ...],
    at: str,
    display: DisplayFlags,
    layers: list[int],
    heads: list[int],
    *,
    quiet: bool,
) -> None:
    """Each edit's report; with one layer and one head their maps too."""
    from kvgen.attention.what_if import what_if
    from kvgen.edits import parse_edit
    from kvgen.reference.decoder import ReferenceEngine
    from kvgen.render.canvas import token_label
    from kvgen.render.what_if import what_if_view

    config, tokenizer = model.config, model.require_tokenizer()
    canvas = make_canvas(**display._asdict())
    edits = [
        parse_edit(
            spec,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            at=at,
        )
        for spec in specs
    ]
    engine = ReferenceEngine(model.params)  # the only one that edits

    def token_text(token: int) -> str:
        return token_label(tokenizer.token_bytes(token), canvas, 10).strip()

    map_of = (layers[0], heads[0]) if len(layers) == len(heads) == 1 else None
    for edit in edits:
        with working("running the edited model", quiet=quiet):
            found = what_if(engine, ids, edit)
        show(what_if_view(found, token_text, ids, canvas, map_of=map_of), canvas)
