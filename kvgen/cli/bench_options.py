"""The options of `kvgen bench`, as bundles."""

from __future__ import annotations

from typing import NamedTuple

import click

from kvgen.choices import FIGURES, REPORTS
from kvgen.cli.command import Count
from kvgen.cli.options import Several, bundle
from kvgen.cli.output import Destination, destination
from kvgen.cli.page_options import open_option
from kvgen.errors import UsageError

PROMPT_TOKENS, NEW_TOKENS = 512, 128
REPETITIONS = 5
CHANGED_ROWS = 256
_LIMIT_SECONDS = 600.0
_FORMATS = ("table", "md", "json", "jsonl", "csv")
_IDS_HINT = "in bench -p is a number of ids; give a text as PROMPT or with --prompt"


class WorkFlags(NamedTuple):
    """How much to run; None where no option says it."""

    n_prompt: tuple[int, ...] | None
    n_gen: int | None
    depth: tuple[int, ...] | None
    repetitions: int | None
    warmup: int
    limit: float
    seed: int | None
    changed_rows: int | None


class ArmFlags(NamedTuple):
    """Which arms to run beside the cached one, and which maps to draw."""

    cached_only: bool
    q_cache: bool
    no_baseline: bool
    layer: int | None
    head: int | None
    over: float


class ReportFlags(NamedTuple):
    """What the report says and where it goes, as it was written."""

    details: bool
    output: str | None
    as_json: bool
    out: str | None
    plot: str | None
    opens: bool


class Report(NamedTuple):
    """Where the report goes: a format for stdout, and files beside it."""

    shown: str  # table, md, json, jsonl or csv
    file: Destination | None
    figure: Destination | None
    details: bool
    opens: bool  # the file, which is a page


def report_of(flags: ReportFlags) -> Report:
    """The flags as one Report.

    Raises UsageError where they name two formats or two files, or a file that could not be written.
    """
    stdout: list[Destination] = []
    files: list[Destination] = []
    figures: list[Destination] = []
    if flags.output is not None:
        named = destination(flags.output, formats=_FORMATS, endings=(*REPORTS, *FIGURES))
        kinds = figures if f".{named.kind}" in FIGURES else files
        (stdout if named.path is None else kinds).append(named)
    if flags.out is not None:
        files.append(destination(flags.out, formats=(), endings=REPORTS))
    if flags.plot is not None:
        figures.append(destination(flags.plot, formats=(), endings=FIGURES))
    if flags.as_json and any(named.kind != "json" for named in stdout):
        raise UsageError(f"--json and -o {flags.output} name two formats: give one of them")
    for name, several in (("--out", files), ("--plot", figures)):
        if len(several) > 1:
            raise UsageError(f"-o and {name} name two files: leave out {name}")
    shown = "json" if flags.as_json else stdout[0].kind if stdout else "table"
    file, figure = (each[0] if each else None for each in (files, figures))
    if flags.opens and (file is None or file.kind != "html"):
        raise UsageError("--open is for a page: add -o FILE.html")
    return Report(shown, file, figure, flags.details, flags.opens)


work_options = bundle(
    WorkFlags,
    "work_flags",
    click.option(
        "-p",
        "--n-prompt",
        type=Several(Count(min=1, hint=_IDS_HINT)),
        help="A prompt of this many random ids; a text is PROMPT. [default: a text of "
        f"{PROMPT_TOKENS} tokens, or fewer to take one minute]",
    ),
    click.option(
        "-n",
        "--n-gen",
        type=click.IntRange(min=0),
        help=f"Decode steps; N new tokens of `generate` take N - 1. [default: {NEW_TOKENS}, or "
        "fewer to take one minute]",
    ),
    click.option(
        "-d",
        "--depth",
        type=Several(click.IntRange(min=0)),
        help="Random ids in the cache before the prompt, not timed. [default: 0]",
    ),
    click.option(
        "-r",
        "--repetitions",
        type=click.IntRange(min=1),
        help=f"Timed passes of each arm. [default: {REPETITIONS}, or fewer to take one minute]",
    ),
    click.option(
        "--warmup",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Untimed passes of each arm before the timed ones.",
    ),
    click.option(
        "--limit",
        type=click.FloatRange(min=0, min_open=True),
        default=_LIMIT_SECONDS,
        show_default=True,
        help="Refuse runs expected to take longer than this many seconds.",
    ),
    click.option(
        "-s",
        "--seed",
        type=click.IntRange(min=0),
        help="Seed of the random ids. [default: random, and printed]",
    ),
    click.option(
        "--changed-rows",
        type=click.IntRange(min=0),
        help="Kept rows of K, V and Q to change in each layer, one at a time, with --no-cache or "
        f"--q-cache. [default: {CHANGED_ROWS}, or fewer to take 45 seconds]",
    ),
)
arm_options = bundle(
    ArmFlags,
    "arm_flags",
    click.option(
        "--cache/--no-cache",
        " /--no-kv-cache",
        "cached_only",
        default=True,
        help="--no-cache: measure the same tokens without the KV cache too, and compare.",
    ),
    click.option("--q-cache", is_flag=True, help="Measure an arm that keeps the queries too."),
    click.option("--no-baseline", is_flag=True, help="With --no-cache: leave the cached arm out."),
    click.option("-l", "--layer", type=int, help="With -H: the head whose maps are drawn."),
    click.option("-H", "--head", type=int, help="With -l; both count from 0, -1 is the last."),
    click.option(
        "--over",
        type=click.FloatRange(min=0, min_open=True),
        default=100.0,
        show_default=True,
        help="Report the length from which an uncached token takes more than this many "
        "milliseconds.",
    ),
)
report_options = bundle(
    ReportFlags,
    "report_flags",
    click.option(
        "-o",
        "--output",
        metavar="FORMAT|FILE",
        help=f"What to print: {', '.join(_FORMATS)}; or a file to write beside the table, by its "
        f"ending: {', '.join(REPORTS)}; or {', '.join(FIGURES)} for --plot. [default: table]",
    ),
    click.option(
        "--details",
        is_flag=True,
        help="Print maps, counted rows, predictions and what else was run, too.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as -o json."),
    click.option(
        "--out", metavar="FILE", help="Deprecated: -o FILE; needed only beside -o FORMAT."
    ),
    click.option(
        "--plot",
        metavar="FILE",
        help="Draw time per token by position as .png, .svg or .pdf (extra `plot`).",
    ),
    open_option,
)
