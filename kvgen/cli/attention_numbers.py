"""Options of `kvgen inspect-attention` that show numbers in place of maps, and their views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.cli.attention_options import Query, Selection
from kvgen.cli.command import Count
from kvgen.cli.options import bundle
from kvgen.engine.places import check_number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvgen.attention.steps import RowExplanation
    from kvgen.engine.trace import AttentionTrace, LayerTrace
    from kvgen.recording import Recording
    from kvgen.render.canvas import Canvas


class NumberFlags(NamedTuple):
    """Which numbers to show in place of maps, or below an explanation."""

    similarity: bool
    summed_query: int | None  # of --multi-head, as it was written: -1 is the last
    n_numbers: int | None  # of --vectors; 0: as many as fit

    def given(self) -> list[str]:
        """The options that were given."""
        names = ("--similarity", "--multi-head", "--vectors")
        asked = (self.similarity, self.summed_query is not None, self.n_numbers is not None)
        return [name for name, given in zip(names, asked, strict=True) if given]


number_options = bundle(
    NumberFlags,
    "number_flags",
    click.option(
        "--similarity",
        is_flag=True,
        help="Dot product, cosine and distance of queries and keys: in how many rows do they "
        "choose the same key? Of all heads, or those of -l and -H.",
    ),
    click.option(
        "--multi-head",
        "summed_query",
        type=Query(),
        metavar="[QUERY]",
        is_flag=False,
        flag_value="last",
        help="With -l: the layer's attention output for one query (an index; or last, the "
        "default) as the sum of what its heads add, z_h W_O^h, with the numbers of each head.",
    ),
    click.option(
        "--vectors",
        "n_numbers",
        type=Count(min=0, hint="write the prompt before --vectors"),
        metavar="[N]",
        is_flag=False,
        flag_value="0",
        help="With --explain: the first N numbers of each vector w_j v_j and of their sum; 0, the "
        "default: as many as fit the width.",
    ),
)


def similarities(
    trace: AttentionTrace, selection: Selection, canvas: Canvas
) -> list[RenderableType]:
    """The three measures in the selected layers and heads."""
    from kvgen.attention.similarity import compare_measures
    from kvgen.render.similarity import similarity_view

    heads = sorted(selection.heads)
    layers = tuple(trace.layer(layer).only(*heads) for layer in selection.layers)
    selected = replace(trace, layers=layers)
    return [similarity_view(selected, compare_measures(selected), canvas)]


def head_sums(
    seen: Recording, selection: Selection, *, query: int, canvas: Canvas
) -> list[RenderableType]:
    """One query's attention output in each selected layer, head by head.

    Raises UsageError where the recording lacks the query.
    """
    from kvgen.render.multi_head import multi_head_view

    trace = seen.run.trace
    query = check_number(query, range(trace.length), "query", owner="run")
    return [
        multi_head_view(
            trace.layer(layer),
            seen.token_bytes,
            seen.multi_head(layer, query),
            seen.output_projection(layer),
            query=query,
            canvas=canvas,
        )
        for layer in selection.layers
    ]


def weighted_vectors(
    layer: LayerTrace,
    tokens: Sequence[bytes],
    explained: RowExplanation,
    *,
    head: int,
    n_numbers: int,
    canvas: Canvas,
) -> RenderableType:
    """The vectors that an explained query adds up; 0 numbers: as many as fit."""
    from kvgen.attention.weighted_values import weigh_values
    from kvgen.render.vectors import weighted_values_table

    query = len(explained.weights) - 1
    return weighted_values_table(
        tokens,
        weigh_values(layer, explained, head=head, query=query),
        shares=explained.shares,
        canvas=canvas,
        n_numbers=n_numbers or None,
    )
