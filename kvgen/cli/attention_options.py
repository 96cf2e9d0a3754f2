"""The options of `kvgen inspect-attention`, as bundles, and the selection that they name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.choices import MetricName, Pool, Scale, Shown, Sink, names
from kvgen.cli.command import MINUS, OneOf
from kvgen.cli.options import Several, bundle
from kvgen.engine.places import ALL, Numbers, parse_address, parse_number, parse_numbers
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.render.head_map import MapView

Span = tuple[int | None, int | None]


class PlaceFlags(NamedTuple):
    """Which layers, heads and query were named; None where none were."""

    layers: Numbers | None
    heads: Numbers | None
    query: int | None
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The layers, heads and query to look at, all of which exist."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    query: int | None  # as it was written: -1 is the last
    all_layers: bool  # no layer was named
    all_heads: bool


class MapFlags(NamedTuple):
    """Which numbers of a map to draw, and how."""

    show: Shown
    scale: Scale
    most: float | None
    sink: Sink
    pool: Pool
    queries: Span
    keys: Span
    metrics: tuple[MetricName, ...] | None

    def view(self) -> MapView:
        """The MapView of these flags, for the functions that draw maps."""
        from kvgen.render.head_map import MapView

        flags = self._asdict()
        del flags["metrics"]
        return MapView(**flags)

    def given(self) -> list[str]:
        """The options that differ from their defaults."""
        names = ("--show", "--scale", "--range", "--sink", "--pool", "--queries", "--keys")
        given = [
            name
            for name, value, usual in zip((*names, "--metric"), self, _AS_IT_IS, strict=True)
            if value != usual
        ]
        return [*given, *(["--show rollout"] if self.show == "rollout" else [])]


_AS_IT_IS = MapFlags("weights", "sqrt", None, "split", "max", (None, None), (None, None), None)


class EditFlags(NamedTuple):
    """The edits to run the prompt with."""

    what_ifs: tuple[str, ...]
    ablate_all: bool


class _Numbers(click.ParamType[Numbers]):
    """`5`, `0-3,7`, `-1` or `all`, read before the model is known."""

    name = "numbers"

    def __init__(self, what: str) -> None:
        self._what = what

    def convert(
        self, value: str | Numbers, param: click.Parameter | None, ctx: click.Context | None
    ) -> Numbers:
        """Anything else is a usage error."""
        if isinstance(value, Numbers):
            return value
        try:
            return parse_numbers(value, self._what)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Query(click.ParamType[int]):
    """An index, or `last` for -1."""

    name = "query"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Anything else is a usage error."""
        if isinstance(value, int):
            return value
        try:
            return -1 if value == "last" else parse_number(value.replace(MINUS, "-"), "query")
        except UsageError as error:
            self.fail(f"{error}, or last", param, ctx)


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
        "-l",
        "--layer",
        "layers",
        type=_Numbers("layer"),
        metavar="L",
        help="Draw the heads of a layer: 5, 0-3,7, -1 (the last) or all.",
    ),
    click.option(
        "-H",
        "--head",
        "heads",
        type=_Numbers("head"),
        metavar="H",
        help="With -l: draw one map for each of these heads.",
    ),
    click.option(
        "--explain",
        "query",
        type=Query(),
        metavar="[QUERY]",
        is_flag=False,
        flag_value="last",
        help="Follow one query (an index; or last, the default) through the formula. Without -l "
        "and -H: in the head that writes most for it.",
    ),
    click.option(
        "--at",
        default="all",
        show_default=True,
        metavar="ADDRESS",
        help="In place of -l and -H: a layer 5, or a head 5.1 or L5H1. With --what-if: the layer "
        "or head that is edited.",
    ),
)

map_options = bundle(
    MapFlags,
    "map_flags",
    click.option(
        "--show",
        type=OneOf(names(Shown)),
        default="weights",
        show_default=True,
        help="Numbers of a map: weights, q·k, q·k scaled, |w v W_O|, signed share of the output, "
        "cosine, distance |q - k|; rollout: how much of each token arrives through all layers up "
        "to -l.",
    ),
    click.option(
        "--scale",
        type=OneOf(names(Scale)),
        default="sqrt",
        show_default=True,
        help="How brightness grows with the number.",
    ),
    click.option(
        "--range",
        "most",
        type=click.FloatRange(min=0, min_open=True),
        help="Value drawn at full brightness. [default: 1 for weights, shares and cosines; else "
        "the greatest value of the map]",
    ),
    click.option(
        "--sink",
        type=OneOf(names(Sink)),
        default="split",
        show_default=True,
        help="The first key: in a column of its own, among the others, or left out with the rest "
        "scaled to sum to 1.",
    ),
    click.option(
        "--pool",
        type=OneOf(names(Pool)),
        default="max",
        show_default=True,
        help="How cells are combined where a map is larger than the screen.",
    ),
    click.option(
        "--queries", type=_Span(), default=(None, None), help="Rows to draw, such as 200: or -8:."
    ),
    click.option(
        "--keys", type=_Span(), default=(None, None), help="Columns to draw, such as 0:64."
    ),
    click.option(
        "--metric",
        "metrics",
        type=Several(OneOf(names(MetricName))),
        metavar="NAME[,...]",
        help=f"Panels of the summary: {', '.join(names(MetricName))}. [default: "
        "sink-later,previous,induction,entropy]",
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
        help="Run the prompt again with one change: kq, unscaled, unmasked, drop-sink, "
        "ablate=L.H[:mean] or ablate=kvL.G. Repeatable.",
    ),
    click.option(
        "--ablate-all",
        is_flag=True,
        help="Run once without each head, or each one of -l and -H, and print the prompt's loss.",
    ),
)


def place_of(place: PlaceFlags, edits: EditFlags) -> PlaceFlags:
    """The flags with `--at` written as -l and -H, unless it names the place of an edit.

    Raises UsageError for what is not an address.
    """
    if place.at == "all" or edits.what_ifs:
        return place
    layer, head = parse_address(place.at)
    return place._replace(layers=_only(layer), heads=None if head is None else _only(head))


def _only(number: int) -> Numbers:
    return Numbers(((number, number),))


def select(
    place: PlaceFlags, *, layers: Sequence[int], heads: Sequence[int], owner: str
) -> Selection:
    """The selection among the numbers of a model or recording (`owner`); by default all.

    Raises UsageError for a number that is not there.
    """
    return Selection(
        layers=tuple((place.layers or ALL).among(layers, "layer", owner=owner)),
        heads=tuple((place.heads or ALL).among(heads, "head", owner=owner)),
        query=place.query,
        all_layers=place.layers is None,
        all_heads=place.heads is None,
    )
