"""The options of `kvgen inspect-attention`, as bundles, and what they ask for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.cli.options import Several, bundle
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.render.head_map import MapView

Span = tuple[int | None, int | None]
# Names of kvgen.attention.measures and kvgen.attention.diagnostics, which --help does not import.
SHOWN = ("weights", "scores", "scaled", "norm", "share", "cos", "rollout")
METRIC_NAMES = (
    "sink", "previous", "induction", "duplicate", "entropy", "distance", "sink-later",
    "entropy-rest", "distance-all",
)  # fmt: skip


class PlaceFlags(NamedTuple):
    """Which layers, heads and query to look at, as they were written."""

    layer_spec: str | None
    head_spec: str | None
    query_spec: str | None
    at: str


class MapFlags(NamedTuple):
    """What to show of a map, and how."""

    show: str
    scale: str
    most: float | None
    sink: str
    pool: str
    queries: Span
    keys: Span
    metrics: tuple[str, ...] | None

    def view(self) -> MapView:
        """The same, for what draws maps."""
        from kvgen.render.head_map import MapView

        flags = self._asdict()
        del flags["metrics"]
        return MapView(**flags)


AS_IT_IS = MapFlags("weights", "sqrt", None, "split", "max", (None, None), (None, None), None)


class EditFlags(NamedTuple):
    """What to change, one thing at a time."""

    what_ifs: tuple[str, ...]
    ablate_all: bool


class _Span(click.ParamType[Span]):
    """`200:`, `0:64`, `-8:` or one number, as the ends of a slice."""

    name = "A:B"

    def convert(
        self, value: str | Span, param: click.Parameter | None, ctx: click.Context | None
    ) -> Span:
        """Anything else is a usage error."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(-?[0-9]{1,6})?(:)?(-?[0-9]{1,6})?", value.strip())
        if match is None or not (match[1] or match[2]):
            self.fail(f"{value!r} is not like 200:, 0:64, -8: or 5", param, ctx)
        first = int(match[1]) if match[1] else None
        if not match[2]:
            assert first is not None
            return first, first + 1 or None
        return first, int(match[3]) if match[3] else None


place_options = bundle(
    PlaceFlags,
    "place",
    click.option(
        "-l", "--layer", "layer_spec", metavar="L", help="5, 0-3,7, -1 or all: its heads."
    ),
    click.option("-H", "--head", "head_spec", metavar="H", help="With -l: one map for each head."),
    click.option(
        "--explain",
        "query_spec",
        metavar="[QUERY]",
        is_flag=False,
        flag_value="last",
        help="Walk one query (an index; or last, the default) through the formula. Without -l and "
        "-H the head that writes most for it is taken.",
    ),
    click.option(
        "--at",
        default="all",
        show_default=True,
        metavar="PLACE",
        help="In place of -l and -H: 5, 5.1 or L5H1. With --what-if: where.",
    ),
)

map_options = bundle(
    MapFlags,
    "map_flags",
    click.option(
        "--show",
        type=click.Choice(SHOWN),
        default="weights",
        show_default=True,
        help="Of a map: weights, q·k, q·k scaled, |w v W_O|, signed share of the output, cosine; "
        "or how much of each token comes through all layers up to -l.",
    ),
    click.option(
        "--scale",
        type=click.Choice(["sqrt", "linear", "log"]),
        default="sqrt",
        show_default=True,
        help="How brightness grows.",
    ),
    click.option(
        "--range",
        "most",
        type=click.FloatRange(min=0, min_open=True),
        help="What is as bright as can be. [default: 1 for weights, shares and cosines; else the "
        "greatest]",
    ),
    click.option(
        "--sink",
        type=click.Choice(["split", "keep", "drop"]),
        default="split",
        show_default=True,
        help="The first key: apart, as any other, or left out and the rest renormalised.",
    ),
    click.option(
        "--pool",
        type=click.Choice(["max", "mean"]),
        default="max",
        show_default=True,
        help="How cells are joined where a map is too large.",
    ),
    click.option(
        "--queries", type=_Span(), default=(None, None), help="Rows, such as 200: or -8:."
    ),
    click.option("--keys", type=_Span(), default=(None, None), help="Columns, such as 0:64."),
    click.option(
        "--metric",
        "metrics",
        type=Several(click.Choice(METRIC_NAMES)),
        metavar="NAME[,...]",
        help=f"Panels of the summary, of {', '.join(METRIC_NAMES)}. [default: "
        "sink,previous,induction,entropy]",
    ),
)

edit_options = bundle(
    EditFlags,
    "edits",
    click.option(
        "--what-if",
        "what_ifs",
        multiple=True,
        metavar="EDIT",
        help="Run with one thing changed: kq, unscaled, unmasked, drop-sink, ablate=L.H[:mean], "
        "ablate=kvL.G. Repeatable.",
    ),
    click.option(
        "--ablate-all",
        is_flag=True,
        help="Run once for each head, or those of -l and -H, without it: what the prompt's loss "
        "becomes.",
    ),
)


def resolve_place(place: PlaceFlags, edits: EditFlags) -> PlaceFlags:
    """The same with `--at` in -l and -H, where it does not say where an edit is made.

    Raises UsageError for what cannot be read, or says a thing twice.
    """
    if place.at == "all" or edits.what_ifs:
        return place
    if place.layer_spec is not None or place.head_spec is not None:
        raise UsageError("--at names a layer and a head, and so do -l and -H: leave one out")
    from kvgen.engine.edits import parse_place

    layer, head = parse_place(place.at)
    return place._replace(
        layer_spec=str(layer), head_spec=None if head is None else str(head), at="all"
    )
