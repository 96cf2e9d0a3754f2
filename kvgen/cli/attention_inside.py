"""Options of `kvgen inspect-attention` that look beyond the maps: lens, contributions, patches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.choices import PatchSite, names
from kvgen.cli.attention_options import Query, Selection, Span
from kvgen.cli.command import OneOf
from kvgen.cli.options import DisplayFlags, bundle
from kvgen.cli.output import make_canvas
from kvgen.cli.progress import counting
from kvgen.engine.places import check_number
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvgen.attention.lens import Lens
    from kvgen.engine.config import ModelConfig
    from kvgen.recording import Recording
    from kvgen.render.canvas import Canvas

_QUICK_LENS = 2e10  # operations, which take about a tenth of a second


class InsideFlags(NamedTuple):
    """What to look at beside maps, and the tokens whose logits are meant."""

    lens: bool
    logit_query: int | None  # of --contributions, as it was written: -1 is the last
    source: str | None  # the prompt that activations are taken from
    site: PatchSite | None
    token: int | str | None
    against: int | str | None

    @property
    def needs_everything(self) -> bool:
        """Whether every layer and head, and the residual stream, has to be recorded."""
        return self.lens or self.logit_query is not None

    def given(self) -> list[str]:
        """The options that were given."""
        options = ("--lens", "--contributions", "--patch", "--site", "--token", "--against")
        values = (self.lens or None, *self[1:])
        given = [name for name, value in zip(options, values, strict=True) if value is not None]
        return [*given, *([f"--site {self.site}"] if self.site else [])]


class _Token(click.ParamType[int | str]):
    """A text of one token, or `id:5`."""

    name = "token"

    def convert(
        self, value: int | str, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """A text is looked up when the model is there."""
        del param, ctx
        match = re.fullmatch(r"id:([0-9]{1,9})", str(value))
        return value if match is None else int(match[1])


inside_options = bundle(
    InsideFlags,
    "inside",
    click.option(
        "--lens",
        is_flag=True,
        help="What each layer would predict if the model ended there (logit lens): layers of -l, "
        "positions of --queries.",
    ),
    click.option(
        "--contributions",
        "logit_query",
        type=Query(),
        metavar="[QUERY]",
        is_flag=False,
        flag_value="last",
        help="What the embedding, each head and each MLP adds to the logit of the token that comes "
        "next (direct logit attribution), behind a position (an index; or last, the default). With "
        "-l and -H also by the keys that these heads read.",
    ),
    click.option(
        "--patch",
        "source",
        metavar="FROM_PROMPT",
        help="Run the prompt once for each head, with that head's output of FROM_PROMPT's run in "
        "place of its own: does the answer follow? Both must have the same number of tokens.",
    ),
    click.option(
        "--site",
        type=OneOf(names(PatchSite)),
        help="With --patch: outputs of single heads, of the heads of single kv heads, or the state "
        "that enters a layer at one position. [default: head]",
    ),
    click.option(
        "--token",
        type=_Token(),
        metavar="TEXT",
        help="With --contributions or --patch: the token whose logit is meant, such as ' mat' or "
        "id:123. [default: what is predicted; with --patch by FROM_PROMPT]",
    ),
    click.option(
        "--against",
        type=_Token(),
        metavar="TEXT",
        help="The token whose logit is taken from it. [default: none; with --patch what the prompt "
        "predicts]",
    ),
)


def inside_of_page(
    flags: InsideFlags, selection: Selection, config: ModelConfig, n_positions: int
) -> InsideFlags:
    """The flags for a page: lens and contributions too where all is recorded and both are quick."""
    if not (selection.all_layers and selection.all_heads):
        return flags
    rows = (config.n_layers + 1) * n_positions
    quick = 2 * rows * config.head_weights <= _QUICK_LENS
    query = -1 if flags.logit_query is None else flags.logit_query
    return flags._replace(lens=flags.lens or quick, logit_query=query)


def look_inside(
    seen: Recording,
    flags: InsideFlags,
    selection: Selection,
    positions: Span,
    *,
    display: DisplayFlags,
    quiet: bool,
    all_positions: bool,
) -> None:
    """Measure what the flags ask for, and keep it in the recording.

    A lens on a screen looks at the positions that a table has room for, unless some are named.
    """
    if flags.lens:
        places = positions_of(len(seen.token_ids), positions)
        if positions == (None, None) and not all_positions:
            from kvgen.render.lens import positions_that_fit

            places = positions_that_fit(len(places), make_canvas(**display._asdict()))
        total = (len(selection.layers) + 1) * len(places)
        with counting("lens", total, quiet=quiet) as advance:
            seen.lens(layers=selection.layers, positions=places, on_rows=advance)
    if flags.logit_query is not None:
        query = check_number(flags.logit_query, range(len(seen.token_ids)), "query", owner="run")
        seen.contributions(query=query, token=flags.token, against=flags.against)


def positions_of(n_tokens: int, span: Span) -> range:
    """The positions of --queries. Raises UsageError where there are none of them."""
    places = range(n_tokens)[slice(*span)]
    if not places:
        raise UsageError(f"--queries: this run has tokens 0-{n_tokens - 1}, choose some of them")
    return places


def check_saved(seen: Recording, flags: InsideFlags, selection: Selection, path: Path) -> None:
    """Raise UsageError where a file lacks what the flags ask for, which would need the model."""
    lacks = f"{path}: holds no {{}}: give the prompt in its place, or write the file with {{}}"
    if flags.lens and seen.saved_lens is None:
        raise UsageError(lacks.format("lens", "--lens"))
    if flags.logit_query is None:
        return
    if seen.saved_contributions is None:
        raise UsageError(lacks.format("contributions", "--contributions"))
    if not selection.all_heads:
        raise UsageError(
            f"{path}: holds no model, which -H with --contributions needs: give the prompt in its "
            "place"
        )
    query = None if flags.logit_query == -1 else flags.logit_query
    seen.contributions(query=query, token=flags.token, against=flags.against)


def inside_views(
    seen: Recording,
    flags: InsideFlags,
    selection: Selection,
    positions: Span,
    canvas: Canvas,
) -> list[RenderableType]:
    """The views of what `look_inside` has measured, or the recording has saved."""
    from rich.text import Text

    from kvgen.render.contributions import contributions_view, sources_view
    from kvgen.render.lens import lens_view

    drawn: list[RenderableType] = []
    tokens, known = seen.token_bytes, seen.names
    if flags.lens:
        lens = _chosen(seen.saved_lens or seen.lens(), selection, positions, len(tokens), canvas)
        drawn.append(lens_view(lens, tokens, known, canvas))
    if flags.logit_query is not None:
        drawn += [Text()] * bool(drawn)
        whole = seen.saved_contributions or seen.contributions()
        drawn.append(contributions_view(whole, tokens, known, canvas))
        if not selection.all_heads:
            for layer in selection.layers:
                for head in selection.heads:
                    parts = seen.sources(layer, head)
                    drawn += [Text(), sources_view(parts, whole, tokens, known, canvas)]
    return drawn


def _chosen(
    lens: Lens, selection: Selection, positions: Span, n_tokens: int, canvas: Canvas
) -> Lens:
    """The part of a lens to draw: unless named, all layers, and the positions that fit."""
    from kvgen.attention.held import held_lens
    from kvgen.render.lens import positions_that_fit

    layers = None if selection.all_layers else selection.layers
    if positions == (None, None):
        n_fit = len(positions_that_fit(len(lens.positions), canvas))
        return held_lens(lens, layers, lens.positions[-n_fit:])
    return held_lens(lens, layers, positions_of(n_tokens, positions))
