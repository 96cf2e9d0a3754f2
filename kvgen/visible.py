"""Text from elsewhere as a terminal may be given it: what would act on it or hide is written out.

A model's text, a prompt, the name of a file or of a token may hold the bytes that set a terminal's
title, fill its clipboard, go back over what it shows, or turn the direction of reading around
(CWE-150). The maps, the text on a terminal and every message take the same pictures for them.
"""

from __future__ import annotations

import unicodedata

# They make lines, or join letters and emoji as their scripts ask for; none moves anything.
_HARMLESS = "\n\t\u200c\u200d"


def picture(character: str) -> str:
    r"""A character written out, as a Python string literal has it: \x1b, \u202e."""
    return character.encode("unicode_escape").decode()


def visible(text: str) -> str:
    r"""The text with a picture of each character that acts on a terminal or is not to be seen.

    Those are controls but newline and tab (a carriage return too, which would go back over its
    line), format characters such as bidi marks, separators of lines, surrogates, and what Unicode
    gives to nobody. Each is judged alone, so that a text cut into pieces comes out the same. What
    belongs to writing stays: spaces of every width, combining marks, variation selectors, joiners.

    visible("a\x1b[2J") is "a\\x1b[2J".
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        or character in _HARMLESS
        or unicodedata.category(character) == "Zs"
        else picture(character)
        for character in text
    )


def one_line(text: str, *, most: int | None = None) -> str:
    """The text as one visible line; of more than `most` characters the middle is left out."""
    parts = (part.strip(" \t\r").replace("\t", " ") for part in text.split("\n"))
    line = visible(" ".join(filter(None, parts)))
    if most is None or len(line) <= most:
        return line
    return f"{line[: most * 2 // 3]} ... {line[-(most // 4) :]}"
