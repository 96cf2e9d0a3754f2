"""What the machine lets this process use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvgen.engine import machine
from kvgen.engine.cgroups import cpu_quota

V1 = "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
CPUSET = "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset"
DISK = "22 1 8:1 / / rw,relatime - ext4 /dev/root rw"


def write(root: Path, files: dict[str, str]) -> Path:
    """A tree of files like the system's."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def system(root: Path, own: str, mounts: list[str], limits: dict[str, str]) -> Path:
    """A system with these lines of /proc/self and these files below /sys/fs/cgroup."""
    proc = {"proc/self/cgroup": own, "proc/self/mountinfo": "\n".join([DISK, *mounts]) + "\n"}
    return write(root, proc | {f"sys/fs/cgroup/{name}": text for name, text in limits.items()})


def v1(group: str, quota: object, period: object = 100_000) -> dict[str, str]:
    """The files of a group of version 1."""
    folder = f"cpu,cpuacct/{group}".rstrip("/")
    return {
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": f"{period}\n",
    }


@pytest.mark.parametrize(
    ("own", "limits", "quota"),
    [
        ("/", {}, None),
        ("/", {"cpu.max": "200000 100000\n"}, 2.0),  # a container that sees its group as the root
        ("/app", {"app/cpu.max": "150000 100000\n"}, 1.5),
        ("/app", {"app/cpu.max": "max 100000\n"}, None),
        ("/app", {"cpu.max": "max 100000\n", "app/cpu.max": "25000 50000\n"}, 0.5),
        # The smallest of all around it wins, wherever it is.
        ("/a/b/c", {"a/cpu.max": "100000 100000", "a/b/c/cpu.max": "300000 100000"}, 1.0),
        ("/a/b/c", {"a/cpu.max": "max 100000", "a/b/c/cpu.max": "300000 100000"}, 3.0),
        ("/a/b", {"a/b/inner/cpu.max": "100000 100000", "other/cpu.max": "1000 100000"}, None),
        ("/a/gone (deleted)", {"a/cpu.max": "100000 100000"}, 1.0),
        ("/../../elsewhere", {"cpu.max": "300000 100000"}, 3.0),
    ],
)
def test_the_quota_of_groups_of_version_2(
    own: str, limits: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(system(tmp_path, f"0::{own}\n", [V2], limits)) == quota


@pytest.mark.parametrize(
    ("own", "limits", "quota"),
    [
        ("/", v1("", -1), None),
        ("/docker/abc", v1("", -1) | v1("docker/abc", 100_000), 1.0),
        ("/docker/abc", v1("docker", 50_000) | v1("docker/abc", 400_000), 0.5),
        ("/docker/abc", v1("docker", 600_000) | v1("docker/abc", -1), 6.0),
        ("/docker/abc", v1("docker/abc", 100_000, 0), None),
        ("/docker/abc", v1("docker/abc", 0), None),
    ],
)
def test_the_quota_of_groups_of_version_1(
    own: str, limits: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    lines = f"9:name=systemd:/elsewhere\n4:cpu,cpuacct:{own}\n3:cpuset:/\n"
    assert cpu_quota(system(tmp_path, lines, [CPUSET, V1], limits)) == quota


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    lines = "4:cpu,cpuacct:/app\n0::/user.slice/app\n"
    root = system(tmp_path, lines, [V1, UNIFIED], v1("app", 200_000))
    assert cpu_quota(root) == 2.0
    write(root, {"sys/fs/cgroup/unified/user.slice/cpu.max": "100000 100000\n"})
    assert cpu_quota(root) == 1.0


@pytest.mark.parametrize("own", ["/docker/abc", "/docker/abc/inner", "/", "/other"])
@pytest.mark.parametrize("shown", ["/docker/abc", "/.."])
def test_a_container_sees_its_group_where_the_mount_shows_it(
    own: str, shown: str, tmp_path: Path
) -> None:
    mount = V1.replace("0:28 / ", f"0:28 {shown} ")
    root = system(tmp_path, f"4:cpuacct,cpu:{own}\n", [mount], v1("", 100_000))
    assert cpu_quota(root) == 1.0


def test_a_mount_with_a_space_in_its_name(tmp_path: Path) -> None:
    mount = V2.replace("/sys/fs/cgroup", "/my\\040groups")
    root = system(tmp_path, "0::/\n", [mount], {})
    write(root, {"my groups/cpu.max": "100000 100000"})
    assert cpu_quota(root) == 1.0


@pytest.mark.parametrize("content", ["", "fast", "1 2 3", "-1 100000", "100000 0", "1e5 1e5", "\0"])
def test_a_limit_that_is_no_number_is_none(content: str, tmp_path: Path) -> None:
    root = system(tmp_path, "0::/app\n", [V2], {"app/cpu.max": content})
    assert cpu_quota(root) is None


@pytest.mark.parametrize("own", ["", "\n", "nonsense", "0:", "0::", "0::no/slash"])
@pytest.mark.parametrize("mount", ["", "-", " - ", " - cgroup2", "a b - cgroup x cpu", V2[:20]])
def test_a_system_that_says_something_else_has_no_quota(
    own: str, mount: str, tmp_path: Path
) -> None:
    limits = {"cpu.max": "100000 100000"}
    assert cpu_quota(system(tmp_path, own, [mount], limits)) is None
    assert cpu_quota(system(tmp_path, own, [mount, V2], limits)) is None
    assert cpu_quota(system(tmp_path, "0::/a\0b\n", [mount], limits)) is None


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "expected"),
    [(None, 4), (0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (3.99, 4), (64.0, 4)],
)
def test_no_more_threads_than_the_quota_lets_run(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.usable_cpus() == expected
    assert machine.usable_cores() <= expected


def test_processes_started_by_this_one_count_as_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = os.times_result((1.0, 2.0, 30.0, 40.0, 500.0))  # own, then children's, then elapsed
    monkeypatch.setattr(machine.os, "times", lambda: times)
    busy = machine._busy_cpu_seconds()
    if busy is None:
        pytest.skip("this system does not tell")
    assert busy[1] == 73.0
