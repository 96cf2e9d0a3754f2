"""Compiled kernels are kept from run to run, and no state of that folder can stop a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import pytest

import kvgen
from kvgen.choices import CacheDTypeName, DTypeName, PrefillName
from kvgen.engine.fast import engine, kernel_folder, target, team_loop
from kvgen.engine.fast.compiler import jit_entry
from kvgen.engine.fast.object_code import LinkedLoop, read_object_code, write_object_code
from kvgen.engine.fast.records import described, kind_of, table_of
from kvgen.engine.fast.team_loop import TeamLoop
from kvgen.engine.fast.worker_loop import worker_loop
from kvgen.errors import KvgenError
from tests import tiny
from tests.conftest import Loader

IDS = tiny.make_ids(70, seed=3)

# Prints the kernel folder and whether Numba had to be imported, which it is for compiling alone.
SCRIPT = """
import sys, kvgen
from kvgen.engine.fast import kernel_folder
model = kvgen.load(sys.argv[1], backend=sys.argv[2])
model.logits([1, 2, 3])
print(kernel_folder.FOLDER, "numba" in sys.modules)
print(*model.notes, file=sys.stderr)
"""


def run_a_process(
    folder: Path, backend: str = "numba", **environment: str
) -> subprocess.CompletedProcess[str]:
    """A fresh process that loads a tiny model."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), backend],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=True,
        timeout=300,
    )


def load_in_a_process(folder: Path, **environment: str) -> tuple[str, bool]:
    """The kernel folder of a fresh process that loads a tiny model, and whether it compiled."""
    place, compiled = run_a_process(folder, **environment).stdout.split()
    return place, compiled == "True"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def test_another_process_takes_the_kernels_of_this_one(
    tiny_folder: Callable[..., Path], tiny_model: Loader
) -> None:
    # Another family with the same stored type needs no kernel of its own.
    tiny_model("gpt2", backend="numba")
    assert load_in_a_process(tiny_folder("llama_gqa")) == (str(kernel_folder.FOLDER), False)


@pytest.mark.parametrize("prefill", ["exact", "fast"])
@pytest.mark.parametrize("cache_dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "int8"])
def test_kept_kernels_give_the_same_bits(
    dtype: DTypeName,
    cache_dtype: CacheDTypeName,
    prefill: PrefillName,
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compiled, or linked from the file of another process: the file is the whole truth."""
    if prefill == "fast" and not (
        (dtype == "bf16" and target.MULTIPLIES_PAIRS)
        or (dtype == "int8" and target.MULTIPLIES_BYTES)
    ):
        pytest.skip("no rounded prefill for these weights here")
    folder = tiny_folder("llama_gqa")

    def logits() -> np.ndarray:
        model = kvgen.load(
            folder, backend="numba", dtype=dtype, cache_dtype=cache_dtype, prefill=prefill
        )
        return model.logits(IDS)

    first = logits()
    monkeypatch.setattr(team_loop, "_linked_loop", team_loop._linked_loop.__wrapped__)
    monkeypatch.setitem(sys.modules, "kvgen.engine.fast.compiled_loop", None)  # cannot be imported
    np.testing.assert_array_equal(logits(), first)


@jit_entry
def run_by_numba(thread, n_threads, shared, last_ticket, shape, weights, request, work):  # type: ignore[no-untyped-def]
    return worker_loop(thread, n_threads, shared, last_ticket, shape, weights, request, work)


@pytest.mark.slow
def test_numba_itself_gives_the_same_bits(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = kvgen.load(tiny_folder("llama_gqa"), backend="numba").logits(IDS)
    monkeypatch.setattr(
        engine, "TeamLoop", lambda _, records: lambda *four: run_by_numba(*four, *records)
    )
    by_numba = kvgen.load(tiny_folder("llama_gqa"), backend="numba").logits(IDS)
    np.testing.assert_array_equal(by_numba, expected)


@pytest.mark.slow
def test_a_second_process_compiles_nothing(kernels: Path, tiny_folder: Callable[..., Path]) -> None:
    first = load_in_a_process(tiny_folder("gpt2"), KVGEN_CACHE_DIR=str(kernels))
    # Another family with the same stored type needs no kernel of its own.
    second = load_in_a_process(tiny_folder("llama_gqa"), KVGEN_CACHE_DIR=str(kernels))
    assert (first[1], second[1]) == (True, False)
    assert first[0] == second[0] and first[0].startswith(str(kernels))


@pytest.mark.slow
def test_a_damaged_kernel_file_is_made_again(
    kernels: Path, tiny_folder: Callable[..., Path]
) -> None:
    files = list(kernels.rglob("*.object"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:5000])
    place, compiled = load_in_a_process(tiny_folder("gpt2"), KVGEN_CACHE_DIR=str(kernels))
    assert place.startswith(str(kernels)) and compiled
    assert None not in map(read_object_code, files)


@pytest.mark.slow
def test_two_processes_may_compile_at_once(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tiny_folder("gpt2")), "numba"],
            stdout=subprocess.PIPE,
            env=os.environ | {"KVGEN_CACHE_DIR": str(tmp_path)},
        )
        for _ in range(2)
    ]
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert not load_in_a_process(tiny_folder("gpt2"), KVGEN_CACHE_DIR=str(tmp_path))[1]
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 1


def test_only_whole_object_code_is_read(tmp_path: Path) -> None:
    file, code = tmp_path / "folder" / "some.object", bytes(range(256)) * 10
    assert read_object_code(file) is None
    write_object_code(file, code)
    assert read_object_code(file) == code
    content = file.read_bytes()
    for broken in (b"", content[:20], content[:-1], content + b"x", b"y" + content[1:], code):
        file.write_bytes(broken)
        assert read_object_code(file) is None
    assert read_object_code(tmp_path) is None


def test_object_code_that_cannot_be_linked_is_an_error() -> None:
    for code in (b"", b"no object code", b"\x7fELF" + bytes(2000)):
        with pytest.raises(RuntimeError):
            LinkedLoop(code)


@pytest.mark.parametrize(
    ("exists", "message"),
    [
        (True, "cannot be kept there: No space left on device"),
        (False, "cannot be kept in the user's cache folder, and every start compiles them again"),
    ],
    ids=["full", "none"],
)
def test_a_folder_that_takes_no_kernels_costs_a_warning(
    exists: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Loader
) -> None:
    tiny_model("gpt2", backend="numba")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    code = read_object_code(next(Path(str(kernel_folder.FOLDER)).glob("worker_loop-*.object")))
    made: list[object] = []
    monkeypatch.setattr(team_loop, "_linked_loop", team_loop._linked_loop.__wrapped__)
    monkeypatch.setattr(team_loop, "FOLDER", tmp_path if exists else None)
    monkeypatch.setattr(team_loop, "write_object_code", fail)
    monkeypatch.setattr(
        "kvgen.engine.fast.compiled_loop.object_code_of", lambda *of: made.append(of) or code
    )
    records = (np.zeros(3, np.int64),)
    with pytest.warns(UserWarning, match=message):
        team_loop._linked_loop("worker_loop", tuple(map(kind_of, records)))
    assert len(made) == 1


def test_a_compiler_that_is_turned_off_is_named(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team_loop, "_linked_loop", team_loop._linked_loop.__wrapped__)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(KvgenError, match="NUMBA_DISABLE_JIT turns the compiler off"):
        kvgen.load(tiny_folder("gpt2"), backend="numba")


def test_without_numba_the_reference_runs_and_says_so(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('it is broken')")
    (tmp_path / "numba" / "_version.py").write_text("another version")
    path = os.pathsep.join([str(tmp_path), str(Path(kvgen.__file__).parent.parent)])
    run = run_a_process(tiny_folder("gpt2"), "auto", PYTHONPATH=path)
    assert "running on the numpy backend, which is slower: it is broken" in run.stderr


def test_records_become_a_table() -> None:
    matrix = np.zeros((2, 3), np.float32)
    values = (True, 7, np.float32(1), None, matrix)
    assert described(kind_of(values)) == "tuple(bool, int64, float32, None, float32[2])"
    assert table_of(values).tolist() == [1, 7, 0x3F800000, matrix.ctypes.data, 2, 3]
    with pytest.raises(KeyError):
        kind_of("text")
    with pytest.raises(AssertionError):
        TeamLoop("worker_loop", (matrix.T,))(0, 1, np.zeros(80, np.int64), 0)


def test_a_folder_that_is_there_need_not_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVGEN_CACHE_DIR", str(tmp_path))
    folder = kernel_folder.kernel_folder()
    assert folder is not None
    folder.chmod(0o555)
    # That does not hold root back, so look whether anything is written.
    before = folder.stat().st_mtime_ns
    assert kernel_folder.kernel_folder() == folder
    assert folder.stat().st_mtime_ns == before


def test_a_place_where_no_folder_can_be_made_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KVGEN_CACHE_DIR", str(tmp_path / "file"))
    assert kernel_folder.kernel_folder() is None


@pytest.mark.slow
def test_without_a_place_for_kernels_everything_still_runs(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    place, compiled = load_in_a_process(tiny_folder("gpt2"), KVGEN_CACHE_DIR=str(blocked))
    assert (place, compiled) == ("None", True)


def test_folders_of_old_versions_are_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVGEN_CACHE_DIR", str(tmp_path))
    old, recent = tmp_path / "kernels" / "old", tmp_path / "kernels" / "recent"
    for folder in (old, recent):
        folder.mkdir(parents=True)
    long_ago = time.time() - 40 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    folder = kernel_folder.kernel_folder()
    assert folder is not None and folder.parent == tmp_path / "kernels"
    assert not old.exists() and recent.exists()


def test_the_compiler_setting_of_others_is_left_alone() -> None:
    assert str(kernel_folder.FOLDER) not in str(numba.config.CACHE_DIR)
