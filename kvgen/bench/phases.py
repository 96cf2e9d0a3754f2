"""The phases of a benchmark, and how long each should take: for its progress, sizes and limit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

from kvgen.bench.contender import LONGEST_CROSSING_SECONDS, pass_seconds
from kvgen.bench.cost import cost_of
from kvgen.bench.ledger import COUNTED_STEPS
from kvgen.bench.plan import BenchPlan
from kvgen.bench.rounding import n_sessions
from kvgen.engine.calibration import Calibration
from kvgen.engine.contract import Engine

Phase = Literal[
    "comparing logits",
    "timing",
    "measuring the crossing",
    "drawing maps",
    "changing kept rows",
    "running changed queries uncached",
    "counting rows with the reference",
]
CALIBRATION_SECONDS = 1.0  # about, of each engine in each round
_REFERENCE_SLOWER = 8.0  # than the timed engine, about
_CROSSING_PASSES = 12  # about


def expected_seconds(
    engines: Sequence[Engine], calibrations: Sequence[Calibration], plan: BenchPlan
) -> dict[Phase, float]:
    """What each phase should take."""
    seconds: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)
    uncached = "off" in plan.arms
    n_passes = plan.warmup - 1 + plan.repetitions
    for engine, calibration in zip(engines, calibrations, strict=True):
        for workload in plan.workloads:
            one = partial(pass_seconds, engine, calibration, workload)
            seconds["timing"] += n_passes * sum(map(one, plan.arms))
            seconds["timing"] += plan.repetitions * CALIBRATION_SECONDS
            if uncached:
                runs = n_sessions(workload.n_gen)
                seconds["comparing logits"] += runs * one("on", timed=False)
            seconds["comparing logits"] += sum(one(arm, timed=False) for arm in {"on", *plan.arms})
        first, cost = plan.workloads[0], cost_of(engine)
        if first.n_gen and plan.most_positions and (uncached or "on+q" in plan.arms):
            n_layers = engine.config.n_layers
            rows = n_layers * (1 + 3 * min(first.length, plan.most_positions))
            step = cost.seconds(first.length, 1, calibration)
            seconds["changing kept rows"] += rows * step
            whole = cost.seconds(0, first.length + 1, calibration)
            seconds["running changed queries uncached"] += n_layers * whole * uncached
    first = plan.workloads[0]
    if not first.n_gen:
        return seconds
    cost, calibration = cost_of(engines[0]), calibrations[0]
    whole = cost.seconds(0, first.length + first.n_gen, calibration)
    seconds["drawing maps"] = pass_seconds(engines[0], calibration, first, "on", timed=False)
    seconds["drawing maps"] += 3 * whole * uncached
    if uncached and plan.over_seconds <= LONGEST_CROSSING_SECONDS:
        longest = cost.seconds(0, cost.config.max_context, calibration)
        seconds["measuring the crossing"] = _CROSSING_PASSES * min(plan.over_seconds, longest)
    n_runs = 2 + COUNTED_STEPS + 4 * uncached
    seconds["counting rows with the reference"] = _REFERENCE_SLOWER * n_runs * whole
    return seconds
