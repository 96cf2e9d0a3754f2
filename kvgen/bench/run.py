"""The benchmark: the arms interleaved, then what they show. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from kvgen.bench.contender import LONGEST_CROSSING_SECONDS, Contender, Timings
from kvgen.bench.cost import calibrate_with_overhead, first_length_above
from kvgen.bench.interventions import (
    change_kept_rows,
    change_last_token,
    change_recomputed_queries,
    spoil_old_queries,
)
from kvgen.bench.ledger import count_rows, first_layers
from kvgen.bench.phases import CALIBRATION_SECONDS, Phase, expected_seconds
from kvgen.bench.plan import BenchPlan, check_steps
from kvgen.bench.report import BenchReport, Run, StepScores
from kvgen.choices import ArmName
from kvgen.engine.calibration import Calibration
from kvgen.engine.contract import Engine
from kvgen.engine.machine import OtherPrograms
from kvgen.engine.params import Params
from kvgen.engine.reference.decoder import ReferenceEngine

# Hears how many expected seconds of a phase are done since its last call.
OnProgress = Callable[[Phase, float], None]


class _Bench(NamedTuple):
    """What every phase is given."""

    engines: Sequence[Engine]
    params: Params
    expected: Mapping[Phase, float]
    on_progress: OnProgress

    def done(self, phase: Phase, fraction: float) -> None:
        self.on_progress(phase, fraction * self.expected[phase])


def bench(
    engines: Sequence[Engine],
    params: Params,
    plan: BenchPlan,
    *,
    calibrations: Sequence[Calibration],
    on_progress: OnProgress = lambda *_: None,
) -> BenchReport:
    """Run the plan on every engine.

    The first pass of each arm is not timed: it chooses the ids, compares the arms' logits, and
    warms everything up. Then the arms take turns (A B A B ...), with a calibration of each engine
    in every round. Untimed phases follow, on the first text: captured attention, kept rows changed
    one at a time, and rows counted on the reference engine around `params`.
    KeyboardInterrupt ends the measuring early, once there is a timed pass to report.
    Raises UsageError where the plan exceeds the context.
    """
    for workload in plan.workloads:
        check_steps(engines[0].config, workload.length, workload.n_gen)
    measured = [[calibration] for calibration in calibrations]
    runs: list[Run] = []
    contenders: list[Contender] = []  # the first engine's, of each text that was timed
    others, interrupted = OtherPrograms(), False
    for workload in plan.workloads:
        on_text: list[Contender] = []
        samples: list[list[dict[ArmName, Timings]]] = []
        try:
            for engine, speed in zip(engines, calibrations, strict=True):
                ids = on_text[0].ids if on_text else None
                on_text.append(Contender(engine, workload, plan, ids, speed, on_progress))
            for _ in range(plan.warmup - 1):
                _take_turns(on_text, plan)
            for _ in range(plan.repetitions):
                for number, engine in enumerate(engines):
                    measured[number].append(calibrate_with_overhead(engine))
                    on_progress("timing", CALIBRATION_SECONDS)
                with others.counted():
                    samples.append(_take_turns(on_text, plan))
        except KeyboardInterrupt:
            interrupted = True
            if not samples and not runs:
                raise
        if samples:
            contenders.append(on_text[0])
        for number, contender in enumerate(on_text if samples else []):
            passes = [turns[number] for turns in samples]
            runs.append(contender.result(passes, measured[number]))
        if interrupted:
            break
    report = BenchReport(
        plan=plan,
        generated_ids=tuple(tuple(one.ids[one.workload.length :]) for one in contenders),
        runs=tuple(runs),
        other_programs_cpus=others.cpus,
        interrupted=interrupted,
    )
    if interrupted or not plan.workloads[0].n_gen:
        return report
    about = _Bench(engines, params, expected_seconds(engines, calibrations, plan), on_progress)
    try:
        for find in (_crossing, _maps, _needs, _counts):
            report = find(report, contenders[0], about)
    except KeyboardInterrupt:
        report = replace(report, interrupted=True)
    return report


def _take_turns(contenders: Sequence[Contender], plan: BenchPlan) -> list[dict[ArmName, Timings]]:
    """One timed pass of every arm of every contender."""
    return [{arm: contender.timed(arm) for arm in plan.arms} for contender in contenders]


def _crossing(report: BenchReport, contender: Contender, about: _Bench) -> BenchReport:
    """The lengths around the one where an uncached token passes the limit, measured."""
    run, limit = report.runs[0], report.plan.over_seconds
    off = run.arm("off")
    if off is None or limit > LONGEST_CROSSING_SECONDS:
        return report
    last, longest = run.workload.n_gen - 1, run.cost.config.max_context
    # The prediction, corrected by the measurement of the last step.
    factor = off.median_step(last) / run.predicted_step("off", last)
    guess = first_length_above(
        limit, lambda length: factor * run.cost.seconds(0, max(1, length), run.calibration), longest
    )
    crossing = contender.crossing(guess or longest)
    about.done("measuring the crossing", 1)
    return replace(report, crossing=crossing)


def _maps(report: BenchReport, contender: Contender, about: _Bench) -> BenchReport:
    head, maps = contender.maps()
    about.done("drawing maps", 1)
    return replace(report, head=head, maps=maps, scores=_scores(contender, head[0]))


def _scores(contender: Contender, layer: int) -> tuple[StepScores, ...]:
    """What every decode step of both arms computed in one head of a layer."""
    n_heads = contender.engine.config.n_heads
    on = [int(read.k[layer]) // n_heads for read in contender.totals["on"]]
    off = [int(read.k[layer]) // n_heads for read in contender.totals.get("off", [])]
    return tuple(StepScores(on=one, off=off[step] if off else None) for step, one in enumerate(on))


def _needs(report: BenchReport, contender: Contender, about: _Bench) -> BenchReport:
    """Which rows the first decode step needs, on every engine."""
    plan, n_before = report.plan, contender.workload.length
    if not {"off", "on+q"} & set(plan.arms) or not plan.most_positions:
        return report
    ids = contender.ids[: n_before + 1]
    n_layers = about.params.config.n_layers
    n_rows = n_layers * (1 + 3 * min(n_before, plan.most_positions)) * len(about.engines)
    n_passes = n_layers * len(about.engines)
    interventions = [
        one
        for engine in about.engines
        for one in change_kept_rows(
            engine,
            ids,
            seed=plan.seed,
            most_positions=plan.most_positions,
            on_row=lambda: about.done("changing kept rows", 1 / n_rows),
        )
    ]
    spoiled = tuple(spoil_old_queries(engine, ids) for engine in about.engines)
    report = replace(report, interventions=tuple(interventions), spoiled_queries=spoiled)
    if "off" not in plan.arms:
        return report
    recomputed = [
        one
        for engine in about.engines
        for one in change_recomputed_queries(
            engine,
            ids,
            seed=plan.seed,
            on_pass=lambda: about.done("running changed queries uncached", 1 / n_passes),
        )
    ]
    return replace(report, recomputed=tuple(recomputed))


def _counts(report: BenchReport, contender: Contender, about: _Bench) -> BenchReport:
    """Rows counted by the reference engine, and what a later token changes in its K and V."""
    params = first_layers(about.params)
    engine = ReferenceEngine(params)
    n_before = contender.workload.length
    ledger = count_rows(engine, contender.ids, n_before, contender.totals)
    about.done("counting rows with the reference", 0.6)
    later = None
    if "off" in report.plan.arms:
        ids = contender.ids[: n_before + 1]
        later = change_last_token(engine, ids, seed=report.plan.seed)
    about.done("counting rows with the reference", 0.4)
    return replace(report, ledger=ledger, later_token=later)
