"""A prompt cache whose process is killed, or whose disk is full, while it is written."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.command import Run, inside

STORY = "Once upon a time there was a little girl named Lily. She loved to play"
NO_KILL = 10_000  # lines: more than a write has
# Runs the command. At the given line of atomic_write.py, counted while the prompt cache is
# written, the process sends itself a signal; its files may have this many bytes then.
COMMAND_THAT_FAILS = """
import os, resource, signal, sys
from kvgen import prompt_cache
from kvgen.cli import main

line, sent, most_bytes, when_full = (int(sys.argv.pop(1)) for _ in range(4))
write_file = prompt_cache.write_file

def count(frame, event, _):
    global line
    if not frame.f_code.co_filename.endswith("atomic_write.py"):
        return None
    if event == "line":
        line -= 1
        if line == 0:
            os.kill(os.getpid(), sent)
    return count

def failing_write(*arguments, **options):
    if most_bytes:
        signal.signal(signal.SIGXFSZ, when_full)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.settrace(count)
    write_file(*arguments, **options)
    sys.settrace(None)

prompt_cache.write_file = failing_write
main()
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and limits of POSIX")


def arguments(file: Path, n_new: int) -> list[str]:
    return ["generate", STORY, "-n", str(n_new), "--greedy", "-q", "--prompt-cache", str(file)]


def failing(
    file: Path,
    *,
    line: int = NO_KILL,
    sent: signal.Signals = signal.SIGKILL,
    most_bytes: int = 0,
    when_full: signal.Handlers = signal.SIG_IGN,
) -> Run:
    """A run of 8 new tokens that fails while it writes the file."""
    plan = [str(int(number)) for number in (line, sent, most_bytes, when_full)]
    return subprocess.run(
        [sys.executable, "-c", COMMAND_THAT_FAILS, *plan, *arguments(file, 8)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The prompt cache of a run of 4 new tokens, alone in its folder."""
    path = tmp_path / "story.safetensors"
    assert inside(*arguments(path, 4)).returncode == 0
    return path


def n_positions(file: Path) -> int:
    return len(load_file(file)["token_ids"])


def unfinished(file: Path) -> list[Path]:
    return [other for other in file.parent.iterdir() if other != file]


def assert_next_run_succeeds(file: Path) -> None:
    """A longer run uses the file, replaces it, and leaves nothing else."""
    run = inside(*arguments(file, 12))
    assert (run.returncode, run.stderr) == (0, b"")
    assert unfinished(file) == []


@pytest.mark.parametrize(
    "every", [14, pytest.param(1, marks=pytest.mark.slow)], ids=["some lines", "all lines"]
)
@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (signal.SIGKILL, -signal.SIGKILL, b""),
        (signal.SIGTERM, 143, b"kvgen: terminated\n"),
        (signal.SIGINT, 130, b"kvgen: interrupted\n"),
    ],
    ids=["SIGKILL", "SIGTERM", "Ctrl-C"],
)
def test_a_signal_at_any_line_of_the_write_leaves_the_old_file_or_the_new(
    sent: signal.Signals, code: int, said: bytes, every: int, file: Path
) -> None:
    old, n_old = file.read_bytes(), n_positions(file)
    replaced = []
    for line in itertools.count(every, every):
        file.write_bytes(old)
        run = failing(file, line=line, sent=sent)
        if run.returncode == 0:
            break
        assert (run.returncode, run.stderr) == (code, said), line
        assert run.stdout, "the text is printed before the file is written"
        replaced.append(file.read_bytes() != old)
        assert n_positions(file) == n_old + (4 if replaced[-1] else 0), line
        for left in unfinished(file):
            assert sent == signal.SIGKILL and not replaced[-1], line
            left.unlink()
    assert replaced == sorted(replaced) and len(replaced) * every > 15
    assert every > 1 or {*replaced} == {False, True}
    assert_next_run_succeeds(file)


@pytest.mark.parametrize("part", [0.0, 0.3, 1.0], ids=["a byte", "a third", "all but a byte"])
def test_a_process_that_dies_in_the_middle_of_the_bytes_leaves_the_old_file(
    part: float, file: Path
) -> None:
    old = file.read_bytes()
    size = max(1, int(part * (len(old) - 1)))
    run = failing(file, most_bytes=size, when_full=signal.SIG_DFL)
    assert run.returncode == -signal.SIGXFSZ
    assert file.read_bytes() == old
    assert [left.stat().st_size for left in unfinished(file)] == [size]
    assert_next_run_succeeds(file)


def test_a_disk_that_takes_no_more_bytes_costs_the_new_file_only(file: Path) -> None:
    old = file.read_bytes()
    for size in (1, len(old) // 2, len(old)):
        run = failing(file, most_bytes=size)
        assert run.returncode == 1 and run.stdout
        assert run.stderr.decode() == f"kvgen: {file}: cannot be written: File too large\n"
        assert file.read_bytes() == old and unfinished(file) == []
    assert_next_run_succeeds(file)


def test_killed_processes_leave_one_unfinished_file_however_many_they_are(file: Path) -> None:
    for _ in range(3):
        failing(file, most_bytes=file.stat().st_size // 2, when_full=signal.SIG_DFL)
        assert len(unfinished(file)) == 1
    assert_next_run_succeeds(file)


def test_an_unfinished_file_of_a_process_that_lives_is_left_alone(file: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    alive, dead = (file.parent / f".kvgen-{name}.part" for name in ("alive", "dead"))
    dead.touch()
    with alive.open("wb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        assert inside(*arguments(file, 8)).returncode == 0
        assert unfinished(file) == [alive]
    assert_next_run_succeeds(file)


def test_a_part_that_is_removed_before_it_is_locked_is_made_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    removed = []

    def remove_the_first(part: object, _: int) -> None:
        if not removed:
            removed.append(part.name)  # type: ignore[attr-defined]
            Path(removed[0]).unlink()

    monkeypatch.setattr(fcntl, "flock", remove_the_first)
    assert_next_run_succeeds(file)
    assert removed
