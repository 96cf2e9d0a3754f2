"""The rest of a benchmark's report: by position, counted, predicted, and asked once more."""

from __future__ import annotations

from statistics import median

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.bench.report import BenchReport, Crossing, ReportContext, Run, StepMaps
from kvgen.choices import ArmName
from kvgen.engine.tensors import FloatArray
from kvgen.render.bench_tables import by_position, ledger_picture, ledger_table
from kvgen.render.canvas import Canvas, causal
from kvgen.render.ink import WEIGHT_INK
from kvgen.render.layout import beside_or_below, side_by_side, width_of
from kvgen.render.need import later_token_picture, recomputed_picture
from kvgen.render.numbers import size, three_digits
from kvgen.render.thumbnail import thumbnail

_GAP = 3  # columns between the table and the maps beside it


def bench_details(
    report: BenchReport, context: ReportContext, canvas: Canvas
) -> list[RenderableType]:
    """Every part that a report has, under headings."""
    run, uncached = report.runs[0], "off" in report.plan.arms
    parts: list[RenderableType] = [Text("TIMED", "bold")]
    tables = by_position(run, canvas.width)
    if report.maps:
        parts += [_beside(tables, report, canvas), canvas.legend(WEIGHT_INK)]
    else:
        parts += tables
    parts += map(Text, first_step_words(run))
    parts += map(Text, crossing_words(report))
    if report.ledger is not None:
        parts += [Text(), Text("COUNTED, by the reference engine", "bold")]
        parts += ledger_table(report.ledger, canvas.width, shown=uncached)
        parts += ledger_picture(report.ledger, canvas, shown=uncached)
        parts += map(Text, positions_words(report))
    if report.recomputed or report.later_token is not None:
        parts += [Text(), Text("RUN AGAIN with something changed", "bold")]
        parts += recomputed_picture(report.recomputed, canvas)
        if report.later_token is not None:
            parts += later_token_picture(report.later_token, canvas)
    parts += [Text(), Text("COMPUTED from shapes and this machine's speed", "bold")]
    parts += map(Text, machine_words(run, context))
    parts += map(Text, last_step_words(run))
    return parts


def _beside(tables: list[RenderableType], report: BenchReport, canvas: Canvas) -> RenderableType:
    """The table with the maps beside it, or below it where they do not fit."""
    maps = _maps(report, canvas, side=12)
    if len(tables) == 1 and width_of(tables[0]) + _GAP + width_of(maps) <= canvas.width:
        return beside_or_below(tables[0], maps, canvas.width, gap=_GAP)
    return Group(*tables, Text(), _maps(report, canvas, side=14))


def _maps(report: BenchReport, canvas: Canvas, *, side: int) -> Text:
    """For some steps, the weights that each arm computed: one row, or the whole triangle."""
    assert report.head is not None
    layer, head = report.head
    size = max((maps.on.shape[1] for maps in report.maps), default=0)
    lines = [Text(f"what each step computed · layer {layer} head {head}")]
    note = ""
    arms: tuple[ArmName, ...] = ("on", "off") if "off" in report.plan.arms else ("on",)
    for arm in arms:
        titled = arm == "on"  # the same steps stand under each other
        blocks = [[*[Text()] * titled, Text("cache"), Text(arm)]]
        for maps in report.maps:
            width = max(side, len("999,999 scores"))
            title = Text(f"step {maps.step + 1}".ljust(width))
            count = maps.n_scores_on if arm == "on" else maps.n_scores_off
            scores = Text(f"{_count(count or 0)} scores".ljust(width), "dim")
            small = thumbnail(_computed(maps, arm, size), canvas, side)
            note = small.note()
            blocks.append([*[title] * titled, *small.lines, scores])
        lines += side_by_side(blocks, gap=1)
    for line in lines:
        line.rstrip()
    if note:
        lines.append(Text(note, "dim"))
    return Text("\n").join(lines)


def _count(number: int) -> str:
    """A number in at most seven characters."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.1f}M"


def _computed(maps: StepMaps, arm: ArmName, size: int) -> FloatArray:
    """The map [size, size] with NaN where this arm computed nothing at this step.

    All steps share one size, so that the triangle is seen to grow.
    """
    S = maps.on.shape[1]
    whole = np.full((size, size), np.nan, np.float32)
    if arm == "on":
        whole[S - 1, :S] = maps.on[0]
    elif maps.off is not None:
        whole[:S, :S] = causal(maps.off)
    return whole


def first_step_words(run: Run) -> list[str]:
    """How long the first step behind a prefill takes, in a line."""
    on = run.arm("on")
    if on is None or not on.first_step_seconds:
        return []
    return [
        f"the first step behind a prefill takes {1e3 * median(on.first_step_seconds):.2f} ms, as "
        "the CPU's caches hold what the prefill used; it and two more are left out"
    ]


def crossing_words(report: BenchReport) -> list[str]:
    """From which length on an uncached token takes longer than the limit, as measured."""
    crossing, limit = report.crossing, f"{1e3 * report.plan.over_seconds:g} ms"
    if crossing is None:
        return []
    if crossing.above is None:
        assert crossing.below is not None
        return [
            f"without the cache a token stays below {limit} within the context: "
            f"{_measured(crossing.below)}"
        ]
    return [f"without the cache a token passes {limit} {_between(crossing)}"]


def _between(crossing: Crossing) -> str:
    assert crossing.above is not None
    if crossing.below is None:
        return f"below {_measured(crossing.above)}"
    return f"between {_measured(crossing.below)} and {_measured(crossing.above)}"


def _measured(point: tuple[int, float]) -> str:
    length, seconds = point
    return f"{length:,} positions ({1e3 * seconds:.0f} ms)"


def positions_words(report: BenchReport) -> list[str]:
    """How many positions each arm runs through the model."""
    work, ledger = report.runs[0].workload, report.ledger
    lines = []
    if "off" in report.plan.arms:
        on, off = (work.positions(arm) for arm in ("on", "off"))
        lines.append(
            f"positions run through the model, prompt and {work.n_gen:,} steps: {on:,} with the "
            f"cache, {off:,} without"
        )
    change = max((count.max_abs_change for count in ledger.off), default=0.0) if ledger else 0.0
    if change:
        turned = bool(work.ropes and change > 1e-3)
        lines.append(
            f"rows of K and V that were computed again differ by at most {change:.0e}"
            + ", as rotary frequencies change with the length" * turned
        )
    return lines


def machine_words(run: Run, context: ReportContext) -> list[str]:
    """This machine's speed with the engine's kernels, and its spread over the rounds."""
    speeds, measured = run.calibrations, run.calibration
    reads = [one.read_bytes_per_second / 1e9 for one in speeds]
    cache = context.environment.last_level_cache_bytes
    fits = cache is not None and run.weight_bytes < cache
    place = f" (the CPU's cache holds the {size(run.weight_bytes)} of weights)" if fits else ""
    return [
        f"this machine: reads {measured.read_bytes_per_second / 1e9:.1f} GB/s{place}, multiplies "
        f"{measured.flops_per_second / 1e9:.0f} GFLOP/s, attends at "
        f"{measured.attention_flops_per_second / 1e9:.0f} GFLOP/s; medians of {len(speeds)} "
        f"calibrations between the passes, reading {min(reads):.1f} to {max(reads):.1f} GB/s"
    ]


def last_step_words(run: Run) -> list[str]:
    """Bytes and operations of the last step in each arm, and what its prediction is made of."""
    work, cost, lines = run.workload, run.cost, []
    last = work.n_gen - 1
    for arm in run.arms:
        if arm.name == "on+q":
            continue
        start, fed = work.start(arm.name, last), work.fed(arm.name, last)
        part = cost.parts(start, fed, run.calibration)
        line = (
            f"last step, cache {arm.name}: {size(cost.bytes_read(start, fed))} read, "
            f"{_flops(cost.flops(start, fed))}; predicted {three_digits(1e3 * sum(part))} ms = "
            f"{1e3 * part.reading:.2g} reading + {1e3 * part.computing:.2g} computing + "
            f"{1e3 * part.overhead:.2g} overhead fitted to this model, measured "
            f"{three_digits(1e3 * arm.median_step(last))} ms"
        )
        if fed == 1:
            line += f"; {_of_the_limit(cost.bytes_read(start, fed) / arm.median_step(last), run)}"
        lines.append(line)
    return lines


def _of_the_limit(rate: float, run: Run) -> str:
    percent = 100 * rate / run.calibration.read_bytes_per_second
    if percent > 100:
        return "faster than calibrating has read: it met slower moments than the steps"
    return f"{percent:.0f} % of the speed of reading"


def _flops(number: float) -> str:
    return f"{number / 1e9:.2f} GFLOP" if number >= 1e9 else f"{number / 1e6:.1f} MFLOP"
