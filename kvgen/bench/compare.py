"""Two saved reports: which tests they share, the ratios, and what noise alone would explain."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from kvgen.bench.report import Spread
from kvgen.errors import UsageError


class ComparisonKey(NamedTuple):
    """What two reports must agree on for a test of theirs to be the same, as they write it."""

    test: str  # pp512, tg128
    depth: int
    cache: str
    dtype: str
    cache_dtype: str
    backend: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One test of both reports, in tokens per second."""

    key: ComparisonKey
    one: Spread
    other: Spread

    @property
    def ratio(self) -> float:
        """The second report's median by the first one's."""
        return self.other.median / self.one.median

    @property
    def beyond_spread(self) -> bool:
        """Whether all samples of one report lie beyond all of the other's."""
        return self.other.min > self.one.max or self.other.max < self.one.min


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportComparison:
    """The tests that two reports share, and what else differs between them."""

    tests: tuple[Comparison, ...]
    only_one: int  # tests that the other report does not have
    only_other: int
    differences: tuple[str, ...]  # of model and environment, in words


def compare_reports(one: Any, other: Any) -> ReportComparison:
    """Match the results of two reports as `bench_json` makes them.

    Raises UsageError where they are something else, or share no test.
    """
    try:
        sides = [
            {_key(result): _spread(result["tokens_per_second"]) for result in side}
            for side in (one["results"], other["results"])
        ]
        tests = tuple(
            Comparison(key=key, one=rates, other=sides[1][key])
            for key, rates in sides[0].items()
            if key in sides[1]
        )
        facts = [{"model": side["model"], **side["environment"]} for side in (one, other)]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise UsageError(
            "--compare needs two reports written by `kvgen bench -o FILE.json`"
        ) from None
    if not tests:
        raise UsageError("the reports share no test: same test, depth, cache, dtype and threads")
    names = dict.fromkeys([*facts[0], *facts[1]])
    return ReportComparison(
        tests=tests,
        only_one=len(sides[0]) - len(tests),
        only_other=len(sides[1]) - len(tests),
        differences=tuple(
            f"{name}: {facts[0].get(name)} -> {facts[1].get(name)}"
            for name in names
            if name != "load_average" and facts[0].get(name) != facts[1].get(name)
        ),
    )


def _key(result: Any) -> ComparisonKey:
    """The key of a result; its text may say anything, since the file may be from elsewhere."""
    return ComparisonKey(
        test=str(result["test"]),
        depth=int(result["depth"]),
        cache=str(result["cache"]),
        dtype=str(result["dtype"]),
        cache_dtype=str(result["cache_dtype"]),
        backend=str(result["backend"]),
        threads=int(result["threads"]),
    )


def _spread(rates: Any) -> Spread:
    """The rates of a result. Raises ValueError for one that no test can have."""
    spread = Spread(**{field.name: float(rates[field.name]) for field in fields(Spread)})
    if not spread.median > 0:
        raise ValueError("a rate must be above 0")
    return spread
