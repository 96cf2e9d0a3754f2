"""How a number of a map becomes a cell: a colour of a palette, or a level of a glyph ramp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from rich.color import Color

from kvgen.choices import Scale

Colors = Literal["truecolor", "256"]

# A glyph stands for numbers below its bound, as a fraction of the greatest.
BOUNDS: dict[Scale, tuple[float, ...]] = {
    "sqrt": (0.01, 0.05, 0.15, 0.35, 0.65),
    "linear": (0.1, 0.3, 0.5, 0.7, 0.9),
    "log": (1e-4, 1e-3, 0.01, 0.1, 0.5),
}
_DECADES = 5  # powers of ten on a logarithmic colour scale
# Viridis, sampled evenly (Smith & van der Walt, matplotlib): perceptually uniform.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142),
        (31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37),
    ]
)  # fmt: skip
# Blue for negative numbers, orange for positive ones, dark between.
_NEGATIVE, _ZERO, _POSITIVE = np.array([(70, 150, 255), (24, 24, 28), (255, 150, 40)])
# The same two scales in colours of xterm's cube, which has six levels of red, green and blue.
# Chosen by hand: the nearest colours of the cube to viridis change in hue and brightness to and
# fro. Here lightness only grows (CIE L* 21 to 97; from zero's 15 to 81 and 77).
SEQUENTIAL_256: tuple[int, ...] = (53, 54, 55, 25, 31, 36, 41, 113, 149, 191, 227)
NEGATIVE_256 = (235, 24, 26, 32, 39, 81)
POSITIVE_256 = (235, 94, 130, 172, 208, 214)


@dataclass(frozen=True, slots=True)
class Ink:
    """How a number of a map is drawn: by its fraction of the greatest one, on a scale."""

    name: str = "weight"
    scale: Scale = "sqrt"
    most: float = 1.0  # the number drawn at full brightness
    signed: bool = False  # numbers may be negative, down to -most

    def brightness(self, value: float) -> float:
        """0 for zero to 1 for `most` and more; negative for negative numbers."""
        part = min(abs(value) / self.most, 1.0) if self.most > 0 else 0.0
        if self.scale == "sqrt":
            part = math.sqrt(part)
        elif self.scale == "log":
            part = max(0.0, 1 + math.log10(part) / _DECADES) if part > 0 else 0.0
        return -part if value < 0 else part

    def value(self, brightness: float) -> float:
        """The number drawn at a brightness of -1 to 1; on a logarithmic scale 0 for 0."""
        part = abs(brightness)
        if self.scale == "sqrt":
            part *= part
        elif self.scale == "log":
            part = 10 ** (_DECADES * (part - 1)) if part > 0 else 0.0
        return math.copysign(part * self.most, brightness)

    def level(self, value: float) -> int:
        """Which of the six glyphs stands for a number's size."""
        part = abs(value) / self.most if self.most > 0 else 0.0
        return sum(part >= bound for bound in BOUNDS[self.scale])

    def color(self, value: float, colors: Colors = "truecolor") -> Color:
        """The colour of a number, one of xterm's 256 where there are no more."""
        brightness = self.brightness(value)
        if colors == "256":
            palette = SEQUENTIAL_256
            if self.signed:
                palette = NEGATIVE_256 if brightness < 0 else POSITIVE_256
            return Color.from_ansi(palette[round(abs(brightness) * (len(palette) - 1))])
        if not self.signed:
            return _viridis(abs(brightness))
        far = _NEGATIVE if brightness < 0 else _POSITIVE
        return _rgb(_ZERO + abs(brightness) * (far - _ZERO))


WEIGHT_INK = Ink()
FRACTION_INK = Ink(name="fraction", scale="linear")


def _viridis(brightness: float) -> Color:
    place = brightness * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    return _rgb(_VIRIDIS[low] + (place - low) * (_VIRIDIS[low + 1] - _VIRIDIS[low]))


def _rgb(channels: npt.NDArray[np.float64]) -> Color:
    red, green, blue = np.rint(channels).astype(int).tolist()
    return Color.from_rgb(red, green, blue)
