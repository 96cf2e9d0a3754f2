"""What this machine does in a second, measured once and kept: the yardstick for a run's speed.

Here are the numbers, the clock for them, and the file that keeps them. Each engine measures its own
kernels (`Engine.calibrate`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Protocol

from kvgen.atomic_write import write_atomically
from kvgen.engine.config import ModelConfig
from kvgen.engine.machine import cpu_name, user_cache

FEWEST_SAMPLES, MEASURED_SECONDS = 5, 0.15  # of a median
_MORE_THAN_NOISE = 1.25  # a run that reads faster by so much was calibrated at a slower moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a machine does in a second with an engine's own kernels and nothing else to do."""

    read_bytes_per_second: float  # weights multiplied with one vector: every byte is read once
    flops_per_second: float  # weights multiplied with many: every number is used again
    attention_flops_per_second: float  # scores, softmax and sums of V in a prefill
    # What else a forward takes (norms, activations, threads that wait for one another); 0 where it
    # was not measured, as by an engine alone.
    overhead_seconds_per_step: float = 0.0  # a forward of one token
    overhead_seconds_per_position: float = 0.0  # of several: for each of them


def median_calibration(calibrations: Sequence[Calibration]) -> Calibration:
    """Several measurements of the same, each number the median of its kind."""
    of_kinds = zip(*(astuple(one) for one in calibrations), strict=True)
    names = (field.name for field in fields(Calibration))
    return Calibration(**dict(zip(names, map(statistics.median, of_kinds), strict=True)))


def median_seconds(work: Callable[[], object]) -> float:
    """The median time of some work after a warm-up: several times, and some time long."""
    work()
    samples: list[float] = []
    while len(samples) < FEWEST_SAMPLES or (sum(samples) < MEASURED_SECONDS and len(samples) < 200):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


class Calibrated(Protocol):
    """What of an engine its calibration depends on (see `kvgen.engine.contract.Engine`)."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def backend(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def calibrate(self) -> Calibration: ...


def known_calibration(engine: Calibrated, *, reached: float = 0.0) -> Calibration:
    """This machine's calibration for an engine, from an earlier run or measured now.

    It is kept in the user's cache folder, by CPU, threads, and kind and number of weights. Where a
    run has `reached` far more bytes per second than it says, other programs were busy when it was
    measured: it is measured again, and the faster one kept.
    """
    try:
        path: Path | None = user_cache() / "calibration.json"
    except RuntimeError:  # a user without a home
        path = None
    known = _read(path) if path is not None else {}
    size = f"{engine.weight_bytes >> 20} MiB in rows of {engine.config.d_model}"
    key = f"{cpu_name()}, {engine.threads} threads, {engine.backend}: {size} as {engine.dtype}"
    before = known.get(key)
    if before is None or reached > _MORE_THAN_NOISE * before.read_bytes_per_second:
        now = engine.calibrate()
        known[key] = max(before or now, now, key=lambda one: one.read_bytes_per_second)
        if path is not None:
            _write(path, known)
    return known[key]


def _read(path: Path) -> dict[str, Calibration]:
    """What is known; a file that cannot be read, or says something else, knows nothing."""
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: Calibration(**{k: float(v) for k, v in x.items()}) for key, x in numbers.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, known: dict[str, Calibration]) -> None:
    """Keep what is known; where that cannot be, it is measured again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({key: asdict(one) for key, one in known.items()}, indent=1)
        write_atomically(path, f"{text}\n".encode())
    except OSError:
        return
