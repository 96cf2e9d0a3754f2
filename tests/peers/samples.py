"""What one process of one engine measured, and the figures that many of them give."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from kvgen.atomic_write import write_atomically

OURS = "kvgen"
EXACT, FAST = "exact", "fast"  # settings of ours
# Tests, by the names that the results go by; the last one is the prefill of kvgen's `fast`.
PREFILL, PREFILL_FAST = "pp512", "pp512 fast"
TESTS = ("tg@16", "tg@960", PREFILL, PREFILL_FAST)
BUSY_CPUS = 0.1  # that other programs may lack and a sample still counts


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One process of an engine in one round."""

    round: int
    model: str
    format: str
    engine: str
    setting: str
    rates: dict[str, float]  # tokens per second, by test
    busy: bool  # whether other programs needed the CPUs too
    read_bytes_per_second: float | None = None  # of kvgen's own probe

    def rate(self, test: str) -> float | None:
        """Tokens per second of a test; kvgen's fast prefill is held against the others' prefill."""
        if self.engine == OURS and (self.setting == FAST) != (test == PREFILL_FAST):
            return None
        return self.rates.get(PREFILL if test == PREFILL_FAST else test)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How near an engine's numbers are to kvgen's own in float32, on a real model."""

    model: str
    format: str
    engine: str
    setting: str
    nats_per_token: float | None  # Kullback-Leibler divergence of the next token, on average
    same_greedy: int  # new tokens until the first one that differs
    n_greedy: int


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that is kept in the JSON file."""

    cpu: str
    cpus: int
    threads: int
    versions: dict[str, str] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    quality: tuple[Quality, ...] = ()

    def rows(self) -> list[tuple[str, str, str]]:
        """Model, format and test of every row that kvgen has a figure for, in order."""
        found = dict.fromkeys((one.model, one.format) for one in self.samples)
        return [
            (model, form, test)
            for model, form in found
            for test in TESTS
            if any(one.rate(test) for one in self.of(model, form, OURS))
        ]

    def of(self, model: str, form: str, engine: str) -> list[Sample]:
        """The samples of an engine."""
        wanted = (model, form, engine)
        return [one for one in self.samples if (one.model, one.format, one.engine) == wanted]

    def engines(self) -> list[str]:
        """Every engine, kvgen first."""
        return list(dict.fromkeys([OURS, *(one.engine for one in self.samples)]))


class Figure(NamedTuple):
    """An engine's result in a row: medians over the rounds, without busy samples."""

    setting: str
    rate: float  # tokens per second
    rounds: dict[int, float]
    ratio: float | None = None  # kvgen's rate over this one's, in rounds where both count
    least: float | None = None
    most: float | None = None


def figure(samples: Sequence[Sample], test: str) -> Figure | None:
    """The best setting's rates, None where every sample was busy.

    The best setting is the one with the highest median, not each round's best: the best of four
    noisy numbers is no engine's speed.
    """
    by_setting: dict[str, dict[int, float]] = {}
    for one in samples:
        rate = one.rate(test)
        if rate and not one.busy:
            by_setting.setdefault(one.setting, {})[one.round] = rate
    figures = [
        Figure(setting, statistics.median(rounds.values()), rounds)
        for setting, rounds in by_setting.items()
    ]
    return max(figures, key=lambda one: one.rate, default=None)


def compared(ours: Figure | None, theirs: Figure | None) -> Figure | None:
    """Their figure, with the ratios of the rounds in which both have a sample that counts."""
    if ours is None or theirs is None:
        return theirs
    both = ours.rounds.keys() & theirs.rounds.keys()
    if not both:
        return theirs
    ratios = [ours.rounds[each] / theirs.rounds[each] for each in both]
    return theirs._replace(ratio=statistics.median(ratios), least=min(ratios), most=max(ratios))


def is_busy(others: float | None, *, threads: int, cpus: int) -> bool:
    """Whether other programs, which kept so many CPUs busy, needed those of the measured one."""
    return others is not None and others + threads > cpus + BUSY_CPUS


def write_results(file: Path, results: Results) -> None:
    """Keep the results as JSON."""
    write_atomically(file, f"{json.dumps(asdict(results), indent=1)}\n".encode())


def read_results(file: Path) -> Results:
    """The results of a file that `write_results` wrote."""
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return replace(
        Results(**kept),
        samples=tuple(Sample(**one) for one in kept["samples"]),
        quality=tuple(Quality(**one) for one in kept["quality"]),
    )
