"""Figures by matplotlib (extra `plot`), as the bytes of a file.

Names and tokens are text: they are given to matplotlib with parse_math=False, since `$1_$2` would
be a formula for it, and one that it fails at only when the figure is drawn.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from kvgen.attention.record import RecordedRun
from kvgen.bench.report import BenchReport, ReportContext, Run
from kvgen.errors import KvgenError, UsageError
from kvgen.render.head_map import MapView, chosen_cells
from kvgen.render.ink import Ink
from kvgen.visible import one_line

_MOST_MAPS, _MOST_LABELS = 64, 40
_LONGEST_NAME, _LONGEST_TITLE = 60, 90  # characters
_COLORS = {"on": "tab:green", "off": "tab:red", "on+q": "tab:cyan"}


def check_figures(*, n_maps: int = 1) -> None:
    """Raise UsageError where a figure of so many maps could not be drawn."""
    if n_maps > _MOST_MAPS:
        raise UsageError(
            f"{n_maps} maps are too many for a figure of at most {_MOST_MAPS}: choose with -l and "
            "-H"
        )
    with _matplotlib():
        pass


def check_latency_figure(context: ReportContext, *, kind: str) -> None:
    """Raise the errors of `latency_figure`, by drawing its words without the curves."""
    with _matplotlib() as figure_class:
        figure, axes = _latency_axes(figure_class, context)
        axes.plot([1, 2], [1, 2], label="cache on")
        axes.legend()
        _file_of(figure, kind)


def latency_figure(report: BenchReport, context: ReportContext, *, kind: str) -> bytes:
    """Milliseconds per token by position: medians with their spread, predictions dashed.

    Raises UsageError where matplotlib is not installed, KvgenError where it fails.
    """
    with _matplotlib() as figure_class:
        figure, axes = _latency_axes(figure_class, context)
        for run in report.runs:
            _draw_run(axes, run, alone=len(report.runs) == 1)
        axes.legend()
        return _file_of(figure, kind)


def _latency_axes(figure_class: Any, context: ReportContext) -> tuple[Any, Any]:
    """A figure and its axes, with all words but the legend's."""
    figure = figure_class(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="position", ylabel="ms per token", yscale="log")
    names = (context.model, context.environment.cpu)
    model, cpu = (one_line(name, most=_LONGEST_NAME) for name in names)
    title = f"{model} · {cpu} (dashed: predicted)"
    if len(title) > _LONGEST_TITLE:
        title = f"{model}\n{cpu} (dashed: predicted)"
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3, which="both")
    return figure, axes


def _draw_run(axes: Any, run: Run, *, alone: bool) -> None:
    """The curves of a run's arms, named by the run's settings where there are several runs."""
    places = [run.workload.length + step for step in range(run.workload.n_gen)]
    name = "" if alone else f"{run.dtype} {run.backend} t{run.threads}, "
    for arm in run.arms:
        if not places:
            continue
        color = _COLORS[arm.name] if alone else None
        of_steps = list(zip(*arm.step_seconds, strict=True))
        medians = [1e3 * arm.median_step(step) for step in range(len(places))]
        (line,) = axes.plot(places, medians, color=color, label=f"{name}cache {arm.name}")
        low, high = ([1e3 * pick(one) for one in of_steps] for pick in (min, max))
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        predicted = [1e3 * run.predicted_step(arm.name, step) for step in range(len(places))]
        axes.plot(places, predicted, "--", color=line.get_color(), linewidth=0.8)


@contextmanager
def _matplotlib() -> Iterator[Any]:
    """matplotlib's class of figures, while its warnings reach nobody and no TeX is asked.

    Its warnings and log are of glyphs and fonts that it has not, and of a matplotlibrc.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from matplotlib import rc_context
                from matplotlib.figure import Figure
            except ImportError:
                raise UsageError("figures need matplotlib: pip install 'kvgen[plot]'") from None
            except Exception as error:  # MPLBACKEND or matplotlibrc may hold any text
                raise UsageError(f"matplotlib cannot be loaded: {error}") from None
            with rc_context({"text.usetex": False, "text.parse_math": True}):  # for 10^-1
                yield Figure
    finally:
        log.setLevel(level)


def _file_of(figure: Any, kind: str) -> bytes:
    content = io.BytesIO()
    # Neither a date nor a link: the same figure is the same file.
    about = {"svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate", "Creator")}
    unsaid = dict.fromkeys(about.get(kind, ()))
    try:
        figure.savefig(content, format=kind, dpi=150, metadata=unsaid or None)
    except MemoryError:
        raise
    except Exception as error:  # fonts, settings or styles may be broken
        raise KvgenError(f"matplotlib cannot draw the figure: {error}") from None
    return content.getvalue()


def attention_figure(
    recording: RecordedRun,
    tokens: Sequence[str],
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    view: MapView,
    kind: str,
) -> bytes:
    """One map for each chosen layer and head, rows are queries; tokens where there is room.

    The first key stands with the others, unless it is left out.

    Raises UsageError where matplotlib is not installed, or there are too many maps for a figure,
    and KvgenError where matplotlib fails.
    """
    heads = [0] if view.show == "rollout" else heads
    check_figures(n_maps=len(layers) * len(heads))
    if view.sink == "split":
        view = replace(view, sink="keep")
    places = [(layer, head) for layer in layers for head in heads]
    n_columns = min(4, len(heads)) if len(layers) == 1 else len(heads)
    with _matplotlib() as figure_class:
        figure = _maps(figure_class, recording, tokens, places, n_columns=n_columns, view=view)
        return _file_of(figure, kind)


def _maps(
    figure_class: Any,
    recording: RecordedRun,
    tokens: Sequence[str],
    places: Sequence[tuple[int, int]],
    *,
    n_columns: int,
    view: MapView,
) -> Any:
    """A figure with a map for each layer and head of `places`, row by row."""
    n_rows = -(-len(places) // n_columns)
    side = 6.0 if len(places) == 1 else 3.0
    size = (side * n_columns + 1.2, (side + 0.6) * n_rows)
    figure = figure_class(figsize=size, layout="compressed")  # maps are square
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    drawn = [chosen_cells(recording, view, layer=layer, head=head) for layer, head in places]
    ink = replace(drawn[0].ink, most=max(cells.ink.most for cells in drawn))
    colors, norm = _colors(ink)
    image = None
    for ax, (layer, head), cells in zip(axes.flat, places, drawn, strict=False):
        ax.set_axis_on()
        queries, keys = cells.queries, cells.keys
        extent = (keys.start - 0.5, keys.stop - 0.5, queries.stop - 0.5, queries.start - 0.5)
        image = ax.imshow(
            cells.numbers, norm=norm, cmap=colors, interpolation="nearest", extent=extent
        )
        ax.set_title(
            f"layers 0-{layer}" if view.show == "rollout" else f"layer {layer} head {head}"
        )
        ax.set(xlabel="key", ylabel="query")
        ax.locator_params(integer=True)
        if max(len(queries), len(keys)) <= _MOST_LABELS and len(places) <= 4:
            ax.set_xticks(keys, [tokens[key] for key in keys], rotation=90, parse_math=False)
            ax.set_yticks(queries, [tokens[query] for query in queries], parse_math=False)
        else:
            ax.label_outer()
    figure.colorbar(image, ax=axes, label=ink.name, shrink=0.8)
    return figure


def _colors(ink: Ink) -> tuple[Any, Any]:
    """matplotlib's colours and scale for the numbers that an ink draws in the terminal."""
    from matplotlib import colors

    if not ink.signed:
        norms = {
            "linear": colors.Normalize(0, ink.most),
            "sqrt": colors.PowerNorm(0.5, 0, ink.most),
            "log": colors.LogNorm(ink.most * 1e-5, ink.most, clip=True),
        }
        return "viridis", norms[ink.scale]
    diverging = colors.LinearSegmentedColormap.from_list(
        "blue-orange", ["#2166c8", "#f7f7f7", "#e07b00"]
    )
    if ink.scale == "linear":
        return diverging, colors.Normalize(-ink.most, ink.most)
    if ink.scale == "log":
        return diverging, colors.SymLogNorm(ink.most * 1e-3, vmin=-ink.most, vmax=ink.most)
    bend = (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x * x)
    return diverging, colors.FuncNorm(bend, vmin=-ink.most, vmax=ink.most)
