"""Two kernels as assembly for a 64-bit ARM CPU: `python -m tests.arm_assembly` prints it.

Where LLVM comes without that target it prints nothing. The code cannot be run here, but the
instructions that are chosen for ARM can be read. This is a process of its own, because LLVM ends
its process where it cannot translate.
"""

from __future__ import annotations

import re
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np

from kvgen.engine.fast.kernels.products import dot_row, tile_across
from kvgen.engine.fast.layout import ROWS, Rows

TRIPLE = "aarch64-unknown-linux-gnu"
# Numba's counting of references comes optimised for this CPU; on another one it is called.
_REFERENCES = re.compile(r"^define [^\n]*@(NRT_\w+)\(.*?^}", re.M | re.S)


@numba.njit  # not kept on disk: the code of a kept function cannot be read
def run_dot_row(weight, x, n):  # type: ignore[no-untyped-def]
    return dot_row(weight, 0, x, n)


@numba.njit
def run_tile(a, b, c, n):  # type: ignore[no-untyped-def]
    tile_across(a, b, c, n)


def assembly(function: Any, target: llvm.Target) -> str:
    """The code of a function that has been compiled for this machine, translated for the target."""
    code = next(iter(function.inspect_llvm().values()))
    code = re.sub(r"^target (triple|datalayout) = .*$", "", code, flags=re.M)
    module = llvm.parse_assembly(_REFERENCES.sub(r"declare void @\1(ptr)", code))
    machine = target.create_target_machine(opt=3)
    module.triple = TRIPLE
    module.data_layout = str(machine.target_data)
    return str(machine.emit_assembly(module))


def main() -> None:
    """Print the assembly of both kernels."""
    try:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(TRIPLE)
    except RuntimeError:  # this LLVM knows other CPUs only
        return
    x = np.ones(64, np.float32)
    run_dot_row(x, x, 64)
    panel, tokens, sums = (np.ones(n * 64, np.float32) for n in (ROWS, 192, ROWS * 192))
    run_tile(Rows(panel, 0, 64), Rows(tokens, 0, 192), Rows(sums, 0, 192), 64)
    for function in (run_dot_row, run_tile):
        print(assembly(function, target))  # noqa: T201


if __name__ == "__main__":
    main()
