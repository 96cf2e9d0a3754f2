"""Whether memory suffices, told before it is taken: else the system would end the process.

Only memory that will surely be used is counted, and everything that could be had counts as free:
what a run can fit into is never refused. Weights that are used where they lie in the mapped file
need none, for the system can read them again.
"""

from __future__ import annotations

from pathlib import Path

from kvgen.engine.cgroups import memory_left
from kvgen.errors import KvgenError

_LARGE = 2**26  # bytes; less is not looked at, for looking takes about a millisecond


def require_memory(advice: str, **parts: int) -> None:
    """Raise KvgenError where these parts, in bytes, need more memory than is free.

    >>> require_memory("take a smaller model", weights=10)
    """
    need = sum(parts.values())
    if need < _LARGE:
        return
    free = free_bytes()
    if free is None or need <= free:
        return
    named = ", ".join(f"{name.replace('_', ' ')} {_gib(n)}" for name, n in parts.items() if n)
    raise KvgenError(
        f"not enough memory: {_gib(need)} more are needed ({named}) and {_gib(free)} are free: "
        f"{advice}"
    )


def free_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process can still get, swap included; None where the system does not say.

    Of Linux (proc_meminfo(5), below `root`), and no more than its control groups leave it.
    """
    sizes: dict[str, int] = {}
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, size = line.partition(":")
            if name in ("MemAvailable", "SwapFree"):
                sizes[name] = int(size.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return None
    if "MemAvailable" not in sizes:
        return None
    left, swap = memory_left(root), sizes.get("SwapFree", 0)
    available = sizes["MemAvailable"]
    return (available if left is None else min(available, left)) + swap


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
