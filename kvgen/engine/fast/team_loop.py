"""The compiled loop that a team of threads runs: linked from an earlier run's code, or compiled."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from kvgen.engine.fast.kernel_folder import FOLDER
from kvgen.engine.fast.object_code import LinkedLoop, read_object_code, write_object_code
from kvgen.engine.fast.records import Kind, described, kind_of, table_of
from kvgen.errors import KvgenError, NoCompilerError
from kvgen.forks import wait_before_fork

LoopName = Literal["worker_loop", "probe_loop"]

_LOADING = threading.RLock()  # two threads need not compile the same
wait_before_fork(_LOADING)  # a child cannot finish what LLVM has half done


class TeamLoop:
    """A loop with its records: what `Team` takes as `run`.

    The first call links its machine code, and compiles it where no earlier run has kept any.
    """

    def __init__(self, name: LoopName, records: tuple[Any, ...]) -> None:
        self._name: LoopName = name
        self._records = records  # the table holds addresses of their arrays
        self._table = table_of(records)
        self._table_address: int = self._table.ctypes.data
        self._linked: LinkedLoop | None = None

    def __call__(
        self, thread: int, n_threads: int, shared: npt.NDArray[Any], last_ticket: int
    ) -> int:
        """See `Team`. The first call raises KvgenError where there is no code and no compiler."""
        if self._linked is None:
            with _LOADING:
                self._linked = _linked_loop(self._name, tuple(map(kind_of, self._records)))
        return self._linked(thread, n_threads, shared, last_ticket, self._table_address)


@cache
def _linked_loop(name: LoopName, kinds: tuple[Kind, ...]) -> LinkedLoop:
    """The machine code of a loop for one combination of types; once in a process."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise KvgenError("NUMBA_DISABLE_JIT turns the compiler off: use --backend numpy")
    path = _path(name, kinds)
    kept = read_object_code(path) if path is not None else None
    if (linked := _link(kept)) is not None:
        return linked
    try:
        from kvgen.engine.fast.compiled_loop import check_target, object_code_of

        check_target()
        loop = getattr(import_module(f"kvgen.engine.fast.{name}"), name)
    except Exception as error:  # whatever keeps Numba from starting: ImportError, a bad setting
        raise NoCompilerError(str(error)) from None
    if (linked := _link(kept)) is not None:  # Numba brings along what this process did not have
        return linked
    code = object_code_of(loop, kinds)
    if path is None:
        warnings.warn(
            "compiled kernels cannot be kept in the user's cache folder, and every start compiles "
            "them again; set KVGEN_CACHE_DIR to another folder",
            stacklevel=1,
        )
    else:
        try:
            write_object_code(path, code)
        except OSError as error:
            warnings.warn(
                f"{path.parent}: compiled kernels cannot be kept there: {error.strerror}; set "
                "KVGEN_CACHE_DIR to another folder",
                stacklevel=1,
            )
    return LinkedLoop(code)


def _link(code: bytes | None) -> LinkedLoop | None:
    """None where there is no code, or it needs what this process does not have."""
    try:
        return None if code is None else LinkedLoop(code)
    except RuntimeError:
        return None


def _path(name: str, kinds: tuple[Kind, ...]) -> Path | None:
    if FOLDER is None:
        return None
    digest = hashlib.sha256("\n".join(map(described, kinds)).encode()).hexdigest()
    return FOLDER / f"{name}-{digest[:16]}.object"
