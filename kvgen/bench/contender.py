"""One engine on one text: each arm's steps, timed, counted, compared and captured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal, NamedTuple

import numpy as np

from kvgen.attention.diagnostics import sink_mass
from kvgen.attention.steps import attention_weights
from kvgen.bench.cost import cost_of
from kvgen.bench.plan import BenchPlan, Workload
from kvgen.bench.report import Arm, Crossing, Run, StepMaps, Verification
from kvgen.bench.rounding import measure_rounding, n_sessions
from kvgen.choices import ArmName
from kvgen.engine.cache import RowsRead
from kvgen.engine.calibration import Calibration, median_calibration
from kvgen.engine.contract import Engine
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Capture
from kvgen.session import Session

PREFILL = -1  # the step before the first decode step
# Decode steps that run behind a prefill before steps are timed. The first takes up to twice its
# time, as the CPU's caches hold what the prefill used; it is timed by itself.
WARM_STEPS = 3
LONGEST_CROSSING_SECONDS = 1.0  # a longer limit for an uncached token is not looked for
_CROSSING_TRIES, _CROSSING_NEAR = 6, 1.1


class Timings(NamedTuple):
    """Seconds of one pass of an arm."""

    prefill: float
    first_step: tuple[float, ...]  # the one behind the prefill, () without a cache
    steps: tuple[float, ...]


class Contender:
    """One engine on one text. Its arms are fed the same ids; those without Q share a session."""

    def __init__(
        self,
        engine: Engine,
        workload: Workload,
        plan: BenchPlan,
        ids: Sequence[int] | None,
        calibration: Calibration,
        on_progress: Callable[[Literal["comparing logits", "timing"], float], None],
    ) -> None:
        """Run each arm once: the cached one chooses the ids, unless they are given.

        `on_progress` hears what each pass through the model should have taken, by `calibration`.
        """
        self.workload, self.engine = workload, engine
        self._plan, self._calibration, self._on_progress = plan, calibration, on_progress
        self._cost = cost_of(engine)
        self._phase: Literal["comparing logits", "timing", None] = "comparing logits"
        capacity = workload.length + workload.n_gen
        self._session = Session(engine, capacity)
        self._with_queries = self._session
        if "on+q" in plan.arms:
            cache = engine.new_cache(capacity, queries=True)
            self._with_queries = Session(engine, capacity, cache=cache)
        self.ids = list(workload.ids if ids is None else ids)
        self.totals: dict[ArmName, list[RowsRead]] = {arm: [] for arm in ("on", *plan.arms)}
        cached = self._decode()
        self._verification = self._compare(cached) if "off" in plan.arms else None
        self._same_bits = self._compare_bits(cached) if "on+q" in plan.arms else None
        self._phase = "timing"

    def _decode(self) -> list[FloatArray]:
        """Decode with the cache, greedily where the ids are not known; each step's logits [V]."""
        logits, _ = self._step("on", PREFILL)
        cached = []
        for step in range(self.workload.n_gen):
            if len(self.ids) == self.workload.length + step:
                self.ids.append(int(np.argmax(logits)))
            logits, _ = self._step("on", step, count=True)
            cached.append(logits)
        return cached

    def _compare(self, cached: Sequence[FloatArray]) -> Verification:
        """Run the uncached arm over the same ids and hold its logits against the cached ones."""
        greatest, largest, equal, near_ties = 0.0, 0.0, 0, 0
        for step, expected in enumerate(cached):
            uncached, _ = self._step("off", step, count=True)
            difference = float(np.abs(uncached - expected).max())
            greatest = max(greatest, difference)
            largest = max(largest, float(np.abs(expected).max()))
            if np.argmax(uncached) == np.argmax(expected):
                equal += 1
            else:
                second, best = np.partition(expected, -2)[-2:]
                near_ties += bool(best - second <= 2 * difference)
        rounding = measure_rounding(self.engine, self.ids, n_before=self.workload.length)
        one = pass_seconds(self.engine, self._calibration, self.workload, "on", timed=False)
        self._on_progress("comparing logits", n_sessions(len(cached)) * one)
        return Verification(
            max_abs_logit_difference=greatest,
            tolerance=rounding.allowed(largest, self.engine.cache_dtype),
            n_steps=len(cached),
            n_equal=equal,
            near_ties=near_ties,
        )

    def _compare_bits(self, cached: Sequence[FloatArray]) -> int:
        """Run the arm that keeps Q: the steps whose logits are the same to the bit."""
        self._step("on+q", PREFILL)
        kept = (self._step("on+q", step, count=True)[0] for step in range(self.workload.n_gen))
        return sum(np.array_equal(one, other) for one, other in zip(kept, cached, strict=True))

    def timed(self, arm: ArmName) -> Timings:
        """One pass of an arm. Its decode steps follow some that are not timed with them."""
        prefill, warm = self._step(arm, PREFILL)[1], []
        for _ in range(WARM_STEPS if arm != "off" and self.workload.n_gen else 0):
            warm.append(self._step(arm, 0)[1])
            self._session_of(arm).rewind(self.workload.length)
        steps = tuple(self._step(arm, step)[1] for step in range(self.workload.n_gen))
        return Timings(prefill, tuple(warm[:1]), steps)

    def result(
        self, passes: Sequence[dict[ArmName, Timings]], calibrations: Sequence[Calibration]
    ) -> Run:
        """What the timed passes have shown, and the medians of the calibrations beside them."""
        engine = self.engine
        return Run(
            workload=self.workload,
            dtype=engine.dtype,
            cache_dtype=engine.cache_dtype,
            backend=engine.backend,
            threads=engine.threads,
            prefill=engine.prefill,
            weight_bytes=engine.weight_bytes,
            arms=tuple(
                Arm(
                    name=arm,
                    prefill_seconds=tuple(one[arm].prefill for one in passes),
                    first_step_seconds=tuple(
                        seconds for one in passes for seconds in one[arm].first_step
                    ),
                    step_seconds=tuple(one[arm].steps for one in passes),
                )
                for arm in self._plan.arms
            ),
            verification=self._verification,
            steps_with_same_bits=self._same_bits,
            calibration=median_calibration(calibrations),
            calibrations=tuple(calibrations),
            cost=self._cost,
        )

    def crossing(self, guess: int) -> Crossing:
        """Measure the lengths around the one where an uncached token takes the plan's limit.

        Each length is the median of three passes over repeated ids; `guess` is tried first.
        """
        limit, context = self._plan.over_seconds, self.engine.config.max_context
        below: tuple[int, float] | None = None
        above: tuple[int, float] | None = None
        length = max(1, min(guess, context))
        for _ in range(_CROSSING_TRIES):
            ids = (self.ids * (1 + length // len(self.ids)))[:length]
            samples, session = [], Session(self.engine, length)
            for _ in range(3):
                session.rewind()
                began = time.perf_counter()
                session.feed(ids)
                samples.append(time.perf_counter() - began)
            seconds = median(samples)
            if seconds > limit:
                above = (length, seconds)
            else:
                below = (length, seconds)
            if below is not None and above is not None:
                if above[0] <= _CROSSING_NEAR * below[0] + 1:
                    break
                length = (below[0] + above[0]) // 2
            elif above is not None:
                length = max(1, int(length * min(0.95, limit / seconds)))
            elif length == context:
                break
            else:
                length = min(context, int(length * max(1.05, min(2.0, limit / seconds))) + 1)
        return Crossing(below=below, above=above)

    def maps(self) -> tuple[tuple[int, int], tuple[StepMaps, ...]]:
        """The weights that each arm computes at the first, a middle and the last step."""
        self._phase = None
        engine, length, n_gen = self.engine, self.workload.length, self.workload.n_gen
        capture = Capture(engine.config, range(engine.config.n_layers), len(self.ids))
        drawn = sorted({0, n_gen // 2, n_gen - 1}) if n_gen else []
        rows = {}  # of each step's query, in every layer [H, 1, S], when it has just been made
        counts = {}
        for step in range(PREFILL, n_gen):
            self._step("on", step, capture=capture)
            if step in drawn:
                S = length + step + 1
                trace = self._session.recording(n_prompt=length)
                rows[step] = [attention_weights(one, first=S - 1) for one in trace.layers]
                counts[step] = self._session.rows_read.k // engine.config.n_heads
        trace = self._session.recording(n_prompt=length)
        layer, head = self._plan.head or _least_on_sink(
            np.array([sink_mass(attention_weights(layer)) for layer in trace.layers])
        )
        maps = []
        for step in drawn:
            S = length + step + 1
            triangle, triangle_scores = None, None
            if "off" in self._plan.arms:
                again = Capture(engine.config, [layer], S)
                self._step("off", step, capture=again)
                whole = self._session.recording()
                triangle = attention_weights(whole.layers[0].only(head))[0]
                triangle_scores = int(self._session.rows_read.k[layer]) // engine.config.n_heads
            maps.append(
                StepMaps(
                    step=step,
                    on=rows[step][layer][head],
                    off=triangle,
                    n_scores_on=int(counts[step][layer]),
                    n_scores_off=triangle_scores,
                )
            )
        return (layer, head), tuple(maps)

    def _session_of(self, arm: ArmName) -> Session:
        return self._with_queries if arm == "on+q" else self._session

    def _step(
        self, arm: ArmName, step: int, *, count: bool = False, capture: Capture | None = None
    ) -> tuple[FloatArray, float]:
        """One step's logits [V] and seconds; the prefill is the same in all arms."""
        end = self.workload.length + step + 1
        start = 0 if arm == "off" else end - 1
        session = self._session_of(arm)
        session.capture = capture
        if step == PREFILL:
            session.rewind()
            start = self.workload.depth
            if start:
                session.feed(self.ids[:start], rope_length=end)
                self._tell(start)
        began = time.perf_counter()
        if start == 0:
            session.rewind()
        logits = session.feed(self.ids[start:end], rope_length=end)
        seconds = time.perf_counter() - began
        session.require_finite(logits)
        if count:
            self.totals[arm].append(session.rows_read)
        self._tell(session.positions_run, end)  # outside the clock
        return logits, seconds

    def _tell(self, n_run: int, end: int | None = None) -> None:
        """Say what a pass over so many positions, up to `end`, should have taken."""
        if self._phase is not None:
            start = 0 if end is None else end - n_run
            self._on_progress(self._phase, self._cost.seconds(start, n_run, self._calibration))


def _least_on_sink(mass: FloatArray) -> tuple[int, int]:
    layer, head = np.unravel_index(int(np.argmin(mass)), mass.shape)
    return int(layer), int(head)


def pass_seconds(
    engine: Engine,
    calibration: Calibration,
    workload: Workload,
    arm: ArmName,
    *,
    timed: bool = True,
) -> float:
    """What one pass of an arm should take: the prefill and every decode step.

    A pass that is not timed has no warm steps, and none of the arm without a cache a prefill.
    """
    cost = cost_of(engine)
    seconds = cost.seconds(0, workload.depth, calibration) if workload.depth else 0.0
    seconds += cost.seconds(workload.depth, workload.n_prompt, calibration)
    seconds *= timed or arm != "off"
    for step in range(workload.n_gen):
        start, fed = workload.start(arm, step), workload.fed(arm, step)
        seconds += cost.seconds(start, fed, calibration)
    if timed and workload.n_gen and arm != "off":
        start, fed = workload.start(arm, 0), workload.fed(arm, 0)
        seconds += WARM_STEPS * cost.seconds(start, fed, calibration)
    return seconds
