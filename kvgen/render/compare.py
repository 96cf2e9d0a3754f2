"""Two saved benchmarks side by side."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvgen.bench.compare import ReportComparison
from kvgen.visible import one_line


def comparison_view(comparison: ReportComparison, *, names: tuple[str, str]) -> RenderableType:
    """Each test that both reports have: medians, ratio, and whether the samples overlap."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("test", "cache", "dtype", "backend", "threads", "A tok/s", "B tok/s", "B/A", ""):
        words = name in ("test", "cache", "dtype", "backend", "")
        table.add_column(name, justify="left" if words else "right")
    for row in comparison.tests:
        # A file from elsewhere may hold any text here.
        test, depth, cache, dtype, cache_dtype, backend, threads = (
            one_line(f"{part}") if part else "" for part in row.key
        )
        table.add_row(
            f"{test} @ d{depth}" if depth else test,
            cache,
            f"{dtype}+{cache_dtype}",
            backend,
            threads,
            f"{row.one['median']:,.1f}",
            f"{row.other['median']:,.1f}",
            f"{row.ratio:.3f}",
            "beyond the spread" if row.beyond_spread else "within the spread",
        )
    lines = [f"A: {names[0]}", f"B: {names[1]}"]
    if comparison.only_one or comparison.only_other:
        lines.append(
            f"tests without a partner: {comparison.only_one} in A, {comparison.only_other} in B"
        )
    lines += [f"differs  {difference}" for difference in comparison.differences]
    return Group(*(Text(one_line(line)) for line in lines), Text(), table)
