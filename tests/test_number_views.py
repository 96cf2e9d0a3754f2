"""Views of vectors and of measures of similarity: exact, and nothing cut off at any width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import RenderableType

from kvgen.attention.multi_head import OutputProjection, sum_heads
from kvgen.attention.similarity import Agreement, Similarity, compare_measures
from kvgen.attention.steps import explain_query
from kvgen.attention.weighted_values import weigh_values
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import Canvas, Mode
from kvgen.render.head_panels import head_panels
from kvgen.render.multi_head import multi_head_view
from kvgen.render.similarity import similarity_view
from kvgen.render.vectors import decimals, vector_tables, weighted_values_table
from tests.test_render import SIZES, lines_of, make_trace, without_colors


def text_of(view: RenderableType, canvas: Canvas) -> str:
    return "\n".join(without_colors(line).rstrip() for line in lines_of(view, canvas))


def counted(
    cosine: Sequence[Sequence[int]], distance: Sequence[Sequence[int]], rows: int
) -> Agreement:
    return Agreement(
        cosine=np.array(cosine), distance=np.array(distance), rows=np.full((2, 2), rows)
    )


def test_similarities_on_one_screen() -> None:
    found = Similarity(
        all_keys=counted([[10, 5], [0, 8]], [[2, 2], [3, 4]], 10),
        later_keys=counted([[0, 0], [0, 0]], [[0, 0], [0, 0]], 0),
        identity=2e-16,
        n_pairs=1234,
    )
    canvas = Canvas(80, "ascii")
    expected = """\
layers x heads · 11 tokens (6 prompt + 5 decode)
does another measure choose the key of the greatest dot product?
layer cosine          distance        cosine, rest    distance, rest
 head 0 1             0 1             0 1             0 1
   0  9 5             2 2
   1  . 8             3 4
cells: . 0  2 .2  4 .4  6 .6  8 .8  9 1
each a share of rows; blank: no row with two keys to choose from
cosine: rows where the key with the greatest cos(q, k) is the key with the
greatest q·k · distance: the same of the key with the least |q - k|
rest: without key 0 (the sink)
Among all visible keys: the cosine chooses the same key as the dot product in
57% of the 40 rows of all heads, the distance in 28%.
Without key 0: no query has two keys to choose from.
Keys differ in length: a long key can win the dot product |q| |k| cos(q, k); the
cosine takes the lengths out; by the distance |q - k| a long key is far away.
|q - k|^2 = |q|^2 + |k|^2 - 2 q·k: the greatest difference of both sides, in
float64, is 2.0e-16 of |q|^2 + |k|^2 (1,234 pairs)"""
    assert text_of(similarity_view(make_trace(11, H=2, G=1), found, canvas), canvas) == expected


def test_a_sum_over_heads_with_a_pencil() -> None:
    layer = make_trace(1, H=2, G=1, D=1, layers=1).layers[0]
    layer = replace(layer, layer=4, z=np.float32([[[3], [4]]]))
    projection = OutputProjection(np.float32([[1, 0], [0, -1]]), np.float32([1, 8]), True, 0.5)
    found = sum_heads(layer, 0, projection)
    canvas = Canvas(80, "glyphs")
    view = multi_head_view(layer, [b" cat"], found, projection, query=0, canvas=canvas)
    expected = """\
layer 4 · query 0 ␣cat · 2 heads on 1 key/value heads · d_v = 1, d_model = 2
output = concat(z_0, .., z_1) W_O + b = sum over heads of z_h W_O^h + b
   head kv |z_h| |z_h W_O^h|  share    [0]    [1]
      0  0 3.000       3.000 +0.375 +3.000 +0.000
      1  0 4.000       4.000 -0.500 +0.000 -4.000
 bias b          8.062 +1.125 +1.000 +8.000
    sum          5.657 +1.000 +4.000 +4.000
product          5.657        +4.000 +4.000"""
    text = text_of(view, canvas)
    lines = [line.split() for line in text.splitlines()]
    assert lines[:8] == [line.split() for line in expected.splitlines()]
    assert "[ ]: numbers 0..1 of 2" in text
    assert "differ by at most 0.0e+00" in text
    assert "The model normalises this output before it adds it: that is left out here." in text
    assert "The model adds 0.5 times this output." in text
    plain = multi_head_view(
        layer, [b"a"], found, projection._replace(norm_follows=False, residual_scale=1.0),
        query=0, canvas=canvas,
    )  # fmt: skip
    assert "The model" not in text_of(plain, canvas)


def test_weighted_values_stand_above_their_sum() -> None:
    trace = make_trace(3, H=1, G=1, D=2, layers=1)
    one = replace(
        trace.layers[0],
        q=np.float32([[[0, 0]]] * 3),  # every key has the same weight
        v=np.float32([[[3, 0]], [[0, -6]], [[9, 30]]]),
        z=np.float32([[[0, 0]], [[0, 0]], [[4, 8]]]),
    )
    explained = explain_query(one, 0, 2)
    weighed = weigh_values(one, explained, head=0, query=2)
    canvas = Canvas(80, "glyphs")
    view = weighted_values_table(
        [b"a", b" b", b"\n"], weighed, shares=explained.shares, canvas=canvas
    )
    lines = [line.split() for line in text_of(view, canvas).splitlines()]
    assert lines == [
        ["w_j", "v_j:", "numbers", "0..1", "of", "2"],
        ["j", "key", "[0]", "[1]"],
        ["0", "a", "+1.00", "+0.00"],
        ["1", "␣b", "+0.00", "-2.00"],
        ["2", "⏎", "+3.00", "+10.00"],
        ["sum:", "o", "+4.00", "+8.00"],
        ["kernel:", "z", "+4.00", "+8.00"],
        f"o and z, which the kernel wrote, differ by at most {weighed.difference:.1e}".split(),
    ]


def views_of(trace: AttentionTrace, canvas: Canvas) -> list[RenderableType]:
    """Every view, of the first query and the last, of many numbers and of as many as fit."""
    tokens = [" \t\n東京".encode()] * trace.length
    random = np.random.RandomState(3)
    layer = trace.layers[0]
    H, D = layer.z.shape[1:]
    weights = random.standard_normal((50, H * D)).astype(np.float32) * 1000
    projection = OutputProjection(weights, weights[:, 0], True, 0.22)
    views: list[RenderableType] = [similarity_view(trace, compare_measures(trace), canvas)]
    for query in {0, trace.length - 1}:
        found = sum_heads(layer, query, projection)
        views.append(multi_head_view(layer, tokens, found, projection, query=query, canvas=canvas))
        explained = explain_query(layer, 1, query)
        weighed = weigh_values(layer, explained, head=1, query=query)
        views += [
            weighted_values_table(
                tokens, weighed, shares=explained.shares, canvas=canvas, n_numbers=n_numbers
            )
            for n_numbers in (None, 1, 64, 999)
        ]
    return views


@pytest.mark.parametrize(("width", "mode"), SIZES)
@pytest.mark.parametrize(("T", "H"), [(1, 2), (40, 4), (40, 32)])
def test_nothing_is_wider_than_the_screen_or_cut_off(
    T: int, H: int, width: int, mode: Mode
) -> None:
    canvas = Canvas(width, mode)
    for view in views_of(make_trace(T, H=H, G=2, D=20), canvas):
        text = text_of(view, canvas)
        assert all(cell_len(line) <= width for line in text.splitlines()), text
        assert "…" not in text


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("n_numbers", [None, 20])
def test_every_number_of_a_vector_is_there_and_at_most_those_that_fit(
    n_numbers: int | None, width: int
) -> None:
    vectors = np.random.RandomState(1).standard_normal((3, 20)).astype(np.float32)
    canvas = Canvas(width, "glyphs")
    rows = [{"name": name, "more": "1234"} for name in "abc"]
    tables, shown = vector_tables(
        {"name": "name", "more": "more"}, rows, vectors,
        keys=("name",), canvas=canvas, n_numbers=n_numbers,
    )  # fmt: skip
    text = "\n".join(text_of(table, canvas) for table in tables)
    count = int(shown.removeprefix("0..")) + 1
    for number in range(count):
        assert text.split().count(f"[{number}]") == 1
        for vector in vectors:
            assert f"{vector[number]:+.3f}" in text
    if n_numbers:
        assert count == 20 and len(tables) > 1
    else:
        assert len(tables) == 1 and count == (8 if width > 40 else 4)


def test_the_fewest_numbers_are_shown_also_where_they_do_not_fit() -> None:
    vectors = np.full((1, 9), 0.123456, np.float32)
    names = {"name": "name", "wide": "w" * 25}
    tables, shown = vector_tables(
        names, [{"name": "a", "wide": "x"}], vectors,
        keys=("name",), canvas=Canvas(40, "glyphs"), fewest=4,
    )  # fmt: skip
    assert shown == "0..3" and len(tables) == 2


@pytest.mark.parametrize(
    ("numbers", "form"),
    [([1.5, -0.25], ".3f"), ([-15.9], ".2f"), ([0.03], ".5f"), ([1e-9], ".6f"), ([0], ".3f"),
     ([12345], ".0f"), ([9.9999], ".3f"), ([], ".3f")],
)  # fmt: skip
def test_the_greatest_number_has_four_digits(numbers: list[float], form: str) -> None:
    assert decimals(numbers) == form


def test_panels_that_do_not_fit_stand_below_each_other() -> None:
    trace = make_trace(3, H=30, G=1, layers=1)
    panels = [(f"panel {number}", np.zeros((1, 30), np.float32)) for number in range(3)]
    lines = [line.plain.rstrip() for line in head_panels(trace, panels, Canvas(80, "ascii"))]
    assert [line[6:] for line in lines if line.startswith("layer")] == [
        "panel 0".ljust(32) + "panel 1",
        "panel 2",
    ]
