"""Which engine: the compiled one where it can be had, or the reference."""

from __future__ import annotations

from collections.abc import Callable

from kvgen.choices import BackendChoice, CacheDTypeChoice, PrefillName
from kvgen.engine.contract import Engine
from kvgen.engine.machine import usable_cores
from kvgen.engine.params import Params
from kvgen.engine.tensors import usual_cache_dtype
from kvgen.errors import KvgenError, NoCompilerError, UsageError
from kvgen.visible import one_line


def open_engine(
    params: Params,
    *,
    backend: BackendChoice,
    threads: int | None,
    cache_dtype: CacheDTypeChoice = "auto",
    prefill: PrefillName = "exact",
    on_note: Callable[[str], None] = lambda _: None,
) -> Engine:
    """The engine of that name around these weights.

    `auto` is numba where it can be imported and can compile; its cache is float32 where the weights
    are, else float16. Where it cannot, `on_note` hears why and the reference runs, whose cache is
    float32 unless told, and which has no fast prefill; asking for one is a UsageError.
    """
    if backend != "numpy":
        try:
            return _fast_engine(params, threads, cache_dtype, prefill)
        except (UsageError, MemoryError):  # no fault of the compiler
            raise
        except Exception as error:
            if backend == "numba" and isinstance(error, NoCompilerError):
                raise KvgenError(
                    f"the numba backend cannot be used here ({error}): use --backend numpy"
                ) from None
            if backend == "numba":
                raise
            reason = str(error) or type(error).__name__
            on_note(one_line(f"running on the numpy backend, which is slower: {reason}"))
    if prefill == "fast":
        raise UsageError(
            "the numpy backend has no rounded prefill (activations rounded to bf16 or int8): "
            "leave out --prefill fast"
        )
    from kvgen.engine.reference.decoder import ReferenceEngine

    kept_as = "f32" if cache_dtype == "auto" else cache_dtype
    return ReferenceEngine(params, threads=threads, cache_dtype=kept_as, prefill=prefill)


def _fast_engine(
    params: Params, threads: int | None, cache_dtype: CacheDTypeChoice, prefill: PrefillName
) -> Engine:
    """The compiled engine. Raises KvgenError where numba cannot be imported."""
    try:
        from kvgen.engine.fast.engine import FastEngine
    except Exception as error:  # whatever keeps Numba from starting: ImportError, a bad setting
        raise KvgenError(
            f"the numba backend cannot be used here ({error}): use --backend numpy"
        ) from None
    return FastEngine(
        params,
        threads=threads or usable_cores(),
        cache_dtype=usual_cache_dtype(params.dtype) if cache_dtype == "auto" else cache_dtype,
        prefill=prefill,
    )
