"""What a benchmark yields: plain data, from which tables, maps and JSON are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

from kvgen.tensors import FloatArray

Cache = Literal["on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What to run. Both arms feed the ids that the cached arm chose greedily."""

    prompt_ids: tuple[int, ...]
    n_gen: int
    repetitions: int = 5
    arms: tuple[Cache, ...] = ("on",)  # the cached arm always runs: it chooses the ids
    head: tuple[int, int] | None = None  # layer and head to draw; None: the one least on its sink

    @property
    def positions_per_pass(self) -> int:
        """Positions run by one pass of every arm."""
        return sum(self.positions(cache) for cache in self.arms)

    @property
    def total_positions(self) -> int:
        """Positions run by all passes but the few for the maps: one to verify, the others timed."""
        return (1 + self.repetitions) * self.positions_per_pass

    def positions(self, cache: Cache) -> int:
        """Positions run through the model by one pass of an arm."""
        return len(self.prompt_ids) + sum(self.positions_at(cache, i) for i in range(self.n_gen))

    def positions_at(self, cache: Cache, step: int) -> int:
        """Positions run through the model for one decode step."""
        return 1 if cache == "on" else len(self.prompt_ids) + step + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm's raw samples, in seconds."""

    cache: Cache
    prefill_seconds: tuple[float, ...]  # [repetitions]
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

    def n_scores(self, cache: Cache) -> int:
        """Scores q . k that this arm computes in one head at this step."""
        S = int(self.on.shape[1])
        return S if cache == "on" else S * (S + 1) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Everything that was measured."""

    plan: BenchPlan
    generated_ids: tuple[int, ...]
    arms: tuple[Arm, ...]
    verification: Verification | None
    head: tuple[int, int]
    maps: tuple[StepMaps, ...]

    def arm(self, cache: Cache) -> Arm | None:
        """The arm with the cache on or off, None where it did not run."""
        return next((arm for arm in self.arms if arm.cache == cache), None)


def spread(rates: Sequence[float]) -> dict[str, float]:
    """Median, mean, standard deviation, minimum and maximum of some samples."""
    return {
        "median": median(rates),
        "mean": fmean(rates),
        "stdev": stdev(rates) if len(rates) > 1 else 0.0,
        "min": min(rates),
        "max": max(rates),
    }
