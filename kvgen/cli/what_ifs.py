"""`kvgen inspect-attention --what-if` and `--ablate-all`: edits run on the reference engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from kvgen.cli.attention_options import EditFlags, Selection
from kvgen.cli.options import DisplayFlags
from kvgen.cli.output import make_canvas, show, write_text
from kvgen.cli.progress import counting, working

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvgen.attention.what_if import WhatIf
    from kvgen.engine.tensors import FloatArray
    from kvgen.model import Model

_JSON_TOKENS = 8  # of the most probable next tokens, before and after


class EditedRuns(NamedTuple):
    """A prompt, and the edits to run it with; `at` is the value of --at."""

    model: Model
    ids: list[int]
    flags: EditFlags
    at: str
    selection: Selection
    quiet: bool

    def what_ifs(self) -> Iterator[WhatIf]:
        """Each --what-if, when its runs are done. Raises UsageError for what is not an edit."""
        from kvgen.attention.what_if import what_ifs
        from kvgen.engine.edits import parse_edit
        from kvgen.engine.reference.decoder import ReferenceEngine

        config = self.model.config
        sizes = {
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "n_kv_heads": config.n_kv_heads,
        }
        parsed = [parse_edit(spec, **sizes, at=self.at) for spec in self.flags.what_ifs]
        runs = what_ifs(ReferenceEngine(self.model.params), self.ids, parsed)
        for _ in parsed:
            with working("running the edited model", quiet=self.quiet):
                one = next(runs)
            yield one

    def ablations(self) -> tuple[float, FloatArray]:
        """The prompt's mean loss in nats, and that without each selected head [layers, heads]."""
        from kvgen.attention.what_if import ablation_losses
        from kvgen.engine.reference.decoder import ReferenceEngine

        layers, heads = self.selection.layers, self.selection.heads
        with counting("ablating", len(layers) * len(heads), quiet=self.quiet) as advance:
            return ablation_losses(
                ReferenceEngine(self.model.params),
                self.ids,
                layers=layers,
                heads=heads,
                on_progress=advance,
            )


def show_edits(runs: EditedRuns, display: DisplayFlags) -> None:
    """Each edit's report, with one layer and one head their maps too; or that of all ablations."""
    from kvgen.render.canvas import token_label
    from kvgen.render.what_if import ablation_view, what_if_view

    layers, heads = list(runs.selection.layers), list(runs.selection.heads)
    tokenizer = runs.model.require_tokenizer()
    canvas = make_canvas(**display._asdict())

    def token_text(token: int) -> str:
        return token_label(tokenizer.token_bytes(token), canvas, 10).strip()

    map_of = (layers[0], heads[0]) if len(layers) == len(heads) == 1 else None
    for one in runs.what_ifs():
        show(what_if_view(one, token_text, runs.ids, canvas, map_of=map_of), canvas)
    if runs.flags.ablate_all:
        base, without = runs.ablations()
        n_targets = len(runs.ids) - 1
        view = ablation_view(
            base, without, layers=layers, heads=heads, n_targets=n_targets, canvas=canvas
        )
        show(view, canvas)


def print_edits(runs: EditedRuns) -> None:
    """One JSON object: the numbers of each edit, and of all ablations."""
    content: dict[str, Any] = {
        "model": runs.model.name,
        "token_ids": runs.ids,
        "what_ifs": [
            edit_numbers(spec, one)
            for spec, one in zip(runs.flags.what_ifs, runs.what_ifs(), strict=True)
        ],
    }
    if runs.flags.ablate_all:
        base, without = runs.ablations()
        content["ablations"] = {
            "layers": list(runs.selection.layers),
            "heads": list(runs.selection.heads),
            "loss": base,
            "losses_without": without.tolist(),
        }
    write_text(json.dumps(content) + "\n")


def edit_numbers(spec: str, one: WhatIf) -> dict[str, Any]:
    """An edit's numbers; losses and divergence in nats."""
    best = [(-each).argsort()[:_JSON_TOKENS].tolist() for each in (one.base_next, one.edited_next)]
    tokens = list(dict.fromkeys(best[0] + best[1]))
    return {
        "edit": spec,
        "layer": one.edit.layer,
        "heads": None if one.edit.heads is None else list(one.edit.heads),
        "distances": one.distances.tolist(),
        "entropies": one.entropies.tolist(),
        "edited_entropies": one.edited_entropies.tolist(),
        "losses": one.base_losses.tolist(),
        "edited_losses": one.edited_losses.tolist(),
        "next_token_divergence": one.divergence,
        "next_tokens": [
            [token, float(one.base_next[token]), float(one.edited_next[token])] for token in tokens
        ],
        "kept_rows_change": one.kept_rows_change,
    }
