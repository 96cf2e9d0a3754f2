"""Where a picture is drawn, and how numbers become cells of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.style import Style
from rich.text import Text

from kvgen.tensors import FloatArray

Mode = Literal["color", "glyphs", "ascii"]
TOKEN_CELLS = 10  # room for a token where it names a row

# A glyph stands for weights below its bound.
_GLYPHS = ((" ", 0.01), ("·", 0.05), ("░", 0.15), ("▒", 0.35), ("▓", 0.65), ("█", 2.0))
_ASCII = ((" ", 0.01), (".", 0.05), (":", 0.15), ("+", 0.35), ("#", 0.65), ("@", 2.0))
_LEVELS = "·▁▂▃▄▅▆▇█"
_ASCII_LEVELS = ".123456789"
# Viridis, sampled evenly (Smith & van der Walt, matplotlib): perceptually uniform.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142),
        (31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Canvas:
    """The width in columns, and whether cells are colours, block glyphs or ASCII."""

    width: int
    mode: Mode

    def legend(self) -> str:
        """What the cells of a map mean."""
        if self.mode == "color":
            return "weight: 0 dark to 1 bright, on a square-root scale"
        ramp = _GLYPHS if self.mode == "glyphs" else _ASCII
        bounds = [f"{glyph} <{bound:.2f}".replace("0.", ".") for glyph, bound in ramp[1:-1]]
        return "  ".join(["weight: blank <.01", *bounds, f"{ramp[-1][0]} more"])

    def ellipsis(self) -> str:
        """The mark of something cut off."""
        return "~" if self.mode == "ascii" else "…"


def draw_map(
    weights: FloatArray, canvas: Canvas, *, cell_width: int = 1, halves: bool = False
) -> list[Text]:
    """A map of weights [R, K] in 0..1 as lines of text; NaN cells stay blank.

    With `halves` in colour, two rows share a line, so that cells are nearly square.
    """
    if canvas.mode != "color":
        return [Text(_glyph_row(row, canvas, cell_width)) for row in weights]
    if not halves:
        return [_color_row(row, None, cell_width) for row in weights]
    blank = np.full((len(weights) % 2, weights.shape[1]), np.nan, np.float32)
    padded = np.concatenate([weights, blank])
    pairs = zip(padded[::2], padded[1::2], strict=True)
    return [_color_row(upper, lower, cell_width) for upper, lower in pairs]


def side_by_side(blocks: Sequence[Sequence[Text]], *, gap: int = 2) -> list[Text]:
    """Blocks of lines next to each other, each padded to its widest line."""
    lines: list[Text] = [Text() for _ in range(max(map(len, blocks), default=0))]
    for number, block in enumerate(blocks):
        width = max((line.cell_len for line in block), default=0)
        last = number == len(blocks) - 1
        for row, line in enumerate(lines):
            cells = block[row] if row < len(block) else Text()
            line.append_text(cells)
            line.append(" " * (0 if last else width - cells.cell_len + gap))
    return lines


def draw_level(value: float, canvas: Canvas) -> Text:
    """One number in 0..1 as one cell; NaN as a space."""
    if np.isnan(value):
        return Text(" ")
    levels = _ASCII_LEVELS if canvas.mode == "ascii" else _LEVELS
    cell = levels[min(int(np.clip(value, 0, 1) * len(levels)), len(levels) - 1)]
    return Text(cell, Style(color=_viridis(value)) if canvas.mode == "color" else Style())


def draw_bar(value: float, canvas: Canvas, width: int) -> str:
    """A bar for a number in 0..1, padded to `width`."""
    return ("#" if canvas.mode == "ascii" else "█") * round(value * width)


def pool_map(weights: FloatArray, factor: int) -> FloatArray:
    """Pool rows and columns of a causal map by the greatest weight: spikes stay visible.

    NaN counts as nothing, unless a whole cell is NaN.
    """
    return _pool(_pool(weights, factor, 0), factor, 1)


def _pool(weights: FloatArray, factor: int, axis: int) -> FloatArray:
    if factor == 1:
        return weights
    starts = np.arange(0, weights.shape[axis], factor)
    return np.asarray(np.fmax.reduceat(weights, starts, axis=axis))


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
        return character.encode("unicode_escape").decode()
    if character in " \n\t":
        return {" ": "␣", "\n": "⏎", "\t": "⇥"}[character]
    # Controls, bidi marks, surrogates, unassigned characters and separators could act on the
    # terminal; marks that combine would hang on the cell before.
    if unicodedata.category(character)[0] in "CZM" or unicodedata.combining(character):
        return character.encode("unicode_escape").decode()
    return character


def _glyph_row(row: FloatArray, canvas: Canvas, cell_width: int) -> str:
    ramp = _GLYPHS if canvas.mode == "glyphs" else _ASCII
    return "".join(
        (" " if np.isnan(weight) else next(glyph for glyph, bound in ramp if weight < bound))
        * cell_width
        for weight in row
    )


def _color_row(upper: FloatArray, lower: FloatArray | None, cell_width: int) -> Text:
    text = Text()
    for column, weight in enumerate(upper):
        below = np.float32(np.nan) if lower is None else lower[column]
        if lower is None:
            text.append(" " * cell_width, Style(bgcolor=_color(weight)))
        elif np.isnan(weight):
            text.append(
                ("▄" if not np.isnan(below) else " ") * cell_width, Style(color=_color(below))
            )
        else:
            text.append("▀" * cell_width, Style(color=_color(weight), bgcolor=_color(below)))
    return text


def _color(weight: np.floating[Any]) -> Color | None:
    return None if np.isnan(weight) else _viridis(float(np.sqrt(np.clip(weight, 0, 1))))


def _viridis(value: float) -> Color:
    place = float(np.clip(value, 0, 1)) * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    red, green, blue = _VIRIDIS[low] + (place - low) * (_VIRIDIS[low + 1] - _VIRIDIS[low])
    return Color.from_rgb(round(red), round(green), round(blue))
