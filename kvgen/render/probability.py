"""New tokens by their probability: as a coloured background, or as a number behind each."""

from __future__ import annotations

from rich.color import Color, ColorSystem
from rich.style import Style
from rich.text import Text

from kvgen.render.canvas import Canvas, bare
from kvgen.render.ink import Ink

PROBABILITY_INK = Ink(name="probability", scale="linear")
_BRIGHT = 110  # from this luminance (0 to 255) on, black letters are read better than white ones
_BLACK, _WHITE = Color.from_ansi(16), Color.from_ansi(231)


def painted(text: str, probability: float, canvas: Canvas) -> str:
    """Visible text without line ends on the colour of a probability, as escape sequences."""
    background = PROBABILITY_INK.color(probability, canvas.colors)
    red, green, blue = background.get_truecolor()
    bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue >= _BRIGHT
    style = Style(color=_BLACK if bright else _WHITE, bgcolor=background)
    system = ColorSystem.TRUECOLOR if canvas.colors == "truecolor" else ColorSystem.EIGHT_BIT
    return style.render(text, color_system=system)


def marked(text: str, probability: float) -> str:
    """The text with a probability in square brackets behind it, before its line ends.

    marked(" cat", 0.25) is " cat[.25]".
    """
    body = text.rstrip("\r\n")
    return f"{body}[{bare(probability)}]{text[len(body) :]}"


def probability_legend(canvas: Canvas) -> Text:
    """What the colours or the numbers of new tokens mean."""
    if canvas.mode == "color":
        return canvas.legend(PROBABILITY_INK, "before any sampling filter", masked=False)
    return Text("in square brackets: the probability of each new token before any sampling filter")
