"""What a benchmark says on the terminal, as plain data: for a page with the same words."""

from __future__ import annotations

from typing import Any

from kvgen.bench.report import BenchReport, ReportContext
from kvgen.render.bench import answers_of, counts_of, name_in, setting_of, verdict_of
from kvgen.render.bench_details import (
    crossing_words,
    first_step_words,
    last_step_words,
    machine_words,
    positions_words,
)
from kvgen.render.bench_tables import (
    ledger_rows,
    ledger_strips,
    position_rows,
    rate_rows,
    rate_terms,
)
from kvgen.render.need import Strips, later_token_strips, need_words, recomputed_strips


def bench_words(report: BenchReport, context: ReportContext) -> dict[str, Any]:
    """All sentences, tables and strips, in what JSON can hold.

    As on the terminal, several runs have their rates, checks and times by position alone; `missing`
    says in a sentence each what the report lacks, and why.
    """
    run, alone = report.runs[0], is_alone(report)
    ledger, later = report.ledger, report.later_token
    shown = "off" in report.plan.arms
    need = need_words(report) if alone else None
    again = [_strips(recomputed_strips(report.recomputed), "layer")] if report.recomputed else []
    again += [_strips(later_token_strips(later), "position")] if later and later.causal else []
    return {
        "answers": answers_of(report),
        "setting": setting_of(report, context),
        "verdicts": [
            line for one in report.runs for line in verdict_of(one, name=name_in(report, one))
        ],
        "counts": counts_of(report),
        "rates": rate_rows(report, details=True)._asdict(),
        "terms": rate_terms(report, details=True),
        "runs": [
            {
                "name": name_in(report, one),
                "positions": position_rows(one, range(one.workload.n_gen))._asdict(),
            }
            for one in report.runs
        ],
        "timed": [*first_step_words(run), *crossing_words(report)] if alone else [],
        "need": need._asdict() if need is not None else None,
        "again": again if alone else [],
        "ledger": ledger_rows(ledger, shown=shown)._asdict() if ledger and alone else None,
        "reads": [
            {**strip._asdict(), "of_rows": strip.of_rows.tolist()}
            for strip in (ledger_strips(ledger, shown=shown) if ledger and alone else [])
        ],
        "counted": positions_words(report) if ledger and alone else [],
        "computed": [*machine_words(run, context), *last_step_words(run)] if alone else [],
        "missing": missing_parts(report),
    }


def _strips(of: Strips, by: str) -> dict[str, Any]:
    """Strips under a title, each by layer or by position."""
    return {**of._asdict(), "strips": [strip._asdict() for strip in of.strips], "by": by}


def is_alone(report: BenchReport) -> bool:
    """Whether the report has a single run with decode steps, of which every part can be shown."""
    return len(report.runs) == 1 and bool(report.runs[0].workload.n_gen)


def missing_parts(report: BenchReport) -> list[str]:
    """What the report does not hold, and what to run for it, in a sentence each."""
    arms, plan = report.plan.arms, report.plan
    if not report.runs[0].workload.n_gen:
        return ["no decode steps were run: ask for some with -n"]
    missing = []
    if "off" not in arms and "on+q" in arms:
        missing.append("the arm without the cache was not run: add --no-cache")
    if len(report.runs) > 1:
        missing.append(
            "changed rows, counted rows and maps are shown for a single run: ask for one length, "
            "dtype and backend"
        )
    elif report.interrupted:
        parts = [
            ("maps", report.maps),
            ("changed rows", report.interventions),
            ("counted rows", report.ledger),
        ]
        names = [name for name, part in parts if not part]
        if names:
            missing.append(f"the run was interrupted before it had {', '.join(names)}")
    elif not report.interventions and {"off", "on+q"} & set(arms) and not plan.most_positions:
        missing.append("no kept rows were changed: leave out --changed-rows 0")
    elif not report.interventions:
        missing.append("no kept rows were changed: add --no-cache or --q-cache")
    return missing
