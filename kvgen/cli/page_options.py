"""The options of a page: how much goes into it, and whether to open it."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import NamedTuple

import click

from kvgen.choices import Detail, names
from kvgen.cli.command import OneOf
from kvgen.cli.options import bundle


class PageFlags(NamedTuple):
    """How much goes into a page, and whether to open it."""

    detail: Detail
    max_size: int  # bytes
    opens: bool

    def given(self) -> list[str]:
        """The options that differ from their defaults."""
        usual = PageFlags("auto", 32 * 2**20, False)
        options = ("--detail", "--max-size", "--open")
        return [
            name for name, value, other in zip(options, self, usual, strict=True) if value != other
        ]


open_option = click.option(
    "--open", "opens", is_flag=True, help="With -o FILE.html: open it in the browser."
)
page_options = bundle(
    PageFlags,
    "page",
    click.option(
        "--detail",
        type=OneOf(names(Detail)),
        default="auto",
        show_default=True,
        help="With -o FILE.html: q, k and v of every layer, maps alone, or as much as keeps the "
        "page small (in full the layers of -l, else those that rest least on the first token).",
    ),
    click.option(
        "--max-size",
        type=click.IntRange(1, 1000),
        default=32,
        show_default=True,
        help="With -o FILE.html: how many MiB it may have.",
        callback=lambda _, __, value: value * 2**20,
    ),
    open_option,
)


def open_page(path: str) -> None:
    """Show a page that has been written in the browser."""
    webbrowser.open(Path(path).resolve().as_uri())
