"""A recording read from a file: what it holds without its model, and whether a model is its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvgen.attention.contributions import Contributions
from kvgen.attention.lens import Lens
from kvgen.attention.record import RecordedRun
from kvgen.engine.config import ModelConfig
from kvgen.engine.places import check_numbers
from kvgen.errors import UsageError


def check_model(run: RecordedRun, config: ModelConfig) -> None:
    """Raise UsageError where a model of this shape cannot have made a run."""
    trace, one = run.trace, run.trace.layers[0]
    stream = (config.n_layers + 1, trace.length, config.d_model)
    if not (
        max(layer.layer for layer in trace.layers) < config.n_layers
        and max(trace.heads) < config.n_heads
        and one.group_size * one.k.shape[1] == config.n_heads
        and one.k.shape[1:] == (config.n_kv_heads, config.head_dim)
        and max(trace.token_ids) < config.vocab_size
        and (run.states is None or run.states.shape == stream)
    ):
        raise UsageError(
            "this recording is of a model of another shape: give the one that it was made with"
        )


def held_lens(saved: Lens, layers: Sequence[int] | None, positions: Sequence[int] | None) -> Lens:
    """These layers and positions (None: all) of a saved lens. Raises UsageError for others."""
    rows = check_numbers(layers, saved.layers, "layer", owner="saved lens")
    columns = check_numbers(positions, saved.positions, "position", owner="saved lens")
    return saved.part(
        saved.layers if rows is None else rows, saved.positions if columns is None else columns
    )


def held_contributions(
    saved: Contributions,
    names: Mapping[int, bytes],
    *,
    query: int | None,
    token: int | str | None,
    against: int | str | None,
) -> Contributions:
    """The saved contributions, where they are of that query and these tokens (None: any).

    `names` are the texts of tokens. Raises UsageError where they are of others.
    """

    def differs(wanted: int | str | None, there: int | None) -> bool:
        if isinstance(wanted, str):
            return there is None or names.get(there) != wanted.encode()
        return wanted is not None and wanted != there

    if (
        (query is not None and query != saved.query)
        or differs(token, saved.token)
        or differs(against, saved.against)
    ):
        less = "" if saved.against is None else f" less token {_name(saved.against, names)}"
        raise UsageError(
            f"this file holds the contributions to the logit of token {_name(saved.token, names)}"
            f"{less} after position {saved.query}; any others need the model"
        )
    return saved


def _name(token: int, names: Mapping[int, bytes]) -> str:
    return repr(names[token].decode(errors="replace")) if token in names else str(token)
