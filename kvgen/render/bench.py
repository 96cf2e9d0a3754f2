"""A benchmark as a table with the maps beside it, and as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

import kvgen
from kvgen.bench.report import Arm, BenchReport, Cache, StepMaps, spread
from kvgen.render.attention import thumbnail_lines
from kvgen.render.canvas import Canvas, causal, side_by_side
from kvgen.tensors import FloatArray

_TABLE_ROWS = 8
_GAP = 3  # columns between the table and the maps beside it


def bench_view(
    report: BenchReport, facts: dict[str, Any], canvas: Canvas
) -> RenderableType:  # facts as in bench_json
    """The whole report: rates, time per token by position, maps of what was computed, verdict."""
    table = _by_position(report)
    maps = _maps(report, canvas, side=12)
    width = Console(width=1000).measure(table).maximum + max(line.cell_len for line in maps)
    if width + _GAP <= canvas.width:
        both = Table.grid(padding=(0, _GAP))
        both.add_row(table, Group(*maps))
    else:
        both = Table.grid()
        both.add_row(table)
        both.add_row(Group(Text(), *_maps(report, canvas, side=14)))
    return Group(
        Text(
            f"{facts['model']} · {facts['dtype']} weights, {facts['cache_dtype']} cache · "
            f"{facts['backend']} · "
            f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''} · "
            f"{facts['environment']['cpu']}"
        ),
        Text(f"prompt: {facts['prompt']} · medians of {report.plan.repetitions}"),
        Text(),
        _rates(report),
        Text(),
        both,
        Text(),
        *map(Text, _verdict(report)),
    )


def _rates(report: BenchReport) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("test", "cache", "tok/s", "min..max", "positions run"):
        table.add_column(name, justify="left" if name in ("test", "cache") else "right")
    for test, arm, rates, positions in _tests(report):
        low, high = min(rates), max(rates)
        table.add_row(
            test,
            arm.cache,
            f"{spread(rates)['median']:,.1f}",
            f"{low:,.1f}..{high:,.1f}",
            f"{positions:,}",
        )
    return table


def _tests(report: BenchReport) -> list[tuple[str, Arm, list[float], int]]:
    """Each line of the table: name as in llama-bench, arm, tokens per second, positions run."""
    plan, tests = report.plan, []
    n_prompt = len(plan.prompt_ids)
    for arm in report.arms:
        if arm.cache == "on":  # the prefill is the same work in both arms
            rates = [n_prompt / seconds for seconds in arm.prefill_seconds]
            tests.append((f"pp{n_prompt}", arm, rates, n_prompt))
        if plan.n_gen:
            rates = [plan.n_gen / sum(samples) for samples in arm.step_seconds]
            tests.append((f"tg{plan.n_gen}", arm, rates, plan.positions(arm.cache) - n_prompt))
    return tests


def _by_position(report: BenchReport) -> Table:
    """Milliseconds per token at some positions, in both arms where both ran."""
    on, off = report.arm("on"), report.arm("off")
    assert on is not None
    table = Table(title="ms/token by position", title_justify="left", box=None, padding=(0, 1))
    headings = ["position", "cache on"]
    headings += ["cache off", "ratio", "rerun"] if off is not None else []
    for name in headings:
        table.add_column(name, justify="right", no_wrap=True)
    n_gen, n_prompt = report.plan.n_gen, len(report.plan.prompt_ids)
    for step in np.unique(np.linspace(0, n_gen - 1, min(n_gen, _TABLE_ROWS)).round().astype(int)):
        cells = [f"{n_prompt + step:,}", f"{1e3 * on.median_step(step):.2f}"]
        if off is not None:
            cells += [
                f"{1e3 * off.median_step(step):.2f}",
                f"{off.median_step(step) / on.median_step(step):.1f}x",
                f"{report.plan.positions_at('off', step):,}",
            ]
        table.add_row(*cells)
    return table


def _maps(report: BenchReport, canvas: Canvas, *, side: int) -> list[Text]:
    """For some steps, the weights that each arm computed: one row, or the whole triangle."""
    layer, head = report.head
    size = max((maps.on.shape[1] for maps in report.maps), default=0)
    lines = [Text(f"what each step computed · layer {layer} head {head}")]
    for cache in report.plan.arms:
        titled = cache == "on"  # the same steps stand under each other
        blocks = [[*[Text()] * titled, Text("cache"), Text(cache)]]
        for maps in report.maps:
            width = max(side, len("999,999 scores"))
            title = Text(f"step {maps.step + 1}".ljust(width))
            scores = Text(f"{_count(maps.n_scores(cache))} scores".ljust(width), "dim")
            drawn = thumbnail_lines(_computed(maps, cache, size), canvas, side)
            blocks.append([*[title] * titled, *drawn, scores])
        lines += side_by_side(blocks, gap=1)
    for line in lines:
        line.rstrip()
    return lines


def _count(number: int) -> str:
    """A number in at most seven characters."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.1f}M"


def _computed(maps: StepMaps, cache: Cache, size: int) -> FloatArray:
    """The map [size, size] with NaN where this arm computed nothing at this step.

    All steps share one size, so that the triangle is seen to grow.
    """
    S = maps.on.shape[1]
    whole = np.full((size, size), np.nan, np.float32)
    if cache == "on":
        whole[S - 1, :S] = maps.on[0]
    elif maps.off is not None:
        whole[:S, :S] = causal(maps.off)
    return whole


def _verdict(report: BenchReport) -> list[str]:
    checked = report.verification
    if checked is None:
        return ["cache on only; add --no-cache to measure the same tokens without it"]
    plan = report.plan
    on, off = (plan.positions(cache) for cache in ("on", "off"))
    verdict = "verified" if checked.passed else "NOT VERIFIED"
    return [
        f"positions run through the model: {on:,} with the cache, {off:,} without "
        f"({off / on:.1f}x)",
        f"{verdict}: same tokens at {checked.n_equal} of {checked.n_steps} steps"
        + (f" ({checked.near_ties} near-ties)" if checked.near_ties else "")
        + f", logits differ by at most {checked.max_abs_logit_difference:.1e}",
        "each step reads all K and V so far, and one Q: K and V are kept, Q is not",
    ]


def bench_json(report: BenchReport, facts: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON with stable names.

    `facts` says what the report does not know: model, dtype, backend, threads, prompt, seed,
    environment.
    """
    results = []
    for test, arm, rates, positions in _tests(report):
        prefilling = test.startswith("pp")
        steps = range(report.plan.n_gen)
        results.append(
            {
                "test": test,
                "depth": 0 if prefilling else len(report.plan.prompt_ids),
                "cache": arm.cache,
                "dtype": facts["dtype"],
                "cache_dtype": facts["cache_dtype"],
                "backend": facts["backend"],
                "threads": facts["threads"],
                "tokens_per_second": spread(rates),
                "seconds_per_step": [] if prefilling else [arm.median_step(i) for i in steps],
                "samples": arm.prefill_seconds if prefilling else arm.step_seconds,
                "positions_processed": positions,
            }
        )
    checked = report.verification
    return {
        "model": facts["model"],
        "prompt": facts["prompt"],
        "prompt_ids": report.plan.prompt_ids,
        "generated_ids": report.generated_ids,
        "results": results,
        "verification": None
        if checked is None
        else {
            "max_abs_logit_difference": checked.max_abs_logit_difference,
            "tolerance": checked.tolerance,
            "tokens_equal": checked.tokens_equal,
            "near_ties": checked.near_ties,
            "passed": checked.passed,
        },
        "maps": {
            "layer": report.head[0],
            "head": report.head[1],
            "steps": [
                {
                    "step": maps.step + 1,
                    "scores_on": maps.n_scores("on"),
                    "scores_off": maps.n_scores("off") if maps.off is not None else None,
                }
                for maps in report.maps
            ],
        },
        "environment": facts["environment"],
        "seed": facts["seed"],
        "version": kvgen.__version__,
    }
