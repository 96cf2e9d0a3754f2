"""A benchmark as JSON, JSON lines, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

import kvgen
from kvgen.bench.compare import ReportComparison
from kvgen.bench.interventions import Intervention
from kvgen.bench.ledger import Ledger, StepCount
from kvgen.bench.report import Arm, BenchReport, ReportContext, Run, spread
from kvgen.engine.machine import Environment
from kvgen.visible import one_line

_GREATEST = float(np.finfo(np.float32).max)


class Row(NamedTuple):
    """One line of a report: what was timed, in the names of llama-bench."""

    name: str  # pp512, tg128
    depth: int  # positions that were there before
    run: Run
    arm: Arm
    rates: list[float]  # [repetitions] tokens per second
    positions: int  # that were run through the model

    @property
    def is_prefill(self) -> bool:
        return self.name.startswith("pp")

    @property
    def title(self) -> str:
        """The name with the depth, as llama-bench writes it."""
        return f"{self.name} @ d{self.depth}" if self.depth else self.name


def rows_of(report: BenchReport) -> Iterator[Row]:
    """Every prefill and every arm's decode steps. The prefill is the same work in all arms."""
    for run in report.runs:
        work = run.workload
        for number, arm in enumerate(run.arms):
            if number == 0:
                rates = [work.n_prompt / seconds for seconds in arm.prefill_seconds]
                name = f"pp{work.n_prompt}"
                yield Row(name, work.depth, run, arm, rates, work.n_prompt)
            if work.n_gen:
                rates = [work.n_gen / sum(samples) for samples in arm.step_seconds]
                positions = work.positions(arm.name) - work.length
                yield Row(f"tg{work.n_gen}", work.length, run, arm, rates, positions)


def bench_json(report: BenchReport, context: ReportContext) -> dict[str, Any]:
    """The report as JSON with stable names."""
    checks = [run.verification for run in report.runs if run.verification is not None]
    return {
        "model": context.model,
        "model_hash": context.model_hash,
        "parameters": context.n_parameters,
        "prompt": context.prompt,
        "prompt_ids": [work.ids for work in report.plan.workloads],
        "generated_ids": report.generated_ids,
        "results": [_result(test) for test in rows_of(report)],
        "verification": None
        if not checks
        else {
            "max_abs_logit_difference": max(one.max_abs_logit_difference for one in checks),
            "tolerance": min(one.tolerance for one in checks),
            "tokens_equal": all(one.tokens_equal for one in checks),
            "near_ties": sum(one.near_ties for one in checks),
            "passed": all(one.passed for one in checks),
        },
        "interventions": [_intervention(one) for one in report.interventions],
        "old_queries_as_nan": [
            {"max_abs_logit_change": change} for change in report.spoiled_queries
        ],
        "uncached_interventions": [asdict(one) | {"row": "q"} for one in report.recomputed],
        "later_token": asdict(report.later_token) if report.later_token is not None else None,
        "ledger": _ledger(report.ledger) if report.ledger is not None else None,
        "maps": None
        if report.head is None
        else {
            "layer": report.head[0],
            "head": report.head[1],
            "steps": [
                {
                    "step": maps.step + 1,
                    "scores_on": maps.n_scores_on,
                    "scores_off": maps.n_scores_off,
                }
                for maps in report.maps
            ],
        },
        "crossing": None
        if report.crossing is None
        else {"over_seconds": report.plan.over_seconds} | asdict(report.crossing),
        "other_programs_cpus": report.other_programs_cpus,
        "interrupted": report.interrupted,
        "calibration": _calibration(report.runs[0]),
        "environment": _environment(context.environment),
        "seed": context.seed,
        "version": kvgen.__version__,
    }


def _result(test: Row) -> dict[str, Any]:
    run, arm, work = test.run, test.arm, test.run.workload
    steps = range(0 if test.is_prefill else work.n_gen)
    fed = [work.fed(arm.name, step) for step in steps]
    starts = [work.start(arm.name, step) for step in steps]
    return {
        "test": test.name,
        "depth": test.depth,
        "cache": arm.name,
        "dtype": run.dtype,
        "cache_dtype": run.cache_dtype,
        "backend": run.backend,
        "threads": run.threads,
        "prefill": run.prefill,
        "tokens_per_second": asdict(spread(test.rates)),
        "seconds_per_step": [arm.median_step(step) for step in steps],
        "samples": arm.prefill_seconds if test.is_prefill else arm.step_seconds,
        "first_step_seconds": [] if test.is_prefill else arm.first_step_seconds,
        "positions_processed": test.positions,
        "predicted_seconds_per_step": [run.predicted_prefill()]
        if test.is_prefill
        else [run.predicted_step(arm.name, step) for step in steps],
        "bytes_per_step": [run.cost.bytes_read(work.depth, work.n_prompt)]
        if test.is_prefill
        else [run.cost.bytes_read(*where) for where in zip(starts, fed, strict=True)],
        "flops_per_step": [run.cost.flops(work.depth, work.n_prompt)]
        if test.is_prefill
        else [run.cost.flops(*where) for where in zip(starts, fed, strict=True)],
        "calibration": _calibration(run),
    }


def _calibration(run: Run) -> dict[str, float]:
    measured = run.calibration
    return {
        "read_gb_per_second": measured.read_bytes_per_second / 1e9,
        "gflops": measured.flops_per_second / 1e9,
        "attention_gflops": measured.attention_flops_per_second / 1e9,
        "overhead_seconds_per_step": measured.overhead_seconds_per_step,
        "overhead_seconds_per_position": measured.overhead_seconds_per_position,
    }


def _environment(environment: Environment) -> dict[str, str | int | float | None]:
    """The environment; the core type only where it is set, under the name of its variable."""
    names = asdict(environment)
    core_type = names.pop("openblas_core_type")
    return names | ({"OPENBLAS_CORETYPE": core_type} if core_type else {})


def _intervention(one: Intervention) -> dict[str, Any]:
    """The rows of one kind in one layer; logits that overflow as the greatest float32."""
    names = asdict(one) | {"step": one.step + 1}  # from 1 on, as everywhere in files
    names["max_abs_logit_change"] = [min(x, _GREATEST) for x in one.max_abs_logit_change]
    names["as_expected"] = one.as_expected
    if one.row != "q":
        del names["q_live"]
    return names


def _ledger(ledger: Ledger) -> dict[str, Any]:
    def step(count: StepCount) -> dict[str, Any]:
        return asdict(count) | {"pairs": count.pairs.tolist()}

    return {
        "layers": ledger.n_layers,
        "layer": ledger.layer,
        "on": [step(count) for count in ledger.on],
        "off": [step(count) for count in ledger.off],
        "reads_of_each_key": ledger.reads_of_keys.tolist(),
        "reads_of_each_value": ledger.reads_of_values.tolist(),
        "reads_of_each_query": ledger.reads_of_queries.tolist(),
        "times_each_row_is_computed_without_cache": ledger.recomputed.tolist(),
        "totals_compared": ledger.n_compared,
        "totals_different": ledger.n_different,
        "agrees": ledger.agrees,
    }


def comparison_json(comparison: ReportComparison, *, names: tuple[str, str]) -> dict[str, Any]:
    """Two reports of these names side by side, as JSON with stable names."""
    return {
        "reports": list(names),
        "results": [
            test.key._asdict()
            | {
                "tokens_per_second": [asdict(test.one), asdict(test.other)],
                "ratio": test.ratio,
                "beyond_spread": test.beyond_spread,
            }
            for test in comparison.tests
        ],
        "only_in_one": [comparison.only_one, comparison.only_other],
        "differences": list(comparison.differences),
    }


def bench_lines(report: BenchReport, context: ReportContext) -> str:
    """One JSON object for each test, under the names of llama-bench where it has them."""
    lines = []
    for test in rows_of(report):
        work = test.run.workload
        rates = spread(test.rates)
        line = {
            "model_filename": context.model,
            "model_hash": context.model_hash,
            "model_type": f"{context.family} {test.run.dtype}",
            "model_size": test.run.weight_bytes,
            "model_n_params": context.n_parameters,
            "cpu_info": context.environment.cpu,
            "backends": test.run.backend,
            "n_threads": test.run.threads,
            "type_k": test.run.cache_dtype,
            "type_v": test.run.cache_dtype,
            "n_prompt": work.n_prompt if test.is_prefill else 0,
            "n_gen": 0 if test.is_prefill else work.n_gen,
            "n_depth": test.depth,
            "test": test.title,
            "cache": test.arm.name,
            "prefill": test.run.prefill,
            "avg_ts": rates.mean,
            "stddev_ts": rates.stdev,
            "samples_ts": test.rates,
            "median_ts": rates.median,
            "environment": _environment(context.environment),
        }
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


def bench_markdown(report: BenchReport, context: ReportContext) -> str:
    """A table as llama-bench prints it, with one more column for the cache."""
    lines = [
        "| model | size | params | backend | threads | cache | test | t/s |",
        "| --- | ---: | ---: | --- | ---: | --- | ---: | ---: |",
    ]
    for test in rows_of(report):
        run, rates = test.run, spread(test.rates)
        kind = f"{context.family} {run.dtype}" + " rounded prefill" * (run.prefill == "fast")
        lines.append(
            f"| {_markdown(kind)} | {run.weight_bytes / 2**20:.2f} MiB | "
            f"{context.n_parameters / 1e6:.2f} M | {run.backend} | {run.threads} | "
            f"{test.arm.name} | {test.title} | {rates.mean:.2f} ± {rates.stdev:.2f} |"
        )
    environment = _environment(context.environment)
    known = (f"{name} {value}" for name, value in environment.items() if value is not None)
    notes = [f"{context.model} ({context.model_hash})", *known]
    return "\n".join(lines) + "\n\n" + " · ".join(map(_markdown, notes)) + "\n"


def _markdown(text: str) -> str:
    """A name from elsewhere on one line, without what begins a cell, code, a tag or a link."""
    return re.sub(r"([\\|`<\[])", r"\\\1", one_line(text))


def bench_csv(report: BenchReport) -> str:
    """One row for each decode step of each arm: its position, time and prediction.

    No cell is text from elsewhere, which a spreadsheet might take for a formula.
    """
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(
        [
            "test", "cache", "dtype", "cache_dtype", "backend", "threads", "step", "position",
            "positions_run", "median_seconds", "min_seconds", "max_seconds", "predicted_seconds",
        ]
    )  # fmt: skip
    for test in rows_of(report):
        if test.is_prefill:
            continue
        run, arm = test.run, test.arm
        for step in range(run.workload.n_gen):
            samples = [one[step] for one in arm.step_seconds]
            writer.writerow(
                [
                    test.title, arm.name, run.dtype, run.cache_dtype, run.backend, run.threads,
                    step + 1, run.workload.length + step, run.workload.fed(arm.name, step),
                    f"{arm.median_step(step):.9f}", f"{min(samples):.9f}", f"{max(samples):.9f}",
                    f"{run.predicted_step(arm.name, step):.9f}",
                ]
            )  # fmt: skip
    return rows.getvalue()
