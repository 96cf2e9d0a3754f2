"""Experiment: what `Model.bench` gives: the measured report, and the files that it can be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kvgen.atomic_write import write_file
from kvgen.bench.cost import calibrate_with_overhead
from kvgen.bench.plan import BenchPlan, Workload, check_steps
from kvgen.bench.report import BenchReport, ReportContext
from kvgen.bench.run import bench
from kvgen.checkpoint.folder import fingerprint
from kvgen.choices import FIGURES, REPORTS, ArmName, check_choice
from kvgen.engine.machine import environment
from kvgen.engine.rope import length_dependent
from kvgen.errors import UsageError
from kvgen.page.bundle import page
from kvgen.page.document import Page
from kvgen.page.report_content import report_content
from kvgen.render.bench import bench_view
from kvgen.render.bench_files import bench_csv, bench_json, bench_lines, bench_markdown
from kvgen.render.bench_tables import times_slower
from kvgen.render.bench_words import bench_words
from kvgen.render.canvas import Canvas
from kvgen.render.draw import draw
from kvgen.render.plot import check_latency_figure, latency_figure
from kvgen.source import Source
from kvgen.visible import one_line

_SUMMARY_WIDTH = 100


class Experiment:
    """A benchmark that has run: `report` holds every number, `context` what it was run on."""

    def __init__(self, report: BenchReport, context: ReportContext) -> None:
        self.report = report
        self.context = context

    def __repr__(self) -> str:
        work = self.report.runs[0].workload
        arms = ", ".join(self.report.plan.arms)
        slower = self.times_slower
        said = "" if slower is None else f"; {slower:.3g} times slower without the cache"
        return (
            f"<Experiment on {self.context.model}: {work.length} + {work.n_gen} tokens, cache "
            f"{arms}{said}>"
        )

    @property
    def times_slower(self) -> float | None:
        """How many times as long decode steps take without the cache; None where one arm is."""
        run = self.report.runs[0]
        both = run.arm("on") is not None and run.arm("off") is not None
        return times_slower(run) if both and run.workload.n_gen else None

    def text(self, *, width: int = 100, details: bool = False) -> str:
        """The report as `kvgen bench` prints it."""
        canvas = Canvas(width, "glyphs")
        return draw(bench_view(self.report, self.context, canvas, details=details), canvas)

    def content(self, kind: str) -> bytes:
        """The bytes of a file of that kind: html, json, jsonl, csv, md, png, svg or pdf.

        Raises UsageError for another.
        """
        if f".{kind}" not in (*REPORTS, *FIGURES):
            raise UsageError(f"{kind!r} is not a kind of report")
        if f".{kind}" in FIGURES:
            check_latency_figure(self.context, kind=kind)
            return latency_figure(self.report, self.context, kind=kind)
        if kind == "json":
            return (json.dumps(bench_json(self.report, self.context)) + "\n").encode()
        if kind == "html":
            return self._page_text().encode("utf-8", "backslashreplace")
        if kind == "csv":
            return bench_csv(self.report).encode()
        lines = bench_lines if kind == "jsonl" else bench_markdown
        return lines(self.report, self.context).encode()

    def save(self, path: str | Path) -> None:
        """Write the report by the file's ending: .html, .json, .jsonl, .csv, .md, or a figure.

        .html is a page to explore, offline.
        Raises UsageError for another ending, KvgenError where the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in (*REPORTS, *FIGURES):
            raise UsageError(f"{path}: the name must end in {', '.join((*REPORTS, *FIGURES))}")
        write_file(path, self.content(path.suffix[1:]))

    def page(self, *, height: int = 760) -> Page:
        """The page of `save("x.html")` for a notebook, in a frame of that many pixels."""
        return Page(self._page_text(), height, "a benchmark of the KV cache")

    def _repr_html_(self) -> str:
        return self.page()._repr_html_()

    def _page_text(self) -> str:
        """One HTML file that needs nothing else."""
        content = report_content(
            self.report,
            bench_json(self.report, self.context),
            bench_words(self.report, self.context),
        )
        return page(
            content,
            title=f"KV cache of {one_line(self.context.model)}",
            summary=self.text(width=_SUMMARY_WIDTH, details=True),
            skeleton="report.html",
            styles=("style.css", "report.css"),
            entry="report.js",
        )


def run_experiment(
    source: Source,
    ids: Sequence[int],
    *,
    n_gen: int,
    arms: Sequence[ArmName],
    repetitions: int,
    seed: int,
) -> Experiment:
    """Calibrate the engine, and time a prefill of the ids and decode steps behind it in every arm.

    Raises UsageError beyond the context, for an arm of another name, and for no arms or
    repetitions.
    """
    if isinstance(arms, str):
        raise UsageError(f"arms {arms!r} is not a list: write [{arms!r}]")
    arms = tuple(dict.fromkeys(arms))
    for arm in arms:
        check_choice("arm", arm, ArmName)
    if not arms or repetitions < 1 or n_gen < 0:
        raise UsageError(
            f"{len(arms)} arms, {repetitions} repetitions and {n_gen} new tokens cannot be timed: "
            "at least 1, 1 and 0 are needed"
        )
    ropes = length_dependent(source.engine.config)
    work = Workload(ids=tuple(ids), n_prompt=len(ids), n_gen=n_gen, ropes=ropes)
    plan = BenchPlan(workloads=(work,), arms=tuple(arms), repetitions=repetitions, seed=seed)
    context = ReportContext(
        model=source.name,
        model_hash=fingerprint(source.folder),
        family=source.family,
        n_parameters=source.params.n_parameters,
        prompt=f"{len(ids)} tokens",
        seed=None,
        environment=environment(),
    )
    check_steps(source.engine.config, len(ids), n_gen)
    calibrations = [calibrate_with_overhead(source.engine)]
    report = bench([source.engine], source.params, plan, calibrations=calibrations)
    return Experiment(report, context)
