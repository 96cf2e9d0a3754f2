"""Views of the lens, contributions and patches: exact, and nothing cut off at any width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import RenderableType

from kvgen.attention.contributions import Contributions, Sources
from kvgen.attention.lens import Lens
from kvgen.attention.patch import PatchMap
from kvgen.render.canvas import Canvas, Mode, token_label
from kvgen.render.contributions import contributions_view, sources_view
from kvgen.render.draw import draw
from kvgen.render.ink import Ink
from kvgen.render.layers_by_heads import layers_by_heads
from kvgen.render.lens import lens_view, positions_that_fit
from kvgen.render.numbers import counted, signed
from kvgen.render.patch import patch_view
from tests.test_render import HOSTILE, without_colors

TOKENS = [*HOSTILE, "月月月月月月".encode(), b"x" * 300]
NAMES = dict(enumerate(TOKENS))
WIDTHS = [60, 80, 100, 120, 200]
MODES: list[Mode] = ["color", "glyphs", "ascii"]


def lines_of(view: RenderableType, canvas: Canvas) -> list[str]:
    return [without_colors(line).rstrip() for line in draw(view, canvas).splitlines()]


def some_lens(n_layers: int, positions: range, *, n_candidates: int = 5) -> Lens:
    random = np.random.default_rng(n_layers)
    shape = (n_layers, len(positions))
    return Lens(
        layers=tuple(range(n_layers)),
        positions=tuple(positions),
        ids=random.integers(0, len(TOKENS) + 3, (*shape, n_candidates)).astype(np.int32),
        probabilities=random.random((*shape, n_candidates)).astype(np.float32),
        entropies=random.random(shape).astype(np.float32),
        final_ids=random.integers(0, len(TOKENS), len(positions)).astype(np.int32),
        final_probabilities=random.random(shape).astype(np.float32),
        ranks=random.integers(1, 300_000, shape).astype(np.int32),
        error=1.25e-6,
    )


def some_contributions(n_layers: int, n_heads: int, *, n_tokens: int = 3) -> Contributions:
    random = np.random.default_rng(n_heads)
    shape = (n_layers, n_heads)
    return Contributions(
        query=n_tokens - 1,
        token=3,
        against=len(TOKENS) - 1,
        embedding=0.25,
        position=-1234.5,
        heads=random.standard_normal(shape),
        attention_biases=np.zeros(n_layers),
        mlps=random.standard_normal(n_layers),
        bias=-0.0001,
        logit=12.0,
        softcap=None,
        error=1.25e-6,
        read=random.integers(0, n_tokens, shape),
        read_weights=random.random(shape).astype(np.float32),
        copies=random.standard_normal(shape),
    )


def some_patches(n_layers: int, columns: range, *, site: str = "head", n_tokens: int) -> PatchMap:
    random = np.random.default_rng(len(columns))
    ids = random.integers(0, len(TOKENS), n_tokens)
    return PatchMap(
        site=site,  # type: ignore[arg-type]
        layers=tuple(range(n_layers)),
        columns=tuple(columns),
        positions=tuple(range(n_tokens)),
        ids=tuple(ids.tolist()),
        source_ids=tuple(((ids + 1) % len(TOKENS)).tolist()),
        token=3,
        against=len(TOKENS) - 1,
        base=-1.0,
        source=1.0,
        base_next=4,
        source_next=3,
        patched=random.standard_normal((n_layers, len(columns))).astype(np.float32),
        next_ids=np.full((n_layers, len(columns)), 3, np.int32),
        interrupted=False,
    )


def texts(canvas: Canvas):  # type: ignore[no-untyped-def]
    return lambda token: token_label(NAMES[token], canvas, 10).strip()


def every_view(n_layers: int, n_heads: int, T: int, canvas: Canvas) -> list[RenderableType]:
    tokens = [TOKENS[place % len(TOKENS)] for place in range(T)]
    whole = some_contributions(n_layers, n_heads, n_tokens=T)
    numbers = np.linspace(-1, 1, T)
    one = Sources(
        layer=0, head=0, weights=numbers.astype(np.float32), parts=numbers, copies=numbers
    )
    by_head = some_patches(n_layers, range(n_heads), n_tokens=T)
    unfinished = by_head.patched.copy()
    unfinished.flat[1:] = np.nan
    return [
        lens_view(some_lens(n_layers, range(T)), tokens, NAMES, canvas),
        lens_view(some_lens(n_layers, range(T - 1, T)), tokens, NAMES, canvas),
        contributions_view(whole, tokens, NAMES, canvas),
        contributions_view(replace(whole, against=None, softcap=30.0), tokens, NAMES, canvas),
        sources_view(one, whole, tokens, NAMES, canvas),
        patch_view(by_head, texts(canvas), canvas),
        patch_view(replace(by_head, patched=unfinished, interrupted=True), texts(canvas), canvas),
        patch_view(
            some_patches(n_layers, range(T), site="residual", n_tokens=T), texts(canvas), canvas
        ),
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("n_layers", "n_heads", "T"), [(1, 1, 1), (30, 9, 8), (2, 48, 300)])
def test_no_line_is_wider_than_the_canvas_or_broken(
    n_layers: int, n_heads: int, T: int, width: int, mode: Mode
) -> None:
    """A view laid out for a width looks the same on a wider canvas: nothing is broken to fit."""
    canvas = Canvas(width, mode)
    for view in every_view(n_layers, n_heads, T, canvas):
        text = draw(view, canvas)
        assert draw(view, replace(canvas, width=2 * width)) == text
        assert max(cell_len(without_colors(line)) for line in text.splitlines()) <= width
        for character in ("\x1b[2J", "\u202e", "\ufffd", "\x00"):
            assert character not in text
        assert mode != "ascii" or text.isascii()


def test_a_lens_in_ascii() -> None:
    lens = Lens(
        layers=(0, 5),
        positions=(1, 2),
        ids=np.array([[[0, 1], [1, 2]], [[2, 0], [2, 1]]], np.int32),
        probabilities=np.float32([[[0.5, 0.1], [0.25, 0.2]], [[0.9, 0.05], [1, 0]]]),
        entropies=np.float32([[1, 2], [0.5, 0]]),
        final_ids=np.array([2, 2], np.int32),
        final_probabilities=np.float32([[0.01, 0.2], [0.9, 1]]),
        ranks=np.array([[70, 2], [1, 1]], np.int32),
        error=1e-6,
    )
    canvas = Canvas(80, "ascii")
    names = {0: b" cat", 1: b" dog", 2: b","}
    expected = """\
lens - 2 layers x the last 2 of 3 positions
each cell: the likeliest next token after that layer
      1         2
layer _b        c
   0  _cat   5  _dog   2
   5  ,      8= ,      9=
probability: . .0  2 .2  4 .4  6 .6  8 .8  9 1.0
= the final choice: the likeliest token of the whole model

position 2 'c', the last column - the final choice: ','
layer  rank      p  H/nats  likeliest
    0     2  0.200    2.00  _dog     .25  ,        .20
    5     1  1.000    0.00  ,        1.0  _dog     .00
rank, p: the rank (1 = the likeliest) and the probability of the final choice in
each layer - H: entropy, 0 = certain
lens: the final norm and the output head after each layer, as if the model ended
there
verified: |last layer - the model's own logits| <= 1.0e-06
next: --queries 0:1 for earlier positions"""
    assert lines_of(lens_view(lens, [b"<s>", b" b", b"c"], names, canvas), canvas) == (
        expected.splitlines()
    )


def test_one_layer_at_one_position_is_said_in_the_singular() -> None:
    canvas = Canvas(80, "glyphs")
    first, *lines = lines_of(lens_view(some_lens(1, range(1)), [b"a"], NAMES, canvas), canvas)
    assert first.startswith("lens · 1 layer x 1 position")
    assert any(line.startswith("position 0 'a' ·") for line in lines)
    assert not any("--queries" in line for line in lines)


def test_a_lens_of_chosen_positions_does_not_call_them_the_last() -> None:
    canvas = Canvas(80, "glyphs")
    view = lens_view(some_lens(2, range(1, 3)), TOKENS, NAMES, canvas)
    assert lines_of(view, canvas)[0].startswith("lens · 2 layers x 2 of 15 positions")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_positions_that_fit_make_one_table(width: int) -> None:
    canvas = Canvas(width, "glyphs")
    shown = positions_that_fit(300, canvas)
    assert shown[-1] == 299
    for positions, n_tables in ((shown, 1), (range(shown[0] - 1, 300), 2)):
        view = lens_view(some_lens(1, positions), [b"a"] * 300, NAMES, canvas)
        assert sum("layer a" in line for line in lines_of(view, canvas)) == n_tables


def test_contributions_in_ascii() -> None:
    found = Contributions(
        query=1, token=0, against=None, embedding=0.5, position=None, heads=np.array([[1.0, -2.0]]),
        attention_biases=np.zeros(1), mlps=np.array([0.25]), bias=0.0, logit=-0.25, softcap=None,
        error=0.0, read=np.array([[0, 1]]), read_weights=np.float32([[0.5, 1]]),
        copies=np.array([[0.0, 3.0]]),
    )  # fmt: skip
    canvas = Canvas(80, "ascii")
    expected = """\
contributions to the logit of ',' after position 1 '_b'
embedding +0.500 - heads -1.000 - MLPs +0.250 - biases 0.000 - sum -0.250

      head              greatest parts    adds  reads most  weight  copies
layer 0 1   layer MLP   head 0.1        -2.000  1 _b          1.00  +3.000
   0  ##==     0  ::    head 0.0        +1.000  0 <s>         0.50   0.000
                        embedding       +0.500
                        MLP 0           +0.250
adds: blank <.02  . <.1  : <.3  + <.7  # <1.3  @ more
below 0: - and, from .7, =
copies: what the head adds to the logit of the token that it reads most; > 0: it
copies
A part counts for what it writes itself, with the final norm's scale as it is,
not for what later layers make of it.
verified: |sum - the model's own logit -0.250| <= 0.0e+00"""
    view = contributions_view(found, [b"<s>", b" b"], {0: b","}, canvas)
    assert lines_of(view, canvas) == expected.splitlines()


def test_patches_in_ascii() -> None:
    found = PatchMap(
        site="head", layers=(1,), columns=(0, 2), positions=(1,), ids=(0, 1, 2),
        source_ids=(0, 3, 2), token=3, against=1, base=-1.0, source=1.0, base_next=1, source_next=3,
        patched=np.float32([[0.5, np.nan]]), next_ids=np.array([[3, -1]], np.int32),
        interrupted=True,
    )  # fmt: skip
    canvas = Canvas(80, "ascii")
    expected = """\
patching: the outputs z of single heads, taken from the source's run
3 tokens, prompt -> source: 1 _dog -> _cat
logit '_cat' - logit '_dog': -1.000 in the prompt, which predicts '_dog'
+1.000 in the source, which predicts '_cat'

      head   greatest effects  effect  difference  predicts
layer 0 2    head 1.0           +0.75      +0.500  _cat as in the source
   1  @@??
effect: blank <.01  . <.05  : <.15  + <.35  # <.65  @ more
below 0: - and, from .35, =
effect 0: the difference stays as in the prompt
1: it becomes that of the source - patched at positions 1 - ?: not run
after 1 of 2 patches the model predicts '_cat', as in the source
interrupted: 1 of 2 patches were run"""
    words = {0: b"a", 1: b" dog", 2: b"c", 3: b" cat"}
    view = patch_view(found, lambda token: token_label(words[token], canvas, 10).strip(), canvas)
    assert lines_of(view, canvas) == expected.splitlines()


def test_a_table_stands_beside_a_map_where_there_is_room() -> None:
    for width, beside in ((60, False), (100, True)):
        canvas = Canvas(width, "glyphs")
        view = contributions_view(some_contributions(30, 4), [b"a"] * 3, NAMES, canvas)
        lines = lines_of(view, canvas)
        assert any(line.startswith("      head   ") for line in lines) == beside
        assert sum("greatest parts" in line for line in lines) == 1


def test_positions_before_the_first_difference_are_left_out_of_a_long_map() -> None:
    canvas = Canvas(80, "glyphs")
    found = some_patches(2, range(300), site="residual", n_tokens=300)
    alike = replace(found, source_ids=(*found.ids[:298], *found.source_ids[298:]))
    text = "\n".join(lines_of(patch_view(alike, texts(canvas), canvas), canvas))
    assert "left out: 0-297, where both runs are the same and the effect is 0" in text
    assert text.count("layer") < 5 + 8  # one map, and the names of eight patches
    short = replace(alike, columns=tuple(range(290, 300)), patched=found.patched[:, 290:],
                    next_ids=found.next_ids[:, 290:])  # fmt: skip
    assert "left out" not in "\n".join(lines_of(patch_view(short, texts(canvas), canvas), canvas))


def test_numbers_of_columns_can_be_told_apart() -> None:
    """Read downwards: 9, 100, 101, 205 in cells of one column, 3, 11, 12 in cells of two."""
    canvas = Canvas(60, "glyphs")
    rows = layers_by_heads(np.zeros((1, 4)), Canvas(10, "glyphs"), Ink(), layers=[0],
                           heads=[9, 100, 101, 205])  # fmt: skip
    assert [row.plain for row in rows[:3]] == ["       1 2", "       0 0", "layer 9015"]
    rows = layers_by_heads(np.zeros((1, 3)), canvas, Ink(), layers=[0], heads=[3, 11, 12])
    assert [row.plain for row in rows[:2]] == ["        1", "layer 3 1 2"]


def test_counts_and_signs_in_words() -> None:
    assert [counted(1, "layer"), counted(2048, "layer")] == ["1 layer", "2,048 layers"]
    assert counted(2, "patch", "patches") == "2 patches"
    assert [signed(0.12), signed(-3, 1), signed(-0.0001)] == ["+0.120", "-3.0", "0.000"]
