"""Text that arrives in pieces, broken into lines between words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import groupby

from rich.cells import cell_len

_TAB = 8

Paint = Callable[[str], str]  # text without line ends to the same text in colour


class WordWrap:
    """Breaks a text at spaces before the words that a line has no room for.

    Spaces and the last word of a piece are held back until the next piece shows whether the word
    goes on. A word longer than a line stays whole, for the terminal to break. The pieces of a text
    give the same lines however it is cut:

    >>> wrap = WordWrap()
    >>> wrap.feed("the cat s", 8) + wrap.feed("at", 8) + wrap.end(8)
    'the cat\\nsat'
    """

    def __init__(self) -> None:
        self._column = 0
        self._gap = ""  # the spaces before the word
        self._word = ""

    def feed(self, text: str, width: int) -> str:
        """The part of the text so far that can be written now, on lines of `width` columns."""
        return "".join(self._take(character, width) for character in text)

    def end(self, width: int) -> str:
        """The rest of the text, where no more comes."""
        rest = self._flush(width) + self._gap
        self._column += cell_len(self._gap)
        self._gap = ""
        return rest

    def _take(self, character: str, width: int) -> str:
        if character == "\n":
            done = self._flush(width) + "\n"
            self._column, self._gap = 0, ""
            return done
        if character in " \t":
            done = self._flush(width)
            self._gap += character
            return done
        if cell_len(character) == 2:  # Chinese and Japanese break between any two
            done = self._flush(width)
            self._word = character
            return done + self._flush(width)
        self._word += character
        return ""

    def _flush(self, width: int) -> str:
        """The word, behind its spaces or on a line of its own."""
        if not self._word:
            return ""
        gap = self._gap.replace("\t", " " * _TAB)
        n_cells = cell_len(self._word)
        if self._column and self._column + len(gap) + n_cells > width:
            done = "\n" + self._word
            self._column = n_cells
        else:
            done = self._gap + self._word
            self._column += len(gap) + n_cells
        if self._column > width:  # broken by the terminal
            self._column %= width
        self._gap = self._word = ""
        return done


class PaintedWrap:
    """A WordWrap whose pieces have colours; a word of several pieces keeps those of each."""

    def __init__(self) -> None:
        self._wrap = WordWrap()
        self._waiting: deque[tuple[str, Paint | None]] = deque()  # characters not yet written

    def feed(self, text: str, width: int, paint: Paint | None = None) -> str:
        """The part of the text so far that can be written now, on lines of `width` columns."""
        self._waiting.extend((character, paint) for character in text)
        return self._colored(self._wrap.feed(text, width))

    def end(self, width: int) -> str:
        """The rest of the text, where no more comes."""
        return self._colored(self._wrap.end(width))

    def _colored(self, lines: str) -> str:
        """Characters that come out of the wrap, each painted as it went in."""
        done = [self._next(character) for character in lines]
        return "".join(
            "".join(character for character, _ in run) if paint is None
            else paint("".join(character for character, _ in run))
            for paint, run in groupby(done, key=lambda each: each[1])
        )  # fmt: skip

    def _next(self, character: str) -> tuple[str, Paint | None]:
        """A character of the lines, and its paint; a line end may stand in the place of spaces."""
        waiting = self._waiting
        if character != "\n":
            return waiting.popleft()
        while waiting and waiting[0][0] in " \t":
            waiting.popleft()
        if waiting and waiting[0][0] == "\n":
            waiting.popleft()
        return "\n", None
