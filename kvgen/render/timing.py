"""The timing block of `kvgen generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# What sets a prefill apart from an exact one.
_PREFILLS = {
    "fast": "   (rounded prefill: --prefill fast)",
    "stepwise": "   (stepwise: one token at a time)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimings:
    """Times and sizes of one generation.

    The first new token comes out of the prefill, so N new tokens take N - 1 decode steps.
    """

    load_seconds: float
    compile_seconds: float
    prefill_tokens: int  # run for the prompt: without those reused
    prefill_seconds: float
    decode_seconds: tuple[float, ...]  # one per decode step
    cache_on: bool
    positions: int  # length of the sequence in the end
    cache_bytes: int
    cache_dtype: str
    peak_rss_bytes: int | None
    prefill: str = "exact"
    bytes_per_step: float = 0  # weights and cache read by a decode step, on average
    bandwidth: float | None = None  # bytes per second that the machine reads; None: not measured
    # Cached steps that changed the rotary frequencies: the position fed, and positions run again.
    changes: tuple[tuple[int, int], ...] = ()
    constraint: str | None = None  # its kind, such as json-schema
    constraint_seconds: float = 0.0  # of prefill and decode, the part for the constraint
    reused: int | None = None  # positions of the prompt out of a prompt cache; None: without one

    @property
    def bytes_per_second(self) -> float:
        """Read by decode steps; 0 where there are none."""
        total = sum(self.decode_seconds)
        return self.bytes_per_step * len(self.decode_seconds) / total if total else 0.0

    def reuse(self) -> dict[str, int]:
        """Positions of the prompt: submitted, processed, reused; empty without a prompt cache."""
        if self.reused is None:
            return {}
        submitted = self.prefill_tokens + self.reused
        return {"submitted": submitted, "processed": self.prefill_tokens, "reused": self.reused}


def timing_block(run: RunTimings) -> str:
    """Prefill, decode and cache, a line each; loading and compiling apart and first."""
    n_steps, total = len(run.decode_seconds), sum(run.decode_seconds)
    lines = [f"load    {_duration(run.load_seconds)}"]
    if run.compile_seconds:
        lines[0] += f" · kernels {_duration(run.compile_seconds)}"
    if reuse := run.reuse():
        counts = " · ".join(f"{name} {count}" for name, count in reuse.items())
        lines.append(f"prompt  {counts} positions")
    lines.append(
        f"prefill {run.prefill_tokens:>4} tokens  {_duration(run.prefill_seconds):>8}  "
        f"{_rate(run.prefill_tokens, run.prefill_seconds):>8} tok/s"
        + _PREFILLS.get(run.prefill, "")
    )
    if n_steps:
        first, last = run.decode_seconds[0], run.decode_seconds[-1]
        lines.append(
            f"decode  {n_steps:>4} tokens  {_duration(total):>8}  {_rate(n_steps, total):>8} tok/s"
            f"   ({1e3 * total / n_steps:.2f} ms/token; first {1e3 * first:.2f}, "
            f"last {1e3 * last:.2f})"
        )
        if run.bandwidth is not None:
            read = run.bytes_per_second
            lines.append(
                f"memory  decode at {100 * read / run.bandwidth:.0f} % of this machine's memory "
                f"bandwidth   ({read / 1e9:.1f} of {run.bandwidth / 1e9:.1f} GB/s)"
            )
    if run.constraint is not None:
        n_tokens, spent = n_steps + 1, run.constraint_seconds
        lines.append(
            f"{run.constraint.removeprefix('json-'):<7} {n_tokens:>4} tokens  "
            f"{_duration(spent):>8}   ({1e3 * spent / n_tokens:.2f} ms/token, "
            "part of prefill and decode)"
        )
    kept = f"{run.positions} positions · {run.cache_bytes / 2**20:.1f} MiB {run.cache_dtype}"
    state = (
        f"on · {kept}{_changed(run.changes)}"
        if run.cache_on
        else "off · everything is recomputed at each step"
    )
    peak = f" · peak RSS {run.peak_rss_bytes / 2**20:.0f} MiB" if run.peak_rss_bytes else ""
    return "\n".join([*lines, f"cache   {state}{peak}"])


def fewer_threads(passes: Mapping[int, int], threads: int) -> str:
    """How many passes ran with fewer threads beside other programs; empty where hardly any did."""
    total = sum(passes.values())
    fewer = total - passes.get(threads, 0)
    if fewer <= 0.05 * total:  # a trial now and then says nothing
        return ""
    usual = max(passes, key=lambda n: passes[n] if n < threads else 0)
    return (
        f"other programs kept CPUs busy: {fewer:,} of {total:,} passes ran with fewer than "
        f"{threads} threads, most of them with {usual}"
    )


def _changed(changes: Sequence[tuple[int, int]]) -> str:
    """The positions run again because rotary frequencies changed, if any."""
    if not changes:
        return ""
    first, times = changes[0][0], f" ({len(changes)} changes)" if len(changes) > 1 else ""
    again = sum(positions for _, positions in changes)
    return (
        f" · rotary frequencies changed at position {first}{times}: {again:,} positions run again"
    )


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.1f}" if seconds > 0 else "-"
