"""What this machine and this Python are, for reports."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kvgen
from kvgen.engine.cgroups import cpu_quota


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What timings depend on besides the code: CPU, BLAS, versions, and other work meanwhile."""

    cpu: str  # its name
    cores: int  # that this process may keep busy
    cpus: int  # of the whole machine
    last_level_cache_bytes: int | None  # None where the system does not say
    system: str
    python: str
    kvgen: str
    numpy: str | None  # versions; None where a package is not installed
    numba: str | None
    blas: str
    blas_threads: int | None
    blas_architecture: str | None
    load_average: float | None  # see `_load_average`
    # An old core type in OPENBLAS_CORETYPE makes NumPy's products run at half speed.
    openblas_core_type: str | None


def peak_rss_bytes() -> int | None:
    """The most memory that this process has held, None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment() -> Environment:
    """This machine and this Python, as they are now."""
    from threadpoolctl import threadpool_info

    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    blas: dict[str, Any] = pools[0] if pools else {}
    return Environment(
        cpu=cpu_name(),
        cores=usable_cores(),
        cpus=os.cpu_count() or 1,
        last_level_cache_bytes=last_level_cache_bytes(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        kvgen=kvgen.__version__,
        numpy=_version("numpy"),
        numba=_version("numba"),
        blas=f"{blas.get('internal_api', 'unknown')} {blas.get('version') or ''}".strip(),
        blas_threads=blas.get("num_threads"),
        blas_architecture=blas.get("architecture"),
        load_average=_load_average(),
        openblas_core_type=os.environ.get("OPENBLAS_CORETYPE") or None,
    )


def user_cache() -> Path:
    """Where kvgen keeps what it can make again; RuntimeError for a user without a home."""
    if chosen := os.environ.get("KVGEN_CACHE_DIR"):
        return Path(chosen)
    import platformdirs

    folder = platformdirs.user_cache_path("kvgen", appauthor=False)
    if not folder.is_absolute():
        raise RuntimeError("this user has no home")
    return folder


def usable_cores() -> int:
    """Cores that this process may keep busy: by affinity and quota, hardware threads counted once.

    Two hardware threads of one core share its arithmetic and its way to memory.
    """
    siblings = set()
    for cpu in _allowed_cpus():
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text(encoding="ascii"))
        except OSError:  # not Linux, or a machine that does not say
            siblings.add(str(cpu))
    return _within_quota(len(siblings))


def usable_cpus() -> int:
    """Threads of this process that can run at the same moment, by affinity and quota."""
    return _within_quota(len(_allowed_cpus()))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS, Windows


def _within_quota(n_cpus: int) -> int:
    """So many, or the CPUs of the control groups' quota, a part of one counted as one.

    With a quota of 1.5, two threads that stand still for a quarter of the time do more than one.
    """
    quota = cpu_quota()
    return n_cpus if quota is None else max(1, min(n_cpus, math.ceil(quota)))


def _load_average() -> float | None:
    """Processes that wanted to run, on average over the last minute; None where nobody counts."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # Windows
        return None


def _busy_cpu_seconds() -> tuple[float, float] | None:
    """Seconds that all CPUs together have been busy, and ours of them; None where unknown.

    What another virtual machine has taken of these CPUs counts as busy. Ours are those of this
    process and of the processes that it has started and that have ended.
    """
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
        ticks = user + nice + system + irq + softirq + steal
        own = os.times()
        ours = own.user + own.system + own.children_user + own.children_system
        return ticks / os.sysconf("SC_CLK_TCK"), ours
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return None


class OtherPrograms:
    """How many CPUs other programs keep busy meanwhile, on average over what is counted."""

    def __init__(self) -> None:
        self._others, self._seconds = 0.0, 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what happens inside the block."""
        before, began = _busy_cpu_seconds(), time.perf_counter()
        yield
        after = _busy_cpu_seconds()
        if before is not None and after is not None:
            self._others += (after[0] - before[0]) - (after[1] - before[1])
            self._seconds += time.perf_counter() - began

    @property
    def cpus(self) -> float | None:
        """None where the system does not tell, or nothing has been counted yet."""
        return max(0.0, self._others / self._seconds) if self._seconds else None


def last_level_cache_bytes() -> int | None:
    """The size of the largest cache that the first CPU reads through, None where unknown."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            sizes.append(int(path.read_text(encoding="ascii").strip().removesuffix("K")) << 10)
        except (OSError, ValueError):
            continue
    return max(sizes, default=None)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # slow to import

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
