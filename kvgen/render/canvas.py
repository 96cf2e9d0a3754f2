"""Where a picture is drawn, and how numbers become cells of it."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from kvgen.choices import Pool
from kvgen.engine.tensors import FloatArray
from kvgen.render.ink import BOUNDS, FRACTION_INK, WEIGHT_INK, Colors, Ink
from kvgen.render.layout import flow
from kvgen.visible import picture

Mode = Literal["color", "glyphs", "ascii"]
TOKEN_CELLS = 10  # room for a token where it names a row

_GLYPHS, _ASCII = " ·░▒▓█", " .:+#@"
_NEGATIVE = " ---=="
_LEVELS = "·▁▂▃▄▅▆▇█"
_ASCII_LEVELS = ".123456789"

_SWATCHES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # brightnesses that a legend shows in colour
_SIGNED_SWATCHES = (-1.0, -2 / 3, -1 / 3, 0.0, 1 / 3, 2 / 3, 1.0)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The width in columns, and whether cells are colours, block glyphs or ASCII."""

    width: int
    mode: Mode
    colors: Colors = "truecolor"  # the colours that a terminal has, in mode "color"

    def legend(self, ink: Ink = WEIGHT_INK, *more: str, masked: bool = True) -> Text:
        """The numbers that the cells of a map stand for, and more words, in lines that fit.

        `masked` says that a map has cells that a query may not see.
        """
        parts = self._swatches(ink, masked) if self.mode == "color" else self._ramp(ink)
        return flow([*parts, *(Text(words, "dim") for words in more)], self.width)

    def _swatches(self, ink: Ink, masked: bool) -> list[Text]:
        """Colours with their numbers."""
        parts: list[Text] = []
        for brightness in _SIGNED_SWATCHES if ink.signed else _SWATCHES:
            number = ink.value(brightness)
            swatch = ("██", Style(color=ink.color(number, self.colors)))
            name = "" if parts else f"{ink.name}: "
            parts.append(Text.assemble((name, "dim"), swatch, (f" {bare(number)}", "dim")))
        return parts + [Text("blank: masked", "dim")] * masked

    def _ramp(self, ink: Ink) -> list[Text]:
        """Glyphs with the numbers that they begin and end at."""
        ramp = _GLYPHS if self.mode == "glyphs" else _ASCII
        bounds = [bare(bound * ink.most) for bound in BOUNDS[ink.scale]]
        parts = [f"{ink.name}: blank <{bounds[0]}"]
        parts += [f"{glyph} <{bound}" for glyph, bound in zip(ramp[1:], bounds[1:], strict=False)]
        parts.append(f"{ramp[-1]} more")
        parts += [f"below 0: - and, from {bounds[3]}, ="] if ink.signed else []
        return [Text(part, "dim") for part in parts]

    def ellipsis(self) -> str:
        """The mark of something cut off."""
        return "~" if self.mode == "ascii" else "…"


def draw_map(
    numbers: FloatArray,
    canvas: Canvas,
    ink: Ink = WEIGHT_INK,
    *,
    cell_width: int = 1,
    halves: bool = False,
) -> list[Text]:
    """A map [R, K] as lines of text; NaN cells stay blank.

    With `halves` in colour, two rows share a line, so that cells are nearly square.
    """
    if canvas.mode != "color":
        return [Text(_glyph_row(row, canvas, ink, cell_width)) for row in numbers]
    if not halves:
        return [_color_row(row, None, canvas, ink, cell_width) for row in numbers]
    blank = np.full((len(numbers) % 2, numbers.shape[1]), np.nan, np.float32)
    padded = np.concatenate([numbers, blank])
    pairs = zip(padded[::2], padded[1::2], strict=True)
    return [_color_row(upper, lower, canvas, ink, cell_width) for upper, lower in pairs]


def draw_level(value: float, canvas: Canvas) -> Text:
    """One number in 0..1 as one cell; NaN as a space."""
    if np.isnan(value):
        return Text(" ")
    levels = _ASCII_LEVELS if canvas.mode == "ascii" else _LEVELS
    cell = levels[min(int(np.clip(value, 0, 1) * len(levels)), len(levels) - 1)]
    color = FRACTION_INK.color(value, canvas.colors) if canvas.mode == "color" else None
    return Text(cell, Style(color=color))


def draw_bar(value: float, canvas: Canvas, width: int) -> str:
    """A bar for a number in 0..1, padded to `width`."""
    return ("#" if canvas.mode == "ascii" else "█") * round(value * width)


def pool_map(numbers: FloatArray, factor: int, how: Pool = "max") -> FloatArray:
    """Pool rows and columns of a causal map; NaN counts as nothing, unless a whole cell is NaN.

    By the greatest number either side of 0, where spikes stay visible, or by the mean.
    """
    if factor == 1:
        return numbers
    by_row = pool(numbers, np.arange(0, len(numbers), factor), 0, how)
    return pool(by_row, np.arange(0, numbers.shape[1], factor), 1, how)


def pool_factor(count: int, room: int) -> int:
    """How many neighbours share a cell, so that `count` of them fit."""
    return max(1, math.ceil(count / room))


def pool(
    numbers: FloatArray, starts: npt.NDArray[np.int64], axis: int, how: Pool = "max"
) -> FloatArray:
    """Pool the stretches of an axis that begin at `starts`."""
    if how == "mean":
        visible = ~np.isnan(numbers)
        total = np.add.reduceat(np.where(visible, numbers, 0), starts, axis=axis)
        n_visible = np.add.reduceat(visible, starts, axis=axis, dtype=np.int64)
        nothing = np.full(total.shape, np.nan, np.float32)
        return np.divide(total, n_visible, out=nothing, where=n_visible > 0)
    most = np.fmax.reduceat(numbers, starts, axis=axis)
    least = np.fmin.reduceat(numbers, starts, axis=axis)
    return np.where(-least > most, least, most)


def causal(weights: FloatArray, *, first: int = 0) -> FloatArray:
    """The map with NaN where query first + i cannot see key j > first + i."""
    rows, columns = weights.shape
    hidden = np.arange(columns) > np.arange(first, first + rows)[:, None]
    return np.where(hidden, np.float32(np.nan), weights)


def token_label(token: bytes, canvas: Canvas, width: int) -> str:
    """A token's bytes as exactly `width` cells that no terminal can misread.

    Leading spaces show as ␣, line ends as ⏎, other controls escaped, broken characters as their
    bytes.
    """
    text = "".join(_visible(character, canvas) for character in _decode(token))
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + canvas.ellipsis()
    return set_cell_size(text, width)


def name_label(token: int, names: Mapping[int, bytes], canvas: Canvas, width: int) -> str:
    """A token that may be outside the text as `width` cells: by its bytes, else by its id."""
    return token_label(names.get(token, f"id {token}".encode()), canvas, width)


def quoted(token: int, names: Mapping[int, bytes], canvas: Canvas) -> str:
    """A token as a word of a sentence, between quotation marks."""
    return f"'{name_label(token, names, canvas, TOKEN_CELLS).strip()}'"


def _decode(token: bytes) -> list[str]:
    try:
        return list(token.decode())
    except UnicodeDecodeError:
        return ["<" + " ".join(f"{byte:02X}" for byte in token) + ">"]


def _visible(character: str, canvas: Canvas) -> str:
    if len(character) > 1:  # bytes, written out already
        return character
    if canvas.mode == "ascii":
        if character.isascii() and character.isprintable():
            return "_" if character == " " else character
        return picture(character)
    if character in " \n\t":
        return {" ": "␣", "\n": "⏎", "\t": "⇥"}[character]
    # More than `visible` writes out: in a cell of its own a joiner joins nothing, a space cannot be
    # seen, and a combining mark would hang on the cell before.
    if unicodedata.category(character)[0] in "CZM" or unicodedata.combining(character):
        return picture(character)
    return character


def bare(number: float) -> str:
    """Shorten a number: 0.05 -> .05, -0.44 -> -.44, 0.00001 -> 1e-5."""
    text = f"{number + 0.0:.2g}".replace("e-0", "e-").replace("e+0", "e")  # + 0: no -0
    return text.replace("0.", ".", 1) if abs(number) < 1 else text


def _glyph_row(row: FloatArray, canvas: Canvas, ink: Ink, cell_width: int) -> str:
    ramp = _GLYPHS if canvas.mode == "glyphs" else _ASCII
    cells = (
        " " if math.isnan(number) else (_NEGATIVE if number < 0 else ramp)[ink.level(number)]
        for number in row.tolist()
    )
    return "".join(cell * cell_width for cell in cells)


def _color_row(
    upper: FloatArray, lower: FloatArray | None, canvas: Canvas, ink: Ink, cell_width: int
) -> Text:
    text = Text()
    below_all = [math.nan] * len(upper) if lower is None else lower.tolist()
    for number, below in zip(upper.tolist(), below_all, strict=True):
        above_color, below_color = (
            None if math.isnan(one) else ink.color(one, canvas.colors) for one in (number, below)
        )
        if lower is None:
            text.append(" " * cell_width, Style(bgcolor=above_color))
        elif above_color is None:
            text.append(
                (" " if below_color is None else "▄") * cell_width, Style(color=below_color)
            )
        else:
            text.append("▀" * cell_width, Style(color=above_color, bgcolor=below_color))
    return text
