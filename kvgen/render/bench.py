"""A benchmark on the terminal: the answers first, then the figures; all of them with details."""

from __future__ import annotations

from statistics import median

from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.bench.report import BenchReport, ReportContext, Run
from kvgen.choices import ArmName
from kvgen.render.bench_details import bench_details
from kvgen.render.bench_tables import rates, rates_legend, times_slower, traits, varying
from kvgen.render.canvas import Canvas
from kvgen.render.chart import SEVERAL, Curve, chart
from kvgen.render.need import need_picture, need_sentence
from kvgen.render.numbers import counted, size, three_digits
from kvgen.visible import one_line

_CHART_HEIGHT = 9
_ARMS: dict[ArmName, tuple[str, str, str]] = {  # mark, the same in ASCII, colour
    "on": ("●", "*", "green"),
    "off": ("○", "o", "red"),
    "on+q": ("+", "+", "cyan"),
}


def bench_view(
    report: BenchReport, context: ReportContext, canvas: Canvas, *, details: bool = False
) -> RenderableType:
    """The report; of several runs the tables and checks alone.

    `details` adds what was predicted, counted and drawn.
    """
    run = report.runs[0]
    parts: list[RenderableType] = [*(Text(line, "bold") for line in answers_of(report)), Text()]
    parts += map(Text, setting_of(report, context))
    parts += [Text(), *rates(report, canvas.width, details=details)]
    parts.append(rates_legend(report, canvas.width, details=details))
    alone = len(report.runs) == 1 and bool(run.workload.n_gen)
    if alone:
        parts += [Text(), *_curves(run, canvas)]
        picture = need_picture(report, canvas)
        parts += [Text()] * bool(picture) + picture
    parts.append(Text())
    for one in report.runs:
        parts += map(Text, verdict_of(one, name=name_in(report, one)))
    parts += map(Text, counts_of(report))
    if details and alone:
        parts += [Text(), *bench_details(report, context, canvas)]
    elif alone:
        parts.append(
            Text(
                "next: --details for predictions, maps and counted rows; --plot FILE for a picture",
                "dim",
            )
        )
    return Group(*parts)


def name_in(report: BenchReport, run: Run) -> str:
    """What tells a run from the report's others; empty where it is the only one."""
    which = [f"{traits(run)[what]} {what}" for what in varying(report)]
    which += [f"{run.workload.length} positions"] if len(report.plan.workloads) > 1 else []
    return ", ".join(which)


def answers_of(report: BenchReport) -> list[str]:
    """What the run was made to find out, in a sentence each."""
    run, answers = report.runs[0], []
    on, off, work = run.arm("on"), run.arm("off"), run.workload
    if on is not None and off is not None:
        slower = times_slower(run)
        with_cache, without = (
            1e3 * median(sum(samples) for samples in arm.step_seconds) / work.n_gen
            for arm in (on, off)
        )
        where = f"position {work.length:,}"
        if work.n_gen > 1:
            where = f"positions {work.length:,} to {work.length + work.n_gen - 1:,}"
        answers.append(
            f"without the KV cache a token takes {three_digits(slower)} times as long: "
            f"{three_digits(without)} ms, not {three_digits(with_cache)} ms ({where})"
        )
    need = need_sentence(report)
    answers += [need] if need is not None else []
    if "on+q" in report.plan.arms:
        answers += [_kept_queries(one) for one in report.runs[:1]]
    if not answers:
        answers.append("cache on only; add --no-cache to measure the same tokens without it")
    if report.interrupted:
        answers.append("interrupted: this is what had been measured by then")
    return answers


def _kept_queries(run: Run) -> str:
    """The memory and the time that keeping Q as well takes."""
    on, with_q, work = run.arm("on"), run.arm("on+q"), run.workload
    config = run.cost.config
    n_bytes = 4 * config.n_layers * config.n_heads * config.head_dim * (work.length + work.n_gen)
    memory = f"keeping Q as well takes {size(n_bytes)} more"
    if on is None or with_q is None or not work.n_gen:
        return memory
    ratios = sorted(
        sum(kept) / sum(plain)
        for kept, plain in zip(with_q.step_seconds, on.step_seconds, strict=True)
    )
    if len(ratios) < 3:
        time = "whether it takes time needs -r 3 or more"
    elif ratios[0] <= 1 <= ratios[-1]:
        time = "no difference in time beyond the spread"
    else:
        time = f"{median(ratios):.2f} times as long a token ({ratios[0]:.2f}..{ratios[-1]:.2f})"
    same = f"the same logits to the bit at {run.steps_with_same_bits} of {work.n_gen} steps"
    return f"{memory} and gives {same}; {time}"


def setting_of(report: BenchReport, context: ReportContext) -> list[str]:
    """Model, machine and prompt, and what else ran meanwhile."""
    run = report.runs[0]
    name, cpu = (one_line(text) for text in (context.model, context.environment.cpu))
    dtypes = " or ".join(dict.fromkeys(one.dtype for one in report.runs))
    rounded = f" · rounded prefill (activations rounded to {dtypes})" * (run.prefill == "fast")
    threads = f"{run.threads} thread{'s' if run.threads != 1 else ''}"
    lines = [
        f"{name} · {run.dtype} weights, {run.cache_dtype} cache · {run.backend} · {threads} · "
        f"{cpu}{rounded}"
        if len(report.runs) == 1
        else f"{name} · {cpu}{rounded}"
    ]
    n_passes = len(run.arms[0].prefill_seconds)
    of = f"medians of {n_passes}" if n_passes > 1 else "one timed pass: no spread"
    lines.append(f"prompt: {context.prompt} · {of}")
    others, cpus = report.other_programs_cpus, context.environment.cpus
    if others is not None and others + run.threads > cpus + 0.2:
        lines.append(
            f"the machine was busy: other programs used {others:.1f} of {cpus} CPUs meanwhile, so "
            "times are long and vary"
        )
    return lines


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
    if len(curves) > 1:
        title.append(f"{SEVERAL[canvas.mode == 'ascii']} several")
    title.rstrip()
    width = min(canvas.width, 100)
    return [
        title,
        *chart(curves, width=width, height=_CHART_HEIGHT, ascii_only=canvas.mode == "ascii"),
    ]


def verdict_of(run: Run, *, name: str) -> list[str]:
    """Whether both arms gave the same, in a line; none where there is no uncached arm."""
    checked = run.verification
    if checked is None:
        return []
    verdict = "verified" if checked.passed else "NOT VERIFIED"
    verdict += f" ({name})" if name else ""
    return [
        f"{verdict}: same tokens at {checked.n_equal} of {checked.n_steps} steps"
        + (f" ({counted(checked.near_ties, 'near-tie')})" if checked.near_ties else "")
        + f", logits differ by at most {checked.max_abs_logit_difference:.1e}"
    ]


def counts_of(report: BenchReport) -> list[str]:
    """Whether rows were read as expected, in a line; none where they were not counted."""
    ledger = report.ledger
    if ledger is None:
        return []
    state = "as expected" if ledger.agrees else f"DIFFERENT in {ledger.n_different} places"
    return [f"counted: rows of K, V and old Q read, {state} in {ledger.n_compared:,} totals"]
