"""How much CPU time and memory Linux control groups let this process use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Mount(NamedTuple):
    """One hierarchy of groups: its folder, the group that the folder shows, this process's one."""

    folder: Path
    shown: PurePosixPath
    own: PurePosixPath

    def groups(self) -> Iterator[Path]:
        """The folders of this process's group and of those around it, as far as they are shown."""
        try:
            inner = self.folder / self.own.relative_to(self.shown)
        except ValueError:  # a namespace or a container hides the way: what is shown holds it
            inner = self.folder
        while inner != self.folder:
            yield inner
            inner = inner.parent
        yield self.folder


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that this process may keep busy, 1.5 for one and a half; None where there is no limit.

    The smallest limit of its own group and all groups around it, of both versions of control
    groups (cgroups(7), mounted below `root`). What cannot be read is no limit.
    """
    limits = [
        limit
        for mount in _mounts(root, "cpu")
        for group in mount.groups()
        for limit in (_limit_v2(group), _limit_v1(group))
        if limit is not None
    ]
    return min(limits, default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take; None where there is no limit.

    The least of its own group and all groups around it, where pages of files count as free: the
    system takes them back. What cannot be read is no limit.
    """
    left = [
        each
        for mount in _mounts(root, "memory")
        for group in mount.groups()
        for each in (
            _left(group, "memory.max", "memory.current", ""),
            _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        )
        if each is not None
    ]
    return min(left, default=None)


def _left(group: Path, limit: str, usage: str, prefix: str) -> int | None:
    """A group's limit, less what is used and is no page of a file; `max` is no limit."""
    try:
        left = int(_read(group / limit)) - int(_read(group / usage))
        pairs = (line.split() for line in _read(group / "memory.stat").splitlines())
        sizes = {name: int(size) for name, size in pairs}
    except ValueError:
        return None
    kinds = ("active_file", "inactive_file", "slab_reclaimable")
    return max(0, left + sum(sizes.get(prefix + kind, 0) for kind in kinds))


def _mounts(root: Path, wanted: str) -> Iterator[_Mount]:
    """The mounted hierarchies that can limit what a controller does (proc_pid_mountinfo(5))."""
    own: dict[str, PurePosixPath] = {}  # by controller, "" for version 2
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator and path.startswith("/"):
            own |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        fields, (filesystem, *options) = mount.split(" "), kind.split(" ")
        of_it = filesystem == "cgroup" and wanted in options[-1].split(",")
        controller = "" if filesystem == "cgroup2" else wanted
        if (of_it or filesystem == "cgroup2") and controller in own and len(fields) > 4:
            shown, place = (_unescaped(field) for field in fields[3:5])
            yield _Mount(root / place.lstrip("/"), PurePosixPath(shown), own[controller])


def _limit_v2(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    return _ratio(quota, period)


def _limit_v1(group: Path) -> float | None:
    return _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """Microseconds of CPU time in a period, by its length; `max` and -1 are no limit."""
    try:
        limit = int(quota) / int(period)
    except (ValueError, ArithmeticError):
        return None
    return limit if limit > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return ""


def _unescaped(field: str) -> str:
    r"""A path of mountinfo, where a space is \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
