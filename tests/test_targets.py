"""The compiled engine on other CPUs than this one, and kvgen where there can be no such engine."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kvgen
from kvgen.engine.fast.engine import FastEngine
from kvgen.engine.fast.target import MULTIPLIES_BYTES, MULTIPLIES_PAIRS
from kvgen.errors import KvgenError, UsageError
from tests.command import inside
from tests.targets import DTYPES
from tests.test_engines import ROUNDING

ON_X86 = platform.machine() in ("x86_64", "AMD64")
# RMSNorm with shared keys; LayerNorm, biases and a tied head; windows and soft caps.
MODELS = ["llama_gqa", "gpt2", "gemma2"]
# Names of CPUs as LLVM has them, and the vector registers that code for them may use.
PLAIN = "x86-64" if ON_X86 else "generic"
ALLOWED = {"x86-64": {"xmm"}, "haswell": {"xmm", "ymm"}}
only_x86 = pytest.mark.skipif(not ON_X86, reason="the name of an x86 CPU")


@pytest.mark.parametrize(
    "target",
    [
        "host",
        pytest.param(PLAIN, marks=pytest.mark.slow),
        pytest.param("haswell", marks=[pytest.mark.slow, only_x86]),
    ],
)
def test_every_compile_target_gives_the_logits_of_the_reference(
    target: str, tiny_folder: Callable[..., Path]
) -> None:
    setting = {} if target == "host" else {"NUMBA_CPU_NAME": target, "NUMBA_CPU_FEATURES": ""}
    found = json.loads(_run("tests.targets", *map(str, map(tiny_folder, MODELS)), **setting))
    assert len(found["differences"]) == len(MODELS)
    for differences in found["differences"].values():
        assert set(differences) == set(DTYPES)
        assert max(differences.values()) < ROUNDING
    if target in ALLOWED:
        assert set(found["registers"]) <= ALLOWED[target]
    able = {"bf16": MULTIPLIES_PAIRS, "int8": MULTIPLIES_BYTES}
    for dtype, answer in found["rounded_prefill"].items():
        if target == "host" and able[dtype]:
            assert answer == "runs"
        else:
            expected = f"this CPU has no instruction for --prefill fast with {dtype} weights"
            assert answer == expected


def test_kernels_for_arm_multiply_and_add_in_vectors() -> None:
    assembly = _run("tests.arm_assembly")
    if not assembly:
        pytest.skip("this LLVM cannot write code for ARM")
    assert len(re.findall(r"\bfmla\s+v\d+\.4s, v\d+\.4s, v\d+\.", assembly)) >= 16


def test_without_numba_one_line_says_so_and_the_reference_runs(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Callable[..., Path]
) -> None:
    monkeypatch.setitem(sys.modules, "kvgen.engine.fast.engine", None)
    with pytest.raises(KvgenError, match=r"the numba backend cannot be used here \(import of "):
        kvgen.load(tiny_folder("gpt2"), backend="numba")
    _assert_the_reference_runs(tiny_folder("gpt2"), because="the numba backend cannot be used here")


def test_where_nothing_can_be_compiled_one_line_says_so_and_the_reference_runs(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Callable[..., Path]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no machine code\nfor this CPU")

    monkeypatch.setattr(FastEngine, "__init__", fail)
    with pytest.raises(RuntimeError, match="no machine code"):
        kvgen.load(tiny_folder("gpt2"), backend="numba")
    _assert_the_reference_runs(tiny_folder("gpt2"), because="no machine code")


def test_the_note_of_a_slower_backend_reaches_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "kvgen.engine.fast.engine", None)
    done = inside("generate", "The cat", "-n", "2")
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    notes = [line for line in lines if "on the numpy backend, which is slower" in line]
    assert len(notes) == 1


def _assert_the_reference_runs(folder: Path, *, because: str) -> None:
    model = kvgen.load(folder)
    assert model.engine.backend == "numpy"
    assert model.notes[0].startswith(f"running on the numpy backend, which is slower: {because}")
    assert len(model.notes[0].splitlines()) == 1
    assert np.isfinite(model.logits([1, 2, 3])).all()
    assert kvgen.load(folder, backend="numpy").notes == model.notes[1:]
    with pytest.raises(UsageError, match="the numpy backend has no rounded prefill"):
        kvgen.load(folder, prefill="fast")


def _run(module: str, *arguments: str, **setting: str) -> str:
    """What a module of the tests prints in a process of its own with these settings."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],
        env=os.environ | setting,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout
