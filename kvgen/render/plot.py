"""Figures by matplotlib (extra `plot`), as the bytes of a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from kvgen.attention.steps import attention_weights
from kvgen.bench.report import BenchReport
from kvgen.errors import UsageError
from kvgen.render.bench_files import predicted_step
from kvgen.render.canvas import causal
from kvgen.trace import AttentionTrace

_MOST_MAPS, _MOST_LABELS = 64, 40
_COLORS = {"on": "tab:green", "off": "tab:red", "on+q": "tab:cyan"}


def latency_figure(report: BenchReport, facts: dict[str, Any], *, kind: str) -> bytes:
    """Milliseconds per token by position: medians with their spread, predictions dashed.

    Raises UsageError where matplotlib is not installed.
    """
    figure = _figure_class()(figsize=(8, 4.5), layout="constrained")
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
    return _file_of(figure, kind)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "figures are drawn by matplotlib: install kvgen with its extra `plot`"
        ) from None
    return Figure


def _file_of(figure: Any, kind: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150)
    return content.getvalue()


def attention_figure(
    trace: AttentionTrace,
    tokens: Sequence[str],
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    kind: str,
) -> bytes:
    """One map for each chosen layer and head, rows are queries; tokens where there is room.

    Raises UsageError where matplotlib is not installed, or there are too many maps for a figure.
    """
    if len(layers) * len(heads) > _MOST_MAPS:
        raise UsageError(
            f"{len(layers) * len(heads)} maps are too many for a figure of at most {_MOST_MAPS}: "
            "choose with -l and -H"
        )
    figure_class = _figure_class()
    n_columns = min(4, len(heads)) if len(layers) == 1 else len(heads)
    places = [(layer, head) for layer in layers for head in heads]
    n_rows = -(-len(places) // n_columns)
    labelled = len(tokens) <= _MOST_LABELS and len(places) <= 4
    side = 6.0 if len(places) == 1 else 3.0
    figure = figure_class(figsize=(side * n_columns, side * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (layer, head) in zip(axes.flat, places, strict=False):
        ax.set_axis_on()
        weights = causal(attention_weights(trace.layer(layer))[head])
        ax.imshow(weights, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        ax.set_title(f"layer {layer} head {head}")
        ax.set(xlabel="key", ylabel="query")
        if labelled:
            ax.set_xticks(range(len(tokens)), tokens, rotation=90, parse_math=False)
            ax.set_yticks(range(len(tokens)), tokens, parse_math=False)
    return _file_of(figure, kind)
