"""What a page shows beside its recording: edited runs, and kept rows that were changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvgen.cli.progress import working
from kvgen.cli.what_ifs import EditedRuns, edit_numbers

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.recording import Recording

_QUICK = 2e10  # operations, which take about a second in single steps


def add_what_ifs(seen: Recording, runs: EditedRuns) -> None:
    """Run the prompt with each --what-if, and put the effects into the page."""
    found = []
    for spec, one in zip(runs.flags.what_ifs, runs.what_ifs(), strict=True):
        numbers = edit_numbers(spec, one)
        seen.learn_names([token for token, *_ in numbers["next_tokens"]])
        found.append(
            {
                "edit": spec,
                "layer": numbers["layer"],
                "heads": numbers["heads"],
                "losses": numbers["losses"],
                "editedLosses": numbers["edited_losses"],
                "nextTokens": numbers["next_tokens"],
                "divergence": numbers["next_token_divergence"],
                "distances": numbers["distances"],
            }
        )
    seen.page_facts["whatIfs"] = found


def add_interventions(seen: Recording, model: Model, ids: Sequence[int], *, quiet: bool) -> None:
    """Change every kept row of K, V and Q before the last position, where that is quick."""
    from kvgen.bench.interventions import change_kept_rows

    n_steps = 3 * model.config.n_layers * (len(ids) - 1)
    if len(ids) < 2 or 2 * n_steps * model.params.n_parameters > _QUICK:
        return
    with working("changing kept rows", quiet=quiet):
        seen.page_facts["interventions"] = [
            {
                "kind": one.row,
                "layer": one.layer,
                "positions": list(one.positions),
                "changes": list(one.max_abs_logit_change),
                "firstVisible": one.first_visible,
            }
            for one in change_kept_rows(model.engine, ids, seed=0)
        ]
