"""Dot product, cosine and distance: how often they choose the same key, on one screen."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.similarity import Agreement, Similarity
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import Canvas
from kvgen.render.head_map import rows_of
from kvgen.render.head_panels import head_panels, level_legend
from kvgen.render.layout import flow

_WHY = (
    "Keys differ in length: a long key can win the dot product |q| |k| cos(q, k); the cosine takes "
    "the lengths out; by the distance |q - k| a long key is far away."
)


def similarity_view(trace: AttentionTrace, found: Similarity, canvas: Canvas) -> RenderableType:
    """Layers x heads: the share of the rows where cosine and distance choose the usual key.

    Then the same of all heads in words, and how exactly the three measures belong together.
    """
    panels = [
        ("cosine", found.all_keys.cosine_shares),
        ("distance", found.all_keys.distance_shares),
        ("cosine, rest", found.later_keys.cosine_shares),
        ("distance, rest", found.later_keys.distance_shares),
    ]
    meanings = [
        "cosine: rows where the key with the greatest cos(q, k) is the key with the greatest q·k",
        "distance: the same of the key with the least |q - k|",
        "rest: without key 0 (the sink)",
    ]
    words = [
        _in_words(found.all_keys, "Among all visible keys"),
        _in_words(found.later_keys, "Without key 0"),
        _WHY,
        "|q - k|^2 = |q|^2 + |k|^2 - 2 q·k: the greatest difference of both sides, in float64, is "
        f"{found.identity:.1e} of |q|^2 + |k|^2 ({found.n_pairs:,} pairs)",
    ]
    return Group(
        flow(
            [
                f"layers x heads · {rows_of(trace)}",
                "does another measure choose the key of the greatest dot product?",
            ],
            canvas.width,
            between=" · ",
        ),
        *head_panels(trace, panels, canvas),
        level_legend(canvas, "each a share of rows; blank: no row with two keys to choose from"),
        flow([Text(meaning, "dim") for meaning in meanings], canvas.width, between=" · "),
        *(flow(line.split(), canvas.width, between=" ") for line in words),
    )


def _in_words(agreed: Agreement, which: str) -> str:
    """The shares of all rows of all heads."""
    n_rows = int(agreed.rows.sum())
    if not n_rows:
        return f"{which}: no query has two keys to choose from."
    cosine, distance = (int(each.sum()) / n_rows for each in (agreed.cosine, agreed.distance))
    return (
        f"{which}: the cosine chooses the same key as the dot product in {cosine:.0%} of the "
        f"{n_rows:,} rows of all heads, the distance in {distance:.0%}."
    )
