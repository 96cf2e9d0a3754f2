"""Where a picture is drawn, and how numbers become cells of it."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.style import Style
from rich.text import Text

from kvgen.engine.tensors import FloatArray
from kvgen.visible import picture

Mode = Literal["color", "glyphs", "ascii"]
Scale = Literal["sqrt", "linear", "log"]
Pool = Literal["max", "mean"]
TOKEN_CELLS = 10  # room for a token where it names a row

_GLYPHS, _ASCII = " ·░▒▓█", " .:+#@"
_NEGATIVE = " ---=="
# A glyph stands for numbers below its bound, as a part of the greatest.
_BOUNDS: dict[Scale, tuple[float, ...]] = {
    "sqrt": (0.01, 0.05, 0.15, 0.35, 0.65),
    "linear": (0.1, 0.3, 0.5, 0.7, 0.9),
    "log": (1e-4, 1e-3, 0.01, 0.1, 0.5),
}
_DECADES = 5  # that a logarithmic scale shows in colour
_LEVELS = "·▁▂▃▄▅▆▇█"
_ASCII_LEVELS = ".123456789"
# Viridis, sampled evenly (Smith & van der Walt, matplotlib): perceptually uniform.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142),
        (31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37),
    ]
)  # fmt: skip


# Blue below nothing, orange above it, dark between.
_BELOW, _NOTHING, _ABOVE = np.array([(70, 150, 255), (24, 24, 28), (255, 150, 40)])


@dataclass(frozen=True, slots=True)
class Ink:
    """How a number of a map becomes a cell: by its part of the greatest one, on a scale."""

    name: str = "weight"
    scale: Scale = "sqrt"
    most: float = 1.0  # what is as bright as can be
    signed: bool = False  # numbers may be negative, down to -most

    def brightness(self, value: float) -> float:
        """0 for nothing to 1 for `most` and more; below 0 for what is negative."""
        part = min(abs(value) / self.most, 1.0) if self.most > 0 else 0.0
        if self.scale == "sqrt":
            part = math.sqrt(part)
        elif self.scale == "log":
            part = max(0.0, 1 + math.log10(part) / _DECADES) if part > 0 else 0.0
        return -part if value < 0 else part

    def step(self, value: float) -> int:
        """Which of the six glyphs stands for a number's size."""
        part = abs(value) / self.most if self.most > 0 else 0.0
        return sum(part >= bound for bound in _BOUNDS[self.scale])

    def color(self, value: float) -> Color:
        """The colour of a number."""
        level = self.brightness(value)
        if not self.signed:
            return _viridis(level)
        far = _BELOW if level < 0 else _ABOVE
        return _rgb(_NOTHING + abs(level) * (far - _NOTHING))


WEIGHT_INK = Ink()


@dataclass(frozen=True, slots=True)
class Canvas:
    """The width in columns, and whether cells are colours, block glyphs or ASCII."""

    width: int
    mode: Mode

    def legend(self, ink: Ink = WEIGHT_INK) -> str:
        """What the cells of a map mean."""
        if self.mode == "color":
            scale = {"sqrt": "a square-root", "linear": "a linear", "log": "a logarithmic"}
            low = f"-{ink.most:.3g} blue, 0 dark, {ink.most:.3g} orange" if ink.signed else (
                f"0 dark to {ink.most:.3g} bright"
            )  # fmt: skip
            return f"{ink.name}: {low}, on {scale[ink.scale]} scale"
        ramp = _GLYPHS if self.mode == "glyphs" else _ASCII
        bounds = [_bare(bound * ink.most) for bound in _BOUNDS[ink.scale]]
        parts = [f"{glyph} <{bound}" for glyph, bound in zip(ramp[1:], bounds[1:], strict=False)]
        below = [f"below 0: - and, from {bounds[3]}, ="] if ink.signed else []
        return "  ".join([f"{ink.name}: blank <{bounds[0]}", *parts, f"{ramp[-1]} more", *below])

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
        return [_color_row(row, None, ink, cell_width) for row in numbers]
    blank = np.full((len(numbers) % 2, numbers.shape[1]), np.nan, np.float32)
    padded = np.concatenate([numbers, blank])
    pairs = zip(padded[::2], padded[1::2], strict=True)
    return [_color_row(upper, lower, ink, cell_width) for upper, lower in pairs]


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
        seen = ~np.isnan(numbers)
        total = np.add.reduceat(np.where(seen, numbers, 0), starts, axis=axis)
        n_seen = np.add.reduceat(seen, starts, axis=axis, dtype=np.int64)
        nothing = np.full(total.shape, np.nan, np.float32)
        return np.divide(total, n_seen, out=nothing, where=n_seen > 0)
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
    # Beyond what acts on a terminal: in a cell of its own a joiner joins nothing, a space is not
    # seen, and a mark that combines would hang on the cell before.
    if unicodedata.category(character)[0] in "CZM" or unicodedata.combining(character):
        return picture(character)
    return character


def _bare(number: float) -> str:
    """A bound without what can be done without: .05, 1.5e-4, 12."""
    text = f"{number:.2g}"
    return text[1:] if text.startswith("0.") else text.replace("e-0", "e-").replace("e+0", "e")


def _glyph_row(row: FloatArray, canvas: Canvas, ink: Ink, cell_width: int) -> str:
    ramp = _GLYPHS if canvas.mode == "glyphs" else _ASCII
    cells = (
        " " if math.isnan(number) else (_NEGATIVE if number < 0 else ramp)[ink.step(number)]
        for number in row.tolist()
    )
    return "".join(cell * cell_width for cell in cells)


def _color_row(upper: FloatArray, lower: FloatArray | None, ink: Ink, cell_width: int) -> Text:
    text = Text()
    below_all = [math.nan] * len(upper) if lower is None else lower.tolist()
    for number, below in zip(upper.tolist(), below_all, strict=True):
        above_color, below_color = (
            None if math.isnan(one) else ink.color(one) for one in (number, below)
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


def _viridis(value: float) -> Color:
    place = float(np.clip(value, 0, 1)) * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    return _rgb(_VIRIDIS[low] + (place - low) * (_VIRIDIS[low + 1] - _VIRIDIS[low]))


def _rgb(channels: npt.NDArray[np.float64]) -> Color:
    red, green, blue = np.rint(channels).astype(int).tolist()
    return Color.from_rgb(red, green, blue)
