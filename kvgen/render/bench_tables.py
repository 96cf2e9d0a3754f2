"""The tables of a benchmark: rates, time by position, rows that were computed and read."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from kvgen.bench.ledger import Counts, Ledger, StepCount
from kvgen.bench.report import Arm, BenchReport, Run, spread
from kvgen.render.bench_files import rows_of
from kvgen.render.canvas import Canvas, draw_level
from kvgen.render.layout import flow, stacked_tables

_TABLE_ROWS = 8
# Columns of a picture at most and at least, of its name, and of the words beside it.
_PICTURE, _SMALLEST_PICTURE, _PICTURE_NAME, _PICTURE_TEXT = 50, 20, 11, 47
_WORDS = ("test", "cache", "dtype", "kv", "backend")


def traits(run: Run) -> dict[str, str]:
    """The settings that may differ from run to run."""
    return {
        "dtype": run.dtype,
        "kv": run.cache_dtype,
        "backend": run.backend,
        "threads": f"{run.threads}",
    }


def varying(report: BenchReport) -> list[str]:
    """The names of the settings that do differ."""
    of_runs = [traits(run) for run in report.runs]
    return [name for name in of_runs[0] if len({one[name] for one in of_runs}) > 1]


def times_slower(run: Run) -> float:
    """How many times as long the decode steps take without the cache, by medians."""
    on, off = run.arm("on"), run.arm("off")
    assert on is not None and off is not None
    return median(map(sum, off.step_seconds)) / median(map(sum, on.step_seconds))


class Rows(NamedTuple):
    """A table's rows as text, by the keys of its headings."""

    headings: dict[str, str]
    rows: list[dict[str, str]]
    title: str = ""


def rates(report: BenchReport, width: int, *, details: bool) -> list[RenderableType]:
    """Tokens per second of every test; with details also predictions and positions."""
    table = rate_rows(report, details=details)
    keys = ("test", "cache", *varying(report))
    return stacked_tables(table.headings, table.rows, width=width, keys=keys, words=_WORDS)


def rate_rows(report: BenchReport, *, details: bool) -> Rows:
    """The rows of `rates`."""
    differing = varying(report)
    rows = []
    for row in rows_of(report):
        run = row.run
        cells = {
            "test": row.title,
            "cache": row.arm.name,
            "tok/s": f"{spread(row.rates).median:,.1f}",
            "min..max": f"{min(row.rates):,.1f}..{max(row.rates):,.1f}",
            "predicted": f"{_predicted_rate(run, row.arm, prefill=row.is_prefill):,.1f}",
            "positions run": f"{row.positions:,}",
        }
        if row.arm.name == "off" and run.arm("on") is not None:
            cells["times slower"] = f"{times_slower(run):.1f}"
        rows.append(cells | {name: traits(run)[name] for name in differing})
    names = ["test", "cache", *differing, "tok/s", "min..max"]
    names += ["predicted", "positions run"] if details else []
    names += ["times slower"] if any("times slower" in row for row in rows) else []
    return Rows({name: name for name in names}, rows)


def rates_legend(report: BenchReport, width: int, *, details: bool) -> Text:
    """The meaning of the names of tests and columns."""
    terms = rate_terms(report, details=details)
    parts = [Text(f"{name}: {meaning}", "dim") for name, meaning in terms.items()]
    return flow(parts, width, between=" · ")


def rate_terms(report: BenchReport, *, details: bool) -> dict[str, str]:
    """The meaning of each name of a test or a column."""
    terms: dict[str, str] = {}
    for row in rows_of(report):
        work = row.run.workload
        if row.is_prefill:
            after = f" after {work.depth:,}" if work.depth else ""
            terms[row.title] = f"prefill, {work.n_prompt:,} tokens at once{after}"
        else:
            terms[row.title] = f"{work.n_gen:,} decode steps after {work.length:,} tokens"
    if len(terms) > 2:
        terms = {
            "ppN": "prefill, N tokens at once",
            "tgN": "N decode steps",
            "@ dM": "after M tokens",
        }
    if details:
        terms |= {
            "predicted, pred.": "by bytes, operations and this machine's speed",
            "positions run": "by the decode steps of one pass",
        }
    if any(run.arm("on") is not None and run.arm("off") is not None for run in report.runs):
        terms["times slower"] = "a token without the cache"
    return terms


def _predicted_rate(run: Run, arm: Arm, *, prefill: bool) -> float:
    work = run.workload
    if prefill:
        return work.n_prompt / run.predicted_prefill()
    steps = range(work.n_gen)
    return work.n_gen / sum(run.predicted_step(arm.name, step) for step in steps)


def by_position(run: Run, width: int) -> list[RenderableType]:
    """Milliseconds per token at some positions, measured and predicted, in every arm."""
    n_gen = run.workload.n_gen
    some = np.linspace(0, n_gen - 1, min(n_gen, _TABLE_ROWS)).round().astype(int)
    table = position_rows(run, np.unique(some).tolist())
    return stacked_tables(
        table.headings, table.rows, width=width, keys=("position",), title=table.title
    )


def position_rows(run: Run, steps: Iterable[int]) -> Rows:
    """The rows of `by_position` for these decode steps."""
    on, off = run.arm("on"), run.arm("off")
    headings = {"position": "position"}
    for arm in run.arms:
        headings |= {arm.name: arm.name, f"{arm.name} predicted": "pred."}
    headings |= {"ratio": "times slower"} if on is not None and off is not None else {}
    work, rows = run.workload, []
    for step in steps:
        cells = {"position": f"{work.length + step:,}"}
        for arm in run.arms:
            cells[arm.name] = f"{1e3 * arm.median_step(step):.2f}"
            predicted = run.predicted_step(arm.name, step)
            cells[f"{arm.name} predicted"] = f"{1e3 * predicted:.2f}"
        if on is not None and off is not None:
            cells["ratio"] = f"{off.median_step(step) / on.median_step(step):.1f}"
        rows.append(cells)
    return Rows(headings, rows, "ms/token by position")


def ledger_picture(ledger: Ledger, canvas: Canvas, *, shown: bool) -> list[Text]:
    """How often each position's row was read, or computed, as bars from left to right."""
    beside = canvas.width - _PICTURE_NAME - _PICTURE_TEXT >= _SMALLEST_PICTURE
    room = canvas.width - _PICTURE_NAME - (_PICTURE_TEXT if beside else 0)
    columns = min(len(ledger.reads_of_keys), _PICTURE, room)
    lines = []
    for name, of_rows, scale, words in ledger_strips(ledger, shown=shown):
        line = Text(name.ljust(_PICTURE_NAME))
        for part in np.array_split(of_rows, columns):
            line.append_text(draw_level(float(part.max()) / (scale + 1), canvas))
        line.append("  " if beside else "\n" + " " * _PICTURE_NAME)
        lines.append(line.append(words))
    return lines


class LedgerStrip(NamedTuple):
    """How often each position's row was read, or computed."""

    name: str
    of_rows: Counts  # [S]
    most: int  # of what is drawn at full height
    words: str


def ledger_strips(ledger: Ledger, *, shown: bool) -> list[LedgerStrip]:
    """Counts of K, V and Q by position, and of rows computed where the uncached arm is shown."""
    greatest = int(ledger.reads_of_keys.max())
    counts = [
        ("K read", ledger.reads_of_keys, greatest, "queries, its own and each later one"),
        ("V read", ledger.reads_of_values, greatest, "queries, its own and each later one"),
        ("Q read", ledger.reads_of_queries, greatest, "step, the one that computed it"),
    ]
    if shown:
        times = int(ledger.recomputed.max())
        counts.append(("computed", ledger.recomputed, times, "times without the cache"))
    strips = []
    for name, of_rows, scale, words in counts:
        most, fewest = int(of_rows.max()), int(of_rows.min())
        times_each = f"{most:,}" if most == fewest else f"{most:,} to {fewest:,}"
        strips.append(LedgerStrip(name, of_rows, scale, f"{times_each} {words}"))
    return strips


def ledger_table(ledger: Ledger, width: int, *, shown: bool) -> list[RenderableType]:
    """Rows that the counted steps computed, kept and read, with and without the cache."""
    table = ledger_rows(ledger, shown=shown)
    return stacked_tables(
        table.headings,
        table.rows,
        width=width,
        keys=("cache", "step"),
        words=_WORDS,
        title=table.title,
    )


def ledger_rows(ledger: Ledger, *, shown: bool) -> Rows:
    """The rows of `ledger_table`."""
    rows = []
    arms: list[tuple[str, tuple[StepCount, ...]]] = [("on", ledger.on)]
    arms += [("off", ledger.off)] if shown else []
    for cache, steps in arms:
        for number, count in enumerate(steps):
            rows.append(
                {
                    "cache": cache,
                    "step": f"{number + 1}",
                    "computed": f"{count.computed:,} each",
                    "recomputed": f"{count.recomputed:,}",
                    "K read": f"{count.keys_read:,}",
                    "V read": f"{count.values_read:,}",
                    "Q read": f"{count.queries_read:,}",
                    "kept K": f"{count.kept_keys_read:,}",
                    "kept V": f"{count.kept_values_read:,}",
                    "kept Q": f"{count.kept_queries_read:,}",
                }
            )
    headings = {name: name for name in rows[0]} if rows else {}
    title = f"rows in layer {ledger.layer}; kept: of those read, rows that an earlier step computed"
    return Rows(headings, rows, title)
