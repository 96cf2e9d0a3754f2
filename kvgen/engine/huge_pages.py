"""Weights copied out of their file into the huge pages of memory, where that makes reading faster.

A decode step reads every weight, page after page, and looks up where each page lies. The pages of a
file have 4 KiB; memory can have pages of 2 MiB on Linux, 512 times fewer to look up.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path

import numpy as np

from kvgen.engine.params import Params
from kvgen.engine.tensors import LINE_BYTES, Array, Tensor

HUGE_PAGE = 2**21
# Copying more takes longer than a short text gains.
_QUICKLY_COPIED = 64 * 2**20


def pays(params: Params) -> bool:
    """Whether weights are copied where nobody has said: huge pages exist, and the copy is quick."""
    return (
        hasattr(mmap, "MADV_HUGEPAGE")
        and HUGE_PAGE <= params.nbytes <= _QUICKLY_COPIED
        and 4 * params.nbytes <= _available_bytes()
    )


def in_memory(params: Params) -> Params:
    """The same weights in memory of this process, in huge pages where the system has them."""
    weights = params.weights
    # Tensors begin at lines of the CPU's cache, and kernels read one beyond the end.
    room = (
        sum(-(-tensor.stored.nbytes // LINE_BYTES) * LINE_BYTES for tensor in weights)
        + 2 * LINE_BYTES
    )
    size = -(-(room + HUGE_PAGE) // HUGE_PAGE) * HUGE_PAGE
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, size)
    else:
        # Private: memory that may be shared with other processes has small pages.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without them: its usual pages do as well
            memory.madvise(mmap.MADV_HUGEPAGE)
    room_left = np.frombuffer(memory, np.uint8)
    room_left = room_left[-room_left.ctypes.data % HUGE_PAGE :]
    moved: dict[int, Tensor] = {}
    for tensor in weights:
        stored: Array = tensor.stored
        target = room_left[: stored.nbytes].view(stored.dtype).reshape(stored.shape)
        target[...] = stored
        room_left = room_left[-(-stored.nbytes // LINE_BYTES) * LINE_BYTES :]
        moved[id(tensor)] = tensor.with_stored(target)
    files = {id(file): file for file in map(_file_of, (tensor.stored for tensor in weights))}
    for file in files.values():
        if file is not None and hasattr(mmap, "MADV_DONTNEED"):
            file.madvise(mmap.MADV_DONTNEED)  # of the file's pages: they are counted as ours
    return params.replaced(lambda tensor: moved[id(tensor)])


def _file_of(array: Array) -> mmap.mmap | None:
    """The mapped file that holds an array, None where no file does."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def _available_bytes() -> int:
    """Memory that can be had without swapping; nothing where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return 0
