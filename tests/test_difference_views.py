"""Views of the difference of two recordings, at fixed widths."""

from __future__ import annotations

import re

import numpy as np
import pytest
from rich.cells import cell_len

from kvgen.attention.difference import Difference, compare
from kvgen.engine.trace import AttentionTrace
from kvgen.render.canvas import Canvas, Mode
from kvgen.render.difference import Sides, difference_grid, difference_map, difference_summary
from kvgen.render.head_map import MapView
from tests.test_difference import a_map
from tests.test_render import HOSTILE, lines_of, make_trace, without_colors

EYES = b" \xf0\x9f\x91\x80"
SIDES = Sides(
    names=("one.npz", "two.npz"),
    tokens=([b"<s>", b" cat", b" sat"], [b"<s>", b" dog", b" sat"]),
)


def small_difference() -> Difference:
    return compare(
        a_map([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]),
        a_map([[1, 0, 0], [0.9, 0.1, 0], [0.5, 0.2, 0.3]]),
    )


def text_of(view: object, canvas: Canvas) -> list[str]:
    return [without_colors(line).rstrip() for line in lines_of(view, canvas)]  # type: ignore[arg-type]


def test_the_summary_of_all_heads_in_glyphs() -> None:
    canvas = Canvas(80, "glyphs")
    lines = text_of(difference_summary(small_difference(), SIDES, canvas, view=MapView()), canvas)
    lines[12:14] = sorted(lines[12:14])  # the same change up to rounding
    assert lines == [
        "before: one.npz",
        "after:  two.npz",
        "3 tokens · tokens differ at 1 · row 0 does not differ",
        "layers x heads",
        "layer 0",
        "   0  ▒▒",
        "mean distance of rows: blank <.01  · <.05  ░ <.15  ▒ <.35  ▓ <.65  █ more",
        "distance of a row: half the sum of |w - w'|, 0 = equal, 1 = no key in common",
        "largest (layer.head):  0.0 0.23  mean of all 0.23",
        "",
        "greatest changes of a weight",
        "head  query           key             before  after  change",
        " 0.0  1 ␣cat -> ␣dog  0 <s>            0.500  0.900  +0.400",
        " 0.0  1 ␣cat -> ␣dog  1 ␣cat -> ␣dog   0.500  0.100  -0.400",
        "next: -l LAYER for its heads, -l LAYER -H HEAD for one map.",
    ]


def test_a_layer_of_heads_in_glyphs() -> None:
    canvas = Canvas(80, "glyphs")
    view = difference_grid(
        small_difference(), SIDES, canvas, layer=0, heads=[0], view=MapView(most=1.0)
    )
    assert text_of(view, canvas)[3:] == [
        "layer 0 · 1 heads · scale to 1, by --range",
        "query           0.0 distance 0.23",
        "0 <s>",
        "",
        "",
        "",
        "1 ␣cat -> ␣dog  ▓▓▓▓▓▓▓▓========",
        "                ▓▓▓▓▓▓▓▓========",
        "                ▓▓▓▓▓▓▓▓========",
        "                ▓▓▓▓▓▓▓▓========",
        "2 ␣sat                  --------▒▒▒▒▒▒▒▒",
        "                        --------▒▒▒▒▒▒▒▒",
        "                        --------▒▒▒▒▒▒▒▒",
        "                        --------▒▒▒▒▒▒▒▒",
        "key             0                      2",
        "",
        "change of weight: blank <.01  · <.05  ░ <.15  ▒ <.35  ▓ <.65  █ more",
        "below 0: - and, from .35, =",
        "rows are queries, columns are keys",
        "distance: mean of the rows' half sums of |w - w'|",
    ]


def test_one_map_in_ascii() -> None:
    canvas = Canvas(80, "ascii")
    view = difference_map(small_difference(), SIDES, canvas, layer=0, head=0, view=MapView())
    assert text_of(view, canvas)[3:11] == [
        "layer 0 head 0 · mean distance of rows 0.23",
        "scale to .4, the greatest |change| shown",
        "  q token              |  0  1  2| distance",
        "  0 <s>                |         |          0.00",
        "  1 _cat -> _dog       |@@@===   | ###      0.40",
        "  2 _sat               |   ===@@@| ##       0.30",
        "change of weight: blank <.004  . <.02  : <.06  + <.14  # <.26  @ more",
        "below 0: - and, from .14, =",
    ]


def test_a_window_of_a_map_is_named() -> None:
    canvas = Canvas(120, "glyphs")
    view = MapView(queries=(2, None), keys=(0, 1), scale="linear", most=0.5)
    lines = text_of(
        difference_map(small_difference(), SIDES, canvas, layer=0, head=0, view=view), canvas
    )
    assert lines[3].endswith("0.30 · queries 2..2 · keys 0..0 · scale to .5, by --range")
    assert lines[4:6] == ["  q token      │  0│ distance", "  2 ␣sat       │   │ ██       0.30"]


def test_colours_tell_more_weight_from_less() -> None:
    canvas = Canvas(80, "color")
    view = difference_map(small_difference(), SIDES, canvas, layer=0, head=0, view=MapView())
    row = next(line for line in lines_of(view, canvas) if "_dog" in line or "␣dog" in line)
    more, less = re.findall(r"48;2;(\d+);(\d+);(\d+)m", row)[:2]
    assert tuple(map(int, more)) == (255, 150, 40)  # the greatest change, up
    assert int(less[2]) > int(less[0])


def test_equal_recordings_have_nothing_to_list() -> None:
    trace = make_trace(5)
    tokens = [b"a"] * 5
    sides = Sides(names=("a", "b"), tokens=(tokens, tokens))
    canvas = Canvas(80, "glyphs")
    same = compare(trace, trace)
    lines = text_of(difference_summary(same, sides, canvas, view=MapView()), canvas)
    assert lines[2] == "5 tokens · the same tokens · no row differs"
    assert "no weight changed by more than rounding" in lines and "mean of all 0.00" in lines
    lines = text_of(difference_map(same, sides, canvas, layer=0, head=0, view=MapView()), canvas)
    assert lines[3].endswith(" · no weight changed") and "scale to" not in " ".join(lines)


def test_many_positions_are_counted() -> None:
    tokens = [b"%d" % place for place in range(40)]
    changed = [b"x" if place % 3 == 0 or 30 < place < 35 else tokens[place] for place in range(40)]
    trace = make_trace(40)
    sides = Sides(names=("a", "b"), tokens=(tokens, changed))
    canvas = Canvas(120, "glyphs")
    lines = text_of(
        difference_summary(compare(trace, trace), sides, canvas, view=MapView()), canvas
    )
    assert "tokens differ at 17 positions, the first are 0, 3, 6, 9, 12, 15, 18, 21" in lines[2]
    few = Sides(names=("a", "b"), tokens=(tokens[:10], [b"x"] * 4 + tokens[4:9] + [b"x"]))
    lines = text_of(
        difference_summary(compare(make_trace(10), make_trace(10)), few, canvas, view=MapView()),
        canvas,
    )
    assert "tokens differ at 0-3, 9" in lines[2]


def moved_traces(T: int) -> tuple[AttentionTrace, AttentionTrace]:
    return make_trace(T, H=32, G=4), make_trace(T, H=32, G=8)


@pytest.mark.parametrize(
    ("width", "mode"),
    [
        (60, "color"), (60, "ascii"), (80, "color"), (80, "glyphs"), (80, "ascii"),
        (120, "color"), (120, "glyphs"), (120, "ascii"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("T", [1, 2, 13, 300])
def test_every_view_keeps_to_its_width(T: int, width: int, mode: Mode) -> None:
    before, after = moved_traces(T)
    hostile = list(HOSTILE)
    tokens = [hostile[token] for token in before.token_ids]
    others = [EYES if place % 2 else token for place, token in enumerate(tokens)]
    sides = Sides(names=("a prompt", "another prompt"), tokens=(tokens, others))
    canvas = Canvas(width, mode)
    difference = compare(before, after)
    views = [
        difference_summary(difference, sides, canvas, view=MapView()),
        difference_grid(difference, sides, canvas, layer=1, heads=[0, 3, 31], view=MapView()),
        difference_map(difference, sides, canvas, layer=1, head=31, view=MapView()),
    ]
    for view in views:
        lines = [
            without_colors(line).rstrip() for line in lines_of(view, Canvas(1000, mode))
        ]  # wide enough that nothing wraps
        assert max(map(cell_len, lines)) <= width
        assert len(lines) < 60 + width
        assert "\x1b" not in "".join(lines)


def test_a_pooled_map_shows_the_greatest_distance_of_its_rows() -> None:
    before, after = moved_traces(300)
    difference = compare(before, after)
    tokens = [b"a"] * 300
    canvas = Canvas(80, "glyphs")
    sides = Sides(names=("a", "b"), tokens=(tokens, tokens))
    view = difference_map(difference, sides, canvas, layer=0, head=3, view=MapView())
    lines = text_of(view, canvas)
    assert any("max-pooled, the last 8 queries alone" in line for line in lines)
    shown = [
        (int(match[1]), float(match[2]))
        for line in lines
        if (match := re.match(r" *(\d+) a +│.*│ *█* +(\d\.\d\d)$", line))
    ]
    starts = [query for query, _ in shown]
    assert starts[0] == 0 and starts[-8:] == list(range(292, 300))
    rows = difference.rows_of(0, 3)
    for (start, distance), stop in zip(shown, [*starts[1:], 300], strict=True):
        assert distance == pytest.approx(float(np.max(rows[start:stop])), abs=0.006)
