"""The CPU that kernels are compiled for, and what it can do: this one, or as NUMBA_CPU_* say.

The same answers as Numba's, without importing it.
"""

from __future__ import annotations

import os

from llvmlite import binding


def _cpu() -> str:
    return os.environ.get("NUMBA_CPU_NAME") or str(binding.get_host_cpu_name())


def _features() -> str:
    """As LLVM takes them: +avx2,-avx512f and so on."""
    chosen = os.environ.get("NUMBA_CPU_FEATURES")
    if chosen is not None:
        return chosen
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this CPU
        return ""
    if os.environ.get("NUMBA_ENABLE_AVX") == "0":
        features.update((name, False) for name in features if name.startswith("avx"))
    return str(features.flatten())


CPU, FEATURES = _cpu(), _features()
MULTIPLIES_BYTES = "+avx512vnni" in FEATURES
MULTIPLIES_PAIRS = "+avx512bf16" in FEATURES
