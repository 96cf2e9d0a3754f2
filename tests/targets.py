"""The compiled engine on another compile target, run by tests/test_targets.py in its own process.

    NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES= python -m tests.targets FOLDER ...

Prints JSON: the widest vector registers in a compiled loop, for each model and type of weights the
greatest difference from the reference engine's logits, and what a rounded prefill is answered.
Without NUMBA_CPU_FEATURES the machine's own features would be used beside the name.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np

import kvgen
from kvgen.choices import DTypeName
from kvgen.engine.fast.kernels.simd import fma, load, store
from kvgen.errors import UsageError
from tests import tiny

DTYPES: tuple[DTypeName, ...] = ("f32", "bf16", "int8")
IDS = tiny.make_ids(40, seed=1)  # half of them prefilled, half decoded


@numba.njit  # not kept on disk: the assembly of a kept function cannot be read
def multiply_vectors(x, y):  # type: ignore[no-untyped-def]
    """Add the products of x [n] and y [n] to y, in vectors of 16."""
    for i in range(0, len(x), 16):
        store(y, i, fma(load(x, i), load(y, i), load(y, i)))


def vector_registers() -> list[str]:
    """The kinds of vector registers that a compiled loop uses: xmm, ymm, zmm."""
    x, y = np.arange(32, dtype=np.float32), np.ones(32, np.float32)
    multiply_vectors(x, y)
    np.testing.assert_array_equal(y, x + 1)
    assembly = "".join(multiply_vectors.inspect_asm().values())
    return sorted(set(re.findall(r"%([xyz]mm)\d", assembly)))


def differences(folder: Path) -> dict[DTypeName, float]:
    """The greatest difference of both engines' logits, for each type of weights."""
    found: dict[DTypeName, float] = {}
    for dtype in DTYPES:
        one, other = (
            kvgen.load(folder, backend=backend, dtype=dtype, cache_dtype="f32", threads=1)
            for backend in ("numba", "numpy")
        )
        found[dtype] = float(np.abs(one.logits(IDS) - other.logits(IDS)).max())
    return found


def answer_to_rounded_prefill(folder: Path, dtype: DTypeName) -> str:
    """`runs`, or why it is refused."""
    try:
        model = kvgen.load(folder, backend="numba", dtype=dtype, prefill="fast", threads=1)
    except UsageError as error:
        return str(error)
    return "runs" if np.isfinite(model.logits(IDS)).all() else "not finite"


def main(folders: Sequence[str]) -> None:
    """Print what is found with the checkpoint folders."""
    found = {
        "registers": vector_registers(),
        "differences": {Path(folder).name: differences(Path(folder)) for folder in folders},
        "rounded_prefill": {
            dtype: answer_to_rounded_prefill(Path(folders[0]), dtype) for dtype in ("bf16", "int8")
        },
    }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
