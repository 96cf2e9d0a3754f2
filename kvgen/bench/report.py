"""What a benchmark yields: plain data, from which tables, maps and files are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from kvgen.bench.cost import ModelCost
from kvgen.bench.interventions import Intervention, LaterToken, Recomputed
from kvgen.bench.ledger import Ledger
from kvgen.bench.plan import BenchPlan, Workload
from kvgen.choices import ArmName, Backend, CacheDTypeName, DTypeName, PrefillName
from kvgen.engine.calibration import Calibration
from kvgen.engine.machine import Environment
from kvgen.engine.tensors import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm's raw samples, in seconds."""

    name: ArmName
    prefill_seconds: tuple[float, ...]  # [repetitions]
    # [repetitions] of the first step behind the prefill, which the timed steps follow.
    first_step_seconds: tuple[float, ...]  # empty for the arm without a cache
    step_seconds: tuple[tuple[float, ...], ...]  # [repetitions][n_gen]

    def median_step(self, step: int) -> float:
        """Median over the repetitions of one step's seconds."""
        return median(samples[step] for samples in self.step_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The uncached arm's logits held against the cached arm's, at every step."""

    max_abs_logit_difference: float
    tolerance: float
    n_steps: int
    n_equal: int  # steps where both arms' most probable token is the same
    near_ties: int  # unequal ones whose two best logits lie within rounding of each other

    @property
    def tokens_equal(self) -> bool:
        return self.n_equal == self.n_steps

    @property
    def passed(self) -> bool:
        return (
            self.max_abs_logit_difference <= self.tolerance
            and self.n_equal + self.near_ties == self.n_steps
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMaps:
    """The weights of one head that each arm computed for one decode step, S visible positions."""

    step: int  # 0-based
    on: FloatArray  # the one row [1, S]
    off: FloatArray | None  # the whole triangle [S, S]; None where that arm did not run
    # Rows of K that this head's queries read, that is, scores q . k: counted by the engine.
    n_scores_on: int
    n_scores_off: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScores:
    """Scores q . k of the maps' head at one decode step, counted by the timed engine."""

    on: int
    off: int | None  # None where that arm did not run


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All arms of one engine on one text."""

    workload: Workload
    dtype: DTypeName
    cache_dtype: CacheDTypeName
    backend: Backend
    threads: int
    prefill: PrefillName
    weight_bytes: int
    arms: tuple[Arm, ...]
    verification: Verification | None  # None where there is no uncached arm
    steps_with_same_bits: int | None  # with Q kept and without; None where no arm keeps Q
    calibration: Calibration  # the medians of all below
    calibrations: tuple[Calibration, ...]  # before the passes, and in every round of them
    cost: ModelCost

    def arm(self, name: ArmName) -> Arm | None:
        """The arm of that name, None where it did not run."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def predicted_step(self, arm: ArmName, step: int) -> float:
        """Predicted seconds of a decode step, from 0 on."""
        work = self.workload
        return self.cost.seconds(work.start(arm, step), work.fed(arm, step), self.calibration)

    def predicted_prefill(self) -> float:
        """Predicted seconds of the timed prefill."""
        work = self.workload
        return self.cost.seconds(work.depth, work.n_prompt, self.calibration)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """Lengths around the one from which on an uncached token takes longer than a limit."""

    below: tuple[int, float] | None  # a length and its seconds; None where all were above
    above: tuple[int, float] | None  # None where the whole context stays below


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Everything that was measured; what follows `interrupted` is of the first text.

    Of a run that was interrupted, or had no decode steps, some of it is missing.
    """

    plan: BenchPlan
    generated_ids: tuple[tuple[int, ...], ...]  # of each workload
    runs: tuple[Run, ...]
    other_programs_cpus: float | None  # kept busy by other programs meanwhile; None: unknown
    interrupted: bool = False
    crossing: Crossing | None = None
    head: tuple[int, int] | None = None  # layer and head of the maps
    maps: tuple[StepMaps, ...] = ()
    scores: tuple[StepScores, ...] = ()  # of every decode step
    interventions: tuple[Intervention, ...] = ()  # of each engine, layer, and kind of row
    spoiled_queries: tuple[float, ...] = ()  # of each engine: see `spoil_old_queries`
    recomputed: tuple[Recomputed, ...] = ()  # of each engine and layer
    ledger: Ledger | None = None
    later_token: LaterToken | None = None

    @property
    def passed(self) -> bool:
        """Whether the arms agree, and every count and needed row is what it should be."""
        verified = all(run.verification is None or run.verification.passed for run in self.runs)
        return (
            verified
            and (self.ledger is None or self.ledger.agrees)
            and all(one.as_expected for one in self.interventions)
            and not any(self.spoiled_queries)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContext:
    """What a report says besides what was measured: the model, the prompt and the machine."""

    model: str  # its name
    model_hash: str
    family: str
    n_parameters: int
    prompt: str  # where the ids come from, in words
    seed: int | None  # of random ids
    environment: Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Some samples in five numbers."""

    median: float
    mean: float
    stdev: float  # 0 for a single sample
    min: float
    max: float


def spread(samples: Sequence[float]) -> Spread:
    """Median, mean, standard deviation, minimum and maximum of some samples."""
    return Spread(
        median=median(samples),
        mean=fmean(samples),
        stdev=stdev(samples) if len(samples) > 1 else 0.0,
        min=min(samples),
        max=max(samples),
    )
