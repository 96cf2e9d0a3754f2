"""The options of `kvgen bench`, as bundles."""

from __future__ import annotations

from typing import NamedTuple

import click

from kvgen.cli.options import Several, bundle

PROMPT_TOKENS, NEW_TOKENS = 512, 128
REPETITIONS = 5
_LIMIT_SECONDS = 600.0


class WorkFlags(NamedTuple):
    """How much to run, as far as it was said."""

    n_prompt: tuple[int, ...] | None
    n_gen: int | None
    depth: tuple[int, ...] | None
    repetitions: int | None
    warmup: int
    limit: float
    seed: int | None


class ArmFlags(NamedTuple):
    """Which arms to run besides the cached one, and what to show of them."""

    cached_only: bool
    q_cache: bool
    no_baseline: bool
    layer: int | None
    head: int | None
    over: float


class ReportFlags(NamedTuple):
    """Where the report goes."""

    output: str
    out: str | None
    plot: str | None


work_options = bundle(
    WorkFlags,
    "work_flags",
    click.option(
        "-p",
        "--n-prompt",
        type=Several(click.IntRange(min=1)),
        help=f"Prompt of so many random ids. [default: a text of {PROMPT_TOKENS} tokens]",
    ),
    click.option(
        "-n",
        "--n-gen",
        type=click.IntRange(min=0),
        help=f"Decode steps. [default: {NEW_TOKENS}]",
    ),
    click.option(
        "-d",
        "--depth",
        type=Several(click.IntRange(min=0)),
        help="Random ids that are there before the prompt, not timed. [default: 0]",
    ),
    click.option(
        "-r",
        "--repetitions",
        type=click.IntRange(min=1),
        help=f"Timed passes of each arm. [default: {REPETITIONS}, or what fits into a minute]",
    ),
    click.option(
        "--warmup",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Passes of each arm before the clock counts.",
    ),
    click.option(
        "--limit",
        type=click.FloatRange(min=0, min_open=True),
        default=_LIMIT_SECONDS,
        show_default=True,
        help="Do not begin what is expected to take more seconds.",
    ),
    click.option(
        "-s",
        "--seed",
        type=click.IntRange(min=0),
        help="For random ids. [default: random, printed]",
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
        help="Measure the same tokens without the KV cache too, and compare.",
    ),
    click.option("--q-cache", is_flag=True, help="Measure an arm that keeps Q as well."),
    click.option("--no-baseline", is_flag=True, help="With --no-cache: no cached arm beside it."),
    click.option("-l", "--layer", type=int, help="With -H: the head whose maps are drawn."),
    click.option("-H", "--head", type=int, help="With -l; both count from 0, -1 is the last."),
    click.option(
        "--over",
        type=click.FloatRange(min=0, min_open=True),
        default=100.0,
        show_default=True,
        help="Say from which length on a token takes more ms without the cache.",
    ),
)
report_options = bundle(
    ReportFlags,
    "report_flags",
    click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "md", "json", "jsonl", "csv"]),
        default="table",
        show_default=True,
        help="What to print.",
    ),
    click.option(
        "--out",
        metavar="FILE",
        help="Write the report to a file as well; .json, .jsonl, .csv or .md.",
    ),
    click.option(
        "--plot",
        metavar="FILE",
        help="Draw time per token by position as .png, .svg or .pdf (extra `plot`).",
    ),
)
