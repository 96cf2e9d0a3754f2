"""Object code of compiled functions: kept in files, linked into this process, called from Python.

Numba takes longer to import than everything else at a start, and only compiling needs it: this file
links by LLVM alone.
"""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llvmlite import binding

from kvgen.atomic_write import write_atomically

SYMBOL = "kvgen_loop"  # the name of the function in its object code
_MAGIC = b"kvgen object code 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
# As Numba's compiled functions are called: a status, 0 for success, and two results by address.
_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_void_p,
)


class LinkedLoop:
    """A loop as a team runs it, in machine code; it stays in memory as long as the process."""

    def __init__(self, code: bytes) -> None:
        """Raises RuntimeError where the code needs what this process does not have."""
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine(jit=True)
        linker = binding.create_lljit_compiler(machine, suppress_errors=True)
        library = binding.JITLibraryBuilder().add_object_img(code).add_current_process()
        linked = library.export_symbol(SYMBOL).link(linker, "kvgen")
        self._function = _FUNCTION(linked[SYMBOL])
        # Never unloaded: a worker may still run it while the process ends.
        linked.detach()
        linker.detach()

    def __call__(
        self,
        thread: int,
        n_threads: int,
        shared: npt.NDArray[np.int64],
        last_ticket: int,
        table_address: int,
    ) -> int:
        """Run it on the records of a table (records.py), without Python's lock; see team.py."""
        ticket, error = ctypes.c_int64(), ctypes.c_void_p()
        status = self._function(
            ctypes.addressof(ticket),
            ctypes.addressof(error),
            thread,
            n_threads,
            shared.ctypes.data,
            last_ticket,
            table_address,
        )
        assert status == 0, f"a kernel has failed with status {status}"
        return ticket.value


def read_object_code(path: Path) -> bytes | None:
    """What `write_object_code` has kept there; None for no file, or one that is not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + _DIGEST_BYTES
    code = content[start:]
    return code if content[:start] == _MAGIC + hashlib.sha256(code).digest() else None


def write_object_code(path: Path, code: bytes) -> None:
    """Keep object code for later processes, with a checksum. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _MAGIC + hashlib.sha256(code).digest() + code)
