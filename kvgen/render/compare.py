"""Two saved benchmarks side by side."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from kvgen.bench.compare import ReportComparison
from kvgen.render.layout import stacked_tables
from kvgen.visible import one_line

_COLUMNS = ("test", "cache", "dtype", "backend", "threads", "A tok/s", "B tok/s", "B/A")


def comparison_view(comparison: ReportComparison, *, names: tuple[str, str]) -> RenderableType:
    """Each test that both reports have: medians, ratio, and whether the samples overlap."""
    rows: list[dict[str, str | Text]] = []
    for row in comparison.tests:
        # A file from elsewhere may hold any text here.
        key = {name: one_line(f"{value}") for name, value in row.key._asdict().items()}
        rows.append(
            {
                "test": Text(key["test"] + (f" @ d{row.key.depth}" if row.key.depth else "")),
                "cache": Text(key["cache"]),
                "dtype": Text(f"{key['dtype']}+{key['cache_dtype']}"),
                "backend": Text(key["backend"]),
                "threads": Text(key["threads"]),
                "A tok/s": f"{row.one.median:,.1f}",
                "B tok/s": f"{row.other.median:,.1f}",
                "B/A": f"{row.ratio:.3f}",
                "spread": "beyond the spread" if row.beyond_spread else "within the spread",
            }
        )
    lines = [f"A: {names[0]}", f"B: {names[1]}"]
    if comparison.only_one or comparison.only_other:
        lines.append(
            f"tests without a partner: {comparison.only_one} in A, {comparison.only_other} in B"
        )
    lines += [f"differs  {difference}" for difference in comparison.differences]
    return Group(*(Text(one_line(line)) for line in lines), Text(), _Tables(tuple(rows)))


@dataclass(frozen=True, slots=True)
class _Tables:
    """The rows of a comparison as tables that fit the console that they are drawn on."""

    rows: tuple[dict[str, str | Text], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One table, or several below each other where its columns do not fit."""
        yield from stacked_tables(
            {name: name for name in _COLUMNS} | {"spread": ""},
            self.rows,
            width=options.max_width,
            keys=_COLUMNS[:5],
            words=(*_COLUMNS[:4], "spread"),
        )
