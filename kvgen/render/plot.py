"""Figures by matplotlib (extra `plot`), as the bytes of a file."""

from __future__ import annotations

import io
from typing import Any

from kvgen.bench.report import BenchReport
from kvgen.errors import UsageError
from kvgen.render.bench_files import predicted_step

_COLORS = {"on": "tab:green", "off": "tab:red", "on+q": "tab:cyan"}


def latency_figure(report: BenchReport, facts: dict[str, Any], *, kind: str) -> bytes:
    """Milliseconds per token by position: medians with their spread, predictions dashed.

    Raises UsageError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib: install kvgen with its extra `plot`, or use -o csv"
        ) from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for run in report.runs:
        places = [run.workload.length + step for step in range(run.workload.n_gen)]
        name = f"{run.dtype} {run.backend} t{run.threads}, " if len(report.runs) > 1 else ""
        for arm in run.arms:
            if not places:
                continue
            color = _COLORS[arm.cache] if len(report.runs) == 1 else None
            of_steps = list(zip(*arm.step_seconds, strict=True))
            medians = [1e3 * arm.median_step(step) for step in range(len(places))]
            (line,) = axes.plot(places, medians, color=color, label=f"{name}cache {arm.cache}")
            low, high = ([1e3 * pick(one) for one in of_steps] for pick in (min, max))
            axes.fill_between(places, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            predicted = [1e3 * predicted_step(run, arm.cache, step) for step in range(len(places))]
            axes.plot(places, predicted, "--", color=line.get_color(), linewidth=0.8)
    axes.set(
        xlabel="position",
        ylabel="ms per token",
        yscale="log",
        title=f"{facts['model']} · {facts['environment']['cpu']} (dashed: predicted)",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150)
    return content.getvalue()
