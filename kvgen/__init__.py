"""kvgen: run small decoder-only transformers, measure the KV cache, look into attention."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing has it, which loads slowly: Ctrl-C would find nobody to catch it
if TYPE_CHECKING:
    from kvgen.errors import KvgenError
    from kvgen.loading import load as load
    from kvgen.model import Model
    from kvgen.recording import Recording

__version__ = "0.1.0"
__all__ = ["KvgenError", "Model", "Recording", "__version__", "load"]
_HOMES = {
    "KvgenError": "kvgen.errors",
    "Model": "kvgen.model",
    "Recording": "kvgen.recording",
    "load": "kvgen.loading",
}


def __getattr__(name: str) -> object:
    # NumPy, Numba and tokenizers load only when a model is wanted: `kvgen --help` stays instant.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kvgen' has no attribute {name!r}")
