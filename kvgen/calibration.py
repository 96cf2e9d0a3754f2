"""What this machine can do, measured once and kept: the yardstick for a run's speed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from kvgen.engine import Calibration, Engine
from kvgen.machine import cpu_name, user_cache


def known_calibration(engine: Engine) -> Calibration:
    """This machine's calibration for an engine, from an earlier run or measured now.

    It is kept in the user's cache folder, by CPU, threads, and kind and number of weights.
    """
    try:
        path: Path | None = user_cache() / "calibration.json"
    except RuntimeError:  # a user without a home
        path = None
    known = _read(path) if path is not None else {}
    size = f"{engine.weight_bytes >> 20} MiB in rows of {engine.config.d_model}"
    key = f"{cpu_name()}, {engine.threads} threads, {engine.backend}: {size} as {engine.dtype}"
    if key not in known:
        known[key] = engine.calibrate()
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
    """Put the file in place as a whole; where that cannot be, it is measured again next time."""
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({key: asdict(one) for key, one in known.items()}, indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        return
