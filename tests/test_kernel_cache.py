"""Compiled kernels are kept from run to run, and no state of that folder can stop a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import pytest

from kvgen.engine.fast import compiler
from tests.conftest import Loader

SCRIPT = """
import sys, kvgen
from kvgen.engine.fast import compiler
from kvgen.engine.fast.worker_loop import worker_loop
model = kvgen.load(sys.argv[1], backend="numba")
model.logits([1, 2, 3])
hits, misses = worker_loop.stats.cache_hits, worker_loop.stats.cache_misses
print(compiler.FOLDER, sum(hits.values()), sum(misses.values()))
"""


def load_in_a_process(folder: Path, **environment: str) -> tuple[str, int, int]:
    """The kernel folder, cache hits and misses of a fresh process that loads a tiny model."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        capture_output=True,
        env=os.environ | environment,
        check=True,
        timeout=300,
    )
    place, hits, misses = run.stdout.decode().split()
    return place, int(hits), int(misses)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def test_another_process_takes_the_kernels_of_this_one(
    tiny_folder: Callable[..., Path], tiny_model: Loader
) -> None:
    # Another family with the same stored type needs no kernel of its own.
    tiny_model("gpt2", backend="numba")
    place, hits, misses = load_in_a_process(tiny_folder("llama_gqa"))
    assert (place, hits, misses) == (str(compiler.FOLDER), 1, 0)


@pytest.mark.slow
def test_a_second_process_compiles_nothing(kernels: Path, tiny_folder: Callable[..., Path]) -> None:
    first = load_in_a_process(tiny_folder("gpt2"), KVGEN_CACHE_DIR=str(kernels))
    # Another family with the same stored type needs no kernel of its own.
    second = load_in_a_process(tiny_folder("llama_gqa"), KVGEN_CACHE_DIR=str(kernels))
    assert first[1:] == (0, 1) and second[1:] == (1, 0)
    assert first[0] == second[0] and first[0].startswith(str(kernels))


@pytest.mark.slow
def test_a_damaged_kernel_file_is_made_again(
    kernels: Path, tiny_folder: Callable[..., Path]
) -> None:
    for file in kernels.rglob("*.nb?"):
        file.write_bytes(file.read_bytes()[:50])
    place, _, _ = load_in_a_process(tiny_folder("gpt2"), KVGEN_CACHE_DIR=str(kernels))
    assert place.startswith(str(kernels))


def test_a_place_that_cannot_be_written_to_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KVGEN_CACHE_DIR", str(tmp_path / "file"))
    assert compiler.kernel_folder() is None


@pytest.mark.slow
def test_without_a_place_for_kernels_everything_still_runs(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    place, hits, _ = load_in_a_process(tiny_folder("gpt2"), KVGEN_CACHE_DIR=str(blocked))
    assert (place, hits) == ("None", 0)


def test_folders_of_old_versions_are_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVGEN_CACHE_DIR", str(tmp_path))
    old, recent = tmp_path / "kernels" / "old", tmp_path / "kernels" / "recent"
    for folder in (old, recent):
        folder.mkdir(parents=True)
    long_ago = time.time() - 40 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    folder = compiler.kernel_folder()
    assert folder is not None and folder.parent == tmp_path / "kernels"
    assert not old.exists() and recent.exists()


def test_the_compiler_setting_of_others_is_left_alone() -> None:
    assert str(compiler.FOLDER) not in str(numba.config.CACHE_DIR)
