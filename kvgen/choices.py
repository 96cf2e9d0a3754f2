"""What can be chosen by name, each list once; --help reads it, so nothing heavy is imported.

A `...Name` or `Backend` says what is, a `...Choice` what can be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from kvgen.errors import UsageError

Backend = Literal["numpy", "numba"]
BackendChoice = Literal["auto", Backend]
DTypeName = Literal["f32", "bf16", "f16", "int8"]
DTypeChoice = Literal["auto", DTypeName]
CacheDTypeName = Literal["f32", "f16", "int8"]
CacheDTypeChoice = Literal["auto", CacheDTypeName]
# Several positions at once, in float32; with activations rounded as the weights; one at a time.
PrefillName = Literal["exact", "fast", "stepwise"]
# One way to run the same work in a benchmark: keys and values kept; nothing; queries kept too.
ArmName = Literal["on", "off", "on+q"]

RowKind = Literal["k", "v", "q"]  # of a KV cache, which keeps queries for experiments alone

# Numbers of a map (kvgen.attention.measures), and what else --show takes.
Measure = Literal["weights", "scores", "scaled", "norm", "share", "cos", "distance"]
Shown = Literal[Measure, "rollout"]
# Numbers of a head (kvgen.attention.diagnostics).
MetricName = Literal[
    "sink", "previous", "induction", "duplicate", "entropy", "distance", "sink-later",
    "entropy-rest", "distance-all",
]  # fmt: skip
# Activations that can be taken from another prompt's run (kvgen.attention.patch).
PatchSite = Literal["head", "kv-head", "residual"]
Detail = Literal["auto", "maps", "full"]  # of a page (kvgen.page.content)
Scale = Literal["sqrt", "linear", "log"]
Pool = Literal["max", "mean"]
Sink = Literal["split", "keep", "drop"]
Color = Literal["auto", "always", "never"]

FIGURES = (".png", ".svg", ".pdf")  # endings of what matplotlib draws
ARRAY_FILES = (".npz", ".safetensors")  # of recordings that can be shown again
RECORDING_FILES = (*ARRAY_FILES, ".html", ".json", ".txt", *FIGURES)
REPORTS = (".html", ".json", ".jsonl", ".csv", ".md")  # endings of a benchmark's report
MOST_THREADS = 1024


def names(kind: Any) -> tuple[str, ...]:
    """The names of one of the kinds above, in the order in which they are written there."""
    given: tuple[str, ...] = get_args(kind)
    return given


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load and run a model. Raises UsageError where a value is not among the choices."""

    backend: BackendChoice = "auto"
    dtype: DTypeChoice = "auto"  # of weights
    cache_dtype: CacheDTypeChoice = "auto"  # of keys and values
    prefill: PrefillName = "exact"
    threads: int | None = None  # None: one for each core
    mmap: bool | None = None  # weights used in the mapped file; None: small ones are copied

    def __post_init__(self) -> None:
        """Check every value: callers of `kvgen.load` may pass anything."""
        check_choice("backend", self.backend, BackendChoice)
        check_choice("dtype", self.dtype, DTypeChoice)
        check_choice("cache dtype", self.cache_dtype, CacheDTypeChoice)
        check_choice("prefill", self.prefill, PrefillName)
        n = self.threads
        if n is not None and (not isinstance(n, int) or not 0 < n <= MOST_THREADS):
            raise UsageError(f"threads must be a whole number from 1 to {MOST_THREADS}, not {n!r}")
        if self.mmap not in (None, True, False):
            raise UsageError(f"mmap must be True, False or None, not {self.mmap!r}")


def check_choice(what: str, value: Any, kind: Any) -> None:
    """Raise UsageError for a value that is not among the names of a kind."""
    if value not in names(kind):
        raise UsageError(f"{what} {value!r} is not one of {', '.join(names(kind))}")
