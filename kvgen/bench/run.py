"""Running the arms, interleaved, and checking one against the other. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from kvgen.attention.diagnostics import sink_mass
from kvgen.attention.record import gather
from kvgen.attention.steps import attention_weights
from kvgen.bench.report import Arm, BenchPlan, BenchReport, Cache, StepMaps, Verification
from kvgen.engine import Engine, KVCache
from kvgen.generate import check_lengths, prefill
from kvgen.tensors import CacheDTypeName, FloatArray
from kvgen.trace import Capture

# Both arms do the same float32 sums in another order: far below this share of the largest logit.
# In a float16 cache the last bits of such a sum may decide which way a key is rounded.
_ROUNDING: dict[CacheDTypeName, float] = {"f32": 1e-4, "f16": 2e-3}
_PREFILL = -1  # the step before the first decode step


def bench(
    engine: Engine, plan: BenchPlan, *, on_progress: Callable[[int], None] | None = None
) -> BenchReport:
    """Run the plan. `on_progress` gets the positions run since its last call.

    The first pass of each arm is not timed: it chooses the ids, compares the arms' logits, and
    warms everything up. Then the arms take turns (A B A B ...), and a last, untimed pass captures
    the attention. Raises UsageError where the plan exceeds the context.
    """
    check_lengths(engine.config, len(plan.prompt_ids), plan.n_gen)
    run = _Run(engine, plan, on_progress or (lambda _: None))
    reference = run.choose_ids()
    verification = run.compare(reference) if "off" in plan.arms else None
    samples: dict[Cache, list[list[float]]] = {cache: [] for cache in plan.arms}
    for _ in range(plan.repetitions):
        for cache in plan.arms:
            samples[cache].append(run.timed(cache))
    head, maps = run.maps()
    return BenchReport(
        plan=plan,
        generated_ids=tuple(run.ids[len(plan.prompt_ids) :]),
        arms=tuple(
            Arm(
                cache=cache,
                prefill_seconds=tuple(pass_[0] for pass_ in samples[cache]),
                step_seconds=tuple(tuple(pass_[1:]) for pass_ in samples[cache]),
            )
            for cache in plan.arms
        ),
        verification=verification,
        head=head,
        maps=maps,
    )


def seconds_per_position(engine: Engine, plan: BenchPlan) -> float:
    """Roughly what one position costs, from a short timed prefill; long ones cost more."""
    ids = plan.prompt_ids[:64]
    cache = engine.new_cache(len(ids))
    prefill(engine, ids, cache)
    cache.clear()
    began = time.perf_counter()
    prefill(engine, ids, cache)
    return (time.perf_counter() - began) / len(ids)


class _Run:
    """One benchmark: the engine, one cache for both arms, and the ids that both are fed."""

    def __init__(self, engine: Engine, plan: BenchPlan, on_progress: Callable[[int], None]) -> None:
        self._engine = engine
        self._plan = plan
        self._on_progress = on_progress
        self._cache: KVCache = engine.new_cache(len(plan.prompt_ids) + plan.n_gen)
        self.ids = list(plan.prompt_ids)

    def choose_ids(self) -> list[FloatArray]:
        """Decode greedily with the cache; each step's logits [V]."""
        logits, _ = self._step("on", _PREFILL)
        reference = []
        for step in range(self._plan.n_gen):
            self.ids.append(int(np.argmax(logits)))
            logits, _ = self._step("on", step)
            reference.append(logits)
        return reference

    def compare(self, reference: Sequence[FloatArray]) -> Verification:
        """Run the uncached arm over the same ids and hold its logits against the cached ones."""
        greatest, largest, equal, near_ties = 0.0, 0.0, 0, 0
        for step, cached in enumerate(reference):
            uncached, _ = self._step("off", step)
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
            tolerance=_ROUNDING[self._engine.cache_dtype] * max(largest, 1.0),
            n_steps=len(reference),
            n_equal=equal,
            near_ties=near_ties,
        )

    def timed(self, cache: Cache) -> list[float]:
        """Seconds of the prefill and of every decode step of one arm."""
        return [self._step(cache, step)[1] for step in range(_PREFILL, self._plan.n_gen)]

    def maps(self) -> tuple[tuple[int, int], tuple[StepMaps, ...]]:
        """The weights that each arm computes at the first, a middle and the last step."""
        engine, plan = self._engine, self._plan
        capture = Capture(engine.config, range(engine.config.n_layers), len(self.ids))
        for step in range(_PREFILL, plan.n_gen):
            self._step("on", step, capture)
        trace = gather(engine, self.ids, self._cache, capture, n_prompt=len(plan.prompt_ids))
        layer, head = plan.head or _least_on_sink(
            np.array([sink_mass(attention_weights(layer)) for layer in trace.layers])
        )
        rows = attention_weights(trace.layer(layer), first=len(plan.prompt_ids))[head]
        maps = []
        for step in sorted({0, plan.n_gen // 2, plan.n_gen - 1}) if plan.n_gen else ():
            S = len(plan.prompt_ids) + step + 1
            triangle = None
            if "off" in plan.arms:
                again = Capture(engine.config, [layer], S)
                self._step("off", step, again)
                whole = gather(engine, self.ids[:S], self._cache, again, n_prompt=S)
                triangle = attention_weights(whole.layers[0])[head]
            maps.append(StepMaps(step=step, on=rows[step : step + 1, :S], off=triangle))
        return (layer, head), tuple(maps)

    def _step(
        self, cache: Cache, step: int, capture: Capture | None = None
    ) -> tuple[FloatArray, float]:
        """One step's logits [V] and seconds; the prefill is the same in both arms."""
        end = len(self._plan.prompt_ids) + step + 1
        fed = self.ids[end - 1 : end] if cache == "on" and step != _PREFILL else self.ids[:end]
        began = time.perf_counter()
        if len(fed) == end:
            self._cache.clear()
        logits = prefill(self._engine, fed, self._cache, capture=capture)
        seconds = time.perf_counter() - began
        self._on_progress(len(fed))  # outside the clock
        return logits, seconds


def _least_on_sink(mass: FloatArray) -> tuple[int, int]:
    layer, head = np.unravel_index(int(np.argmin(mass)), mass.shape)
    return int(layer), int(head)
