"""kvgen: run small decoder-only transformers, measure the KV cache, look into attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.model import load as load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> object:
    # NumPy, Numba and tokenizers load only when a model is wanted: `kvgen --help` stays instant.
    if name in ("load", "Model"):
        from kvgen import model

        return getattr(model, name)
    raise AttributeError(f"module 'kvgen' has no attribute {name!r}")
