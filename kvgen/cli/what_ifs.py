"""`kvgen inspect-attention --what-if` and `--ablate-all`: edits run on the reference engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvgen.cli.attention_options import EditFlags, Selection
from kvgen.cli.options import DisplayFlags
from kvgen.cli.output import counting, make_canvas, show, working

if TYPE_CHECKING:
    from kvgen.model import Model


def show_edits(
    model: Model,
    ids: list[int],
    edits: EditFlags,
    at: str,
    display: DisplayFlags,
    selection: Selection,
    *,
    quiet: bool,
) -> None:
    """Each edit's report, with one layer and one head their maps too; or that of all ablations."""
    from kvgen.attention.what_if import ablation_losses, what_ifs
    from kvgen.engine.edits import parse_edit
    from kvgen.engine.reference.decoder import ReferenceEngine
    from kvgen.render.canvas import token_label
    from kvgen.render.what_if import ablation_view, what_if_view

    layers, heads = list(selection.layers), list(selection.heads)
    config, tokenizer = model.config, model.require_tokenizer()
    canvas = make_canvas(**display._asdict())
    parsed = [
        parse_edit(
            spec,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            at=at,
        )
        for spec in edits.what_ifs
    ]
    engine = ReferenceEngine(model.params)  # the only one that edits

    def token_text(token: int) -> str:
        return token_label(tokenizer.token_bytes(token), canvas, 10).strip()

    map_of = (layers[0], heads[0]) if len(layers) == len(heads) == 1 else None
    found = what_ifs(engine, ids, parsed)
    for _ in parsed:
        with working("running the edited model", quiet=quiet):
            one = next(found)
        show(what_if_view(one, token_text, ids, canvas, map_of=map_of), canvas)
    if edits.ablate_all:
        with counting("ablating", len(layers) * len(heads), quiet=quiet) as advance:
            base, without = ablation_losses(
                engine, ids, layers=layers, heads=heads, on_progress=advance
            )
        view = ablation_view(
            base, without, layers=layers, heads=heads, n_targets=len(ids) - 1, canvas=canvas
        )
        show(view, canvas)
