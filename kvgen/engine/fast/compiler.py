"""`@kernel`: Numba's compiler with our flags, its results kept on disk from run to run."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from kvgen.engine.machine import user_cache
from kvgen.forks import wait_before_fork

# Never `True`: that folds isfinite to true, and a NaN must reach the check of the logits.
FAST_MATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
_DAYS_KEPT = 30


def kernel_folder() -> Path | None:
    """The folder of compiled kernels, None where it cannot be written to.

    Numba notices edits only in the file of a function, not in the files of what it calls, so the
    folder's name is a hash of everything that the machine code depends on.
    """
    target = [
        numba.__version__,
        llvmlite.__version__,
        sys.version,
        numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        numba.config.CPU_FEATURES
        if numba.config.CPU_FEATURES is not None
        else llvmlite.binding.get_host_cpu_features().flatten(),
    ]
    digest = hashlib.sha256("\0".join(target).encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    try:
        folder = user_cache() / "kernels" / digest.hexdigest()[:16]
        if not folder.exists():
            folder.mkdir(parents=True)
            _prune(folder.parent)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder


def _prune(kernels: Path) -> None:
    """Remove the folders of versions that have not been used for a while."""
    for folder in kernels.iterdir():
        if folder.stat().st_mtime < time.time() - _DAYS_KEPT * 24 * 3600:
            shutil.rmtree(folder, ignore_errors=True)


FOLDER = kernel_folder()
wait_before_fork(global_compiler_lock)  # a child cannot finish half a compilation


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function of a module that compiled functions call.

    It is optimised only once, as part of the function that Python calls: otherwise the compiler
    would optimise it again at every level of calls in between.
    """
    dispatcher = _compile(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)
    compile_now = dispatcher.compile

    def compile_as_it_is(signature: Any) -> Any:
        level, numba.config.OPT = numba.config.OPT, type(numba.config.OPT)(1)
        try:
            return compile_now(signature)
        finally:
            numba.config.OPT = level

    dispatcher.compile = compile_as_it_is
    return dispatcher


def jit_entry(function: Callable[..., Any]) -> Any:
    """Compile a function of a module that Python calls."""
    return _compile(function, no_cfunc_wrapper=True)


@intrinsic
def noinline(_: Any) -> Any:
    """At the start of a kernel: its callers share its code, none gets a copy of it.

    Without this the compiler copies large functions into larger ones and optimises them at every
    level, which takes a minute instead of seconds.
    """

    def generate(context: Any, builder: Any, _: Any, __: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), generate


def _compile(function: Callable[..., Any], **options: bool) -> Any:
    # Only functions of a module: a closure over other kernels would be compiled at every start.
    outside = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(FOLDER or "")
    try:
        return numba.njit(
            fastmath=FAST_MATH,
            nogil=True,
            error_model="numpy",
            cache=FOLDER is not None,
            **options,
        )(function)
    finally:
        numba.config.CACHE_DIR = outside
