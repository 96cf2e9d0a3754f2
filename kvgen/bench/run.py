"""Running the arms, interleaved, and checking one against the other. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from kvgen.attention.diagnostics import sink_mass
from kvgen.attention.steps import attention_weights
from kvgen.bench.cost import cost_of
from kvgen.bench.ledger import Counts, count_rows
from kvgen.bench.plan import BenchPlan, Workload
from kvgen.bench.report import Arm, BenchReport, Run, StepMaps, Verification
from kvgen.choices import ArmName, CacheDTypeName
from kvgen.engine.calibration import Calibration
from kvgen.engine.contract import Engine
from kvgen.engine.params import Params
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Capture
from kvgen.generate import check_lengths, require_finite
from kvgen.session import Session

# Both arms do the same float32 sums in another order: far below this share of the largest logit.
# In a float16 cache the last bits of such a sum may decide which way a key is rounded.
ROUNDING: dict[CacheDTypeName, float] = {"f32": 1e-4, "f16": 2e-3}
_PREFILL = -1  # the step before the first decode step


def bench(
    engines: Sequence[Engine],
    params: Params,
    plan: BenchPlan,
    *,
    calibrations: Sequence[Calibration],
    on_progress: Callable[[int], None] | None = None,
) -> BenchReport:
    """Run the plan on every engine. `on_progress` gets the positions run since its last call.

    The first pass of each arm is not timed: it chooses the ids, compares the arms' logits, and
    warms everything up. Then the arms take turns (A B A B ...). Untimed passes capture the
    attention and count rows, the latter on the reference engine around `params`. Raises UsageError
    where the plan exceeds the context.
    """
    for workload in plan.workloads:
        check_lengths(engines[0].config, workload.length, workload.n_gen)
    runs: list[Run] = []
    contenders: list[_Contender] = []
    for workload in plan.workloads:
        of_workload: list[_Contender] = []
        for engine in engines:
            ids = of_workload[0].ids if of_workload else None
            of_workload.append(
                _Contender(engine, workload, plan, ids, on_progress or (lambda _: None))
            )
        for _ in range(plan.warmup - 1):
            _take_turns(of_workload, plan)
        samples = [_take_turns(of_workload, plan) for _ in range(plan.repetitions)]
        for number, contender in enumerate(of_workload):
            runs.append(
                contender.result([passes[number] for passes in samples], calibrations[number])
            )
        contenders += of_workload
    first = contenders[0]
    head, maps = first.maps()
    return BenchReport(
        plan=plan,
        generated_ids=tuple(
            tuple(contender.ids[contender.workload.length :])
            for contender in contenders[:: len(engines)]
        ),
        runs=tuple(runs),
        ledger=count_rows(params, first.ids, first.workload.length, first.totals),
        head=head,
        maps=maps,
    )


def predicted_seconds(
    engines: Sequence[Engine], calibrations: Sequence[Calibration], plan: BenchPlan
) -> float:
    """What one pass of every arm should take."""
    total = 0.0
    for engine, calibration in zip(engines, calibrations, strict=True):
        cost = cost_of(engine)
        for workload in plan.workloads:
            for arm in plan.arms:
                total += cost.seconds(0, workload.length, calibration)
                for step in range(workload.n_gen):
                    start, fed = workload.start(arm, step), workload.fed(arm, step)
                    total += cost.seconds(start, fed, calibration)
    return total


def _take_turns(
    contenders: Sequence[_Contender], plan: BenchPlan
) -> list[dict[ArmName, list[float]]]:
    """One timed pass of every arm of every contender: seconds of the prefill and of each step."""
    return [{arm: contender.timed(arm) for arm in plan.arms} for contender in contenders]


class _Contender:
    """One engine on one text: its arms share a session, and are fed the same ids."""

    def __init__(
        self,
        engine: Engine,
        workload: Workload,
        plan: BenchPlan,
        ids: list[int] | None,
        on_progress: Callable[[int], None],
    ) -> None:
        """Run each arm once: the cached one chooses the ids, unless they are given."""
        self.workload = workload
        self._engine = engine
        self._plan = plan
        self._on_progress = on_progress
        capacity = workload.length + workload.n_gen
        self._session = Session(engine, capacity)
        self._queries = Capture(
            engine.config, range(engine.config.n_layers if "on+q" in plan.arms else 0), capacity
        )
        self.ids = list(workload.ids) if ids is None else ids
        self.totals: dict[ArmName, list[Counts]] = {arm: [] for arm in ("on", *plan.arms)}
        reference = self._decode()
        self.verification = self._compare(reference) if "off" in plan.arms else None
        if "on+q" in plan.arms:
            self._all_steps("on+q")

    def _decode(self) -> list[FloatArray]:
        """Decode with the cache, greedily where the ids are not known; each step's logits [V]."""
        logits, _ = self._step("on", _PREFILL)
        reference = []
        for step in range(self.workload.n_gen):
            if len(self.ids) == self.workload.length + step:
                self.ids.append(int(np.argmax(logits)))
            logits, _ = self._step("on", step, self.totals["on"])
            reference.append(logits)
        return reference

    def _compare(self, reference: Sequence[FloatArray]) -> Verification:
        """Run the uncached arm over the same ids and hold its logits against the cached ones."""
        greatest, largest, equal, near_ties = 0.0, 0.0, 0, 0
        for step, cached in enumerate(reference):
            uncached, _ = self._step("off", step, self.totals["off"])
            difference = float(np.abs(uncached - cached).max())
            greatest = max(greatest, difference)
            largest = max(largest, float(np.abs(cached).max()))
            if np.argmax(uncached) == np.argmax(cached):
                equal += 1
            else:
                second, best = np.partition(cached, -2)[-2:]
                near_ties += bool(best - second <= 2 * difference)
        return Verification(
            max_abs_logit_difference=greatest,
            tolerance=ROUNDING[self._engine.cache_dtype] * max(largest, 1.0),
            n_steps=len(reference),
            n_equal=equal,
            near_ties=near_ties,
        )

    def _all_steps(self, arm: ArmName) -> None:
        """One pass of an arm for its counts."""
        self._step(arm, _PREFILL)
        for step in range(self.workload.n_gen):
            self._step(arm, step, self.totals[arm])

    def timed(self, arm: ArmName) -> list[float]:
        """Seconds of the prefill and of every decode step of one arm."""
        return [self._step(arm, step)[1] for step in range(_PREFILL, self.workload.n_gen)]

    def result(self, passes: Sequence[dict[ArmName, list[float]]], calibration: Calibration) -> Run:
        """What the timed passes have shown."""
        engine = self._engine
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
                    prefill_seconds=tuple(one[arm][0] for one in passes),
                    step_seconds=tuple(tuple(one[arm][1:]) for one in passes),
                )
                for arm in self._plan.arms
            ),
            verification=self.verification,
            calibration=calibration,
            cost=cost_of(engine),
        )

    def maps(self) -> tuple[tuple[int, int], tuple[StepMaps, ...]]:
        """The weights that each arm computes at the first, a middle and the last step."""
        engine, length, n_gen = self._engine, self.workload.length, self.workload.n_gen
        capture = Capture(engine.config, range(engine.config.n_layers), len(self.ids))
        drawn = sorted({0, n_gen // 2, n_gen - 1}) if n_gen else []
        rows = {}  # of each step's query, in every layer [H, 1, S], when it has just been made
        for step in range(_PREFILL, n_gen):
            self._step("on", step, capture=capture)
            if step in drawn:
                S = length + step + 1
                trace = self._session.recording(n_prompt=length)
                rows[step] = [attention_weights(one, first=S - 1) for one in trace.layers]
        trace = self._session.recording(n_prompt=length)
        layer, head = self._plan.head or _least_on_sink(
            np.array([sink_mass(attention_weights(layer)) for layer in trace.layers])
        )
        maps = []
        for step in drawn:
            S = length + step + 1
            triangle = None
            if "off" in self._plan.arms:
                again = Capture(engine.config, [layer], S)
                self._step("off", step, capture=again)
                whole = self._session.recording()
                triangle = attention_weights(whole.layers[0].only(head))[0]
            maps.append(
                StepMaps(
                    step=step,
                    on=rows[step][layer][head],
                    off=triangle,
                    run_again=self.workload.fed("on", step) > 1,
                )
            )
        return (layer, head), tuple(maps)

    def _step(
        self,
        arm: ArmName,
        step: int,
        totals: list[Counts] | None = None,
        *,
        capture: Capture | None = None,
    ) -> tuple[FloatArray, float]:
        """One step's logits [V] and seconds; the prefill is the same in all arms."""
        end = self.workload.length + step + 1
        start = 0 if arm == "off" else end - 1
        session = self._session
        session.capture = self._queries if arm == "on+q" and capture is None else capture
        n_run = 0
        if step == _PREFILL:
            session.rewind()
            start = self.workload.depth
            if start:
                session.feed(self.ids[:start], rope_length=end)
                n_run = session.positions_run
        began = time.perf_counter()
        if start == 0:
            session.rewind()
        logits = session.feed(self.ids[start:end], rope_length=end)
        seconds = time.perf_counter() - began
        require_finite(logits)
        if totals is not None:
            totals.append(session.rows_read)
        self._on_progress(n_run + session.positions_run)  # outside the clock
        return logits, seconds


def _least_on_sink(mass: FloatArray) -> tuple[int, int]:
    layer, head = np.unravel_index(int(np.argmin(mass)), mass.shape)
    return int(layer), int(head)
