"""What this machine and this Python are, for reports."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

import kvgen


def peak_rss_bytes() -> int | None:
    """The most memory that this process has held, None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment() -> dict[str, str | int | None]:
    """CPU, threads, BLAS and versions: what a timing depends on besides the code."""
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    blas: dict[str, Any] = pools[0] if pools else {}
    facts: dict[str, str | int | None] = {
        "cpu": _cpu_name(),
        "cores": _usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "kvgen": kvgen.__version__,
        "numpy": _version("numpy"),
        "numba": _version("numba"),
        "blas": f"{blas.get('internal_api', 'unknown')} {blas.get('version') or ''}".strip(),
        "blas_architecture": blas.get("architecture"),
    }
    # An old core type in this variable makes NumPy's products run at half speed.
    if core_type := os.environ.get("OPENBLAS_CORETYPE"):
        facts["OPENBLAS_CORETYPE"] = core_type
    return facts


def _usable_cores() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
