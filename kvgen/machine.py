"""What this machine and this Python are, for reports."""

from __future__ import annotations

import math
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


def environment() -> dict[str, str | int | float | None]:
    """CPU, BLAS, versions, and how busy the machine is: what timings depend on besides the code."""
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    blas: dict[str, Any] = pools[0] if pools else {}
    facts: dict[str, str | int | float | None] = {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "kvgen": kvgen.__version__,
        "numpy": _version("numpy"),
        "numba": _version("numba"),
        "blas": f"{blas.get('internal_api', 'unknown')} {blas.get('version') or ''}".strip(),
        "blas_threads": blas.get("num_threads"),
        "blas_architecture": blas.get("architecture"),
        "load_average": _load_average(),
    }
    # An old core type in this variable makes NumPy's products run at half speed.
    if core_type := os.environ.get("OPENBLAS_CORETYPE"):
        facts["OPENBLAS_CORETYPE"] = core_type
    return facts


def user_cache() -> Path:
    """Where kvgen keeps what it can make again; RuntimeError for a user without a home."""
    if chosen := os.environ.get("KVGEN_CACHE_DIR"):
        return Path(chosen)
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser() / "kvgen" / "cache"
    if platform.system() == "Darwin":
        return Path("~/Library/Caches/kvgen").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kvgen"


def usable_cores() -> int:
    """Cores that this process may keep busy: by affinity and quota, hardware threads counted once.

    Two hardware threads of one core share its arithmetic and its way to memory.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text(encoding="ascii"))
        except OSError:
            siblings.add(str(cpu))
    return max(1, min(len(siblings), _cpu_quota()))


def _cpu_quota() -> int:
    """Whole CPUs that a Linux control group lets this process use; many where there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or the word "max"
        return 10**6


def _load_average() -> float | None:
    """Processes that wanted to run, on average over the last minute; None where nobody counts."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # Windows
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """What the system calls its processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
