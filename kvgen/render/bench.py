"""A benchmark on the terminal: rates, time by position, maps, ledger, cost, verdict."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.bench.cost import first_length_above
from kvgen.bench.report import BenchReport, ReportContext, Run, StepMaps
from kvgen.choices import ArmName
from kvgen.engine.tensors import FloatArray
from kvgen.render.bench_tables import (
    by_position,
    ledger_picture,
    ledger_table,
    rates,
    rates_legend,
    traits,
    varying,
)
from kvgen.render.canvas import Canvas, causal
from kvgen.render.chart import Curve, chart
from kvgen.render.ink import WEIGHT_INK
from kvgen.render.layout import beside_or_below, side_by_side, width_of
from kvgen.render.thumbnail import thumbnail
from kvgen.visible import one_line

_GAP = 3  # columns between the table and the maps beside it
_CHART_HEIGHT = 11
_ARMS: dict[ArmName, tuple[str, str, str]] = {  # mark, the same in ASCII, colour
    "on": ("●", "*", "green"),
    "off": ("○", "o", "red"),
    "on+q": ("+", "+", "cyan"),
}


def bench_view(
    report: BenchReport, context: ReportContext, canvas: Canvas, *, over_seconds: float = 0.1
) -> RenderableType:
    """The whole report; of several runs the details of the first one.

    `over_seconds` is the time per token whose crossing is named.
    """
    run = report.runs[0]
    name, cpu = (one_line(text) for text in (context.model, context.environment.cpu))
    rounded = " · fast prefill, with rounded activations" if run.prefill == "fast" else ""
    parts: list[RenderableType] = [
        Text(
            f"{name} · {run.dtype} weights, {run.cache_dtype} cache · {run.backend} · "
            f"{run.threads} thread{'s' if run.threads != 1 else ''} · {cpu}{rounded}"
            if len(report.runs) == 1
            else f"{name} · {cpu}{rounded}"
        ),
        Text(f"prompt: {context.prompt} · medians of {report.plan.repetitions}"),
        Text(),
        *rates(report, canvas.width),
        rates_legend(report, canvas.width),
    ]
    if run.workload.n_gen and len(report.runs) == 1:
        parts += [
            Text(),
            _beside(by_position(run, canvas.width), report, canvas),
            canvas.legend(WEIGHT_INK),
            Text(),
            *_curves(run, canvas),
            Text(),
            *ledger_table(report.ledger, canvas.width, shown="off" in report.plan.arms),
            *ledger_picture(report.ledger, canvas, shown="off" in report.plan.arms),
        ]
    parts.append(Text())
    for one in report.runs:
        which = [f"{traits(one)[what]} {what}" for what in varying(report)]
        which += [f"{one.workload.length} positions"] if len(report.plan.workloads) > 1 else []
        parts += map(Text, _verdict(one, name=", ".join(which)))
    if len(report.runs) == 1:
        parts += map(Text, _cost(run, over_seconds))
    parts += map(Text, _lesson(report))
    return Group(*parts)


def _beside(tables: list[RenderableType], report: BenchReport, canvas: Canvas) -> RenderableType:
    """The table with the maps beside it, or below it where they do not fit."""
    maps = _maps(report, canvas, side=12)
    if len(tables) == 1 and width_of(tables[0]) + _GAP + width_of(maps) <= canvas.width:
        return beside_or_below(tables[0], maps, canvas.width, gap=_GAP)
    return Group(*tables, Text(), _maps(report, canvas, side=14))


def _maps(report: BenchReport, canvas: Canvas, *, side: int) -> Text:
    """For some steps, the weights that each arm computed: one row, or the whole triangle."""
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
            scores = Text(f"{_count(maps.n_scores(arm))} scores".ljust(width), "dim")
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


def _curves(run: Run, canvas: Canvas) -> list[Text]:
    """Time per token by position of every arm."""
    places = [run.workload.length + step for step in range(run.workload.n_gen)]
    curves = []
    for arm in run.arms:
        mark, plain, style = _ARMS[arm.name]
        y = [arm.median_step(step) for step in range(run.workload.n_gen)]
        curves.append(Curve(arm.name, plain if canvas.mode == "ascii" else mark, style, places, y))
    title = Text("time per token, logarithmic   ")
    for curve in curves:
        title.append(f"{curve.mark} ", curve.style).append(f"cache {curve.name}   ")
    title.rstrip()
    width = min(canvas.width, 100)
    return [
        title,
        *chart(curves, width=width, height=_CHART_HEIGHT, ascii_only=canvas.mode == "ascii"),
    ]


def _verdict(run: Run, *, name: str) -> list[str]:
    checked = run.verification
    if checked is None:
        return []
    verdict = "verified" if checked.passed else "NOT VERIFIED"
    verdict += f" ({name})" if name else ""
    work = run.workload
    on, off = (work.positions(arm) for arm in ("on", "off"))
    return [
        f"{verdict}: same tokens at {checked.n_equal} of {checked.n_steps} steps"
        + (f" ({checked.near_ties} near-ties)" if checked.near_ties else "")
        + f", logits differ by at most {checked.max_abs_logit_difference:.1e}; "
        f"{on:,} positions run with the cache, {off:,} without ({off / on:.1f}x)"
    ]


def _cost(run: Run, over_seconds: float) -> list[str]:
    """Bytes and operations of a step, this machine's speed, and the length that passes a limit."""
    work, cost, measured = run.workload, run.cost, run.calibration
    lines = [
        f"this machine: reads {measured.read_bytes_per_second / 1e9:.1f} GB/s, multiplies "
        f"{measured.flops_per_second / 1e9:.0f} GFLOP/s, attends at "
        f"{measured.attention_flops_per_second / 1e9:.0f} GFLOP/s ({run.dtype}, {run.threads} "
        f"thread{'s' if run.threads != 1 else ''})"
    ]
    if not work.n_gen:
        return lines
    end = work.length + work.n_gen
    on = run.arm("on")
    if on is not None:
        fed = work.fed("on", work.n_gen - 1)
        one = cost.bytes_read(end - fed, fed)
        rate = one / on.median_step(work.n_gen - 1)
        lines.append(
            f"last step, cache on: {_bytes(one)} read, {_flops(cost.flops(end - fed, fed))}; "
            f"{100 * rate / measured.read_bytes_per_second:.0f} % of the bandwidth limit"
        )
    off = run.arm("off")
    if off is not None:
        lines.append(
            f"last step, cache off: {_bytes(cost.bytes_read(0, end))} read, "
            f"{_flops(cost.flops(0, end))}"
        )
        # The prediction, corrected by the measurement of the last step.
        factor = off.median_step(work.n_gen - 1) / run.predicted_step("off", work.n_gen - 1)
        passed = first_length_above(
            over_seconds,
            lambda length: factor * cost.seconds(0, max(1, length), measured),
            cost.config.max_context,
        )
        crossing = (
            f"passes {1e3 * over_seconds:g} ms/token from about {passed:,} positions on"
            if passed is not None
            else f"stays below {1e3 * over_seconds:g} ms/token within the context"
        )
        lines.append(f"without the cache, decoding {crossing}")
    return lines


def _lesson(report: BenchReport) -> list[str]:
    ledger = report.ledger
    if "off" not in report.plan.arms:
        return ["cache on only; add --no-cache to measure the same tokens without it"]
    last = int((ledger.reads_of_keys > 0).sum()) - 1
    first_reads, last_reads = ledger.reads_of_keys[0], ledger.reads_of_keys[last]
    change = max((count.max_abs_change for count in ledger.off), default=0.0)
    ropes = report.runs[0].workload.ropes
    turned = ", as rotary frequencies change with the length" if ropes and change > 1e-3 else ""
    lines = [
        f"with the cache, {first_reads:,} queries have read K and V of position 0, {last_reads:,} "
        f"those of position {last:,}; a q is read by its own step only: K and V are kept, Q is not",
        "without it, old rows of Q are computed again too: not for the new output, but to build "
        "the hidden states that the next layer's K and V come from (rebuilt rows differ by at most "
        f"{change:.0e}{turned})",
    ]
    state = "match" if ledger.agrees else f"DIFFER in {ledger.n_different} places from"
    lines.append(
        f"row counts {state} the reference engine ({ledger.n_compared:,} layer x step totals)"
    )
    if "on+q" in report.plan.arms:
        lines.append(_kept_queries(report.runs[0]))
    return lines


def _kept_queries(run: Run) -> str:
    """The memory and the time that keeping Q as well takes."""
    on, with_q = run.arm("on"), run.arm("on+q")
    config, work = run.cost.config, run.workload
    positions = work.length + work.n_gen
    size = 4 * config.n_layers * config.n_heads * config.head_dim * positions
    if on is None or with_q is None or not work.n_gen:
        return f"keeping Q takes {_bytes(size)} more"
    ratio = sum(with_q.median_step(i) for i in range(work.n_gen)) / sum(
        on.median_step(i) for i in range(work.n_gen)
    )
    return (
        f"keeping Q as well takes {_bytes(size)} more, nothing reads it, and a token takes "
        f"{ratio:.2f} times as long"
    )


def _bytes(number: float) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def _flops(number: float) -> str:
    return f"{number / 1e9:.2f} GFLOP" if number >= 1e9 else f"{number / 1e6:.1f} MFLOP"
