"""Opening a model: `kvgen.load`, by a folder, a name on the Hub, or the default model."""

from __future__ import annotations

import time
from pathlib import Path

from kvgen.checkpoint.bind import bind
from kvgen.checkpoint.families import find
from kvgen.checkpoint.folder import open_checkpoint
from kvgen.checkpoint.hub import locate
from kvgen.choices import (
    BackendChoice,
    CacheDTypeChoice,
    DTypeChoice,
    LoadOptions,
    PrefillName,
)  # fmt: skip
from kvgen.engine.huge_pages import in_memory, pays
from kvgen.engine.memory import require_memory
from kvgen.engine.open import open_engine
from kvgen.errors import UsageError
from kvgen.model import Model


def default_model() -> Path:
    """The model that ships with kvgen: in a checkout's weights/, or inside the package."""
    package = Path(__file__).parent
    checkout = package.parent / "weights" / "storyteller"
    return checkout if checkout.exists() else package / "weights" / "storyteller"


def load(
    path_or_id: str | Path | None = None,
    *,
    backend: BackendChoice = "auto",
    dtype: DTypeChoice = "auto",
    cache_dtype: CacheDTypeChoice = "auto",
    prefill: PrefillName = "exact",
    threads: int | None = None,
    mmap: bool | None = None,
    revision: str | None = None,
) -> Model:
    """Load a model folder, a model of the Hugging Face Hub by its name, or the default model.

    `dtype` is the width in which weights are held, `auto` the stored one; arithmetic is float32
    throughout. `cache_dtype` is that of keys and values: `auto` is f32 where weights are f32 and on
    the numpy backend, else f16. `prefill="fast"` rounds activations to the width of bf16 or int8
    weights where several tokens run at once: faster, and no longer exact. `prefill="stepwise"` runs
    one position at a time, so that logits with and without the cache are equal to the bit; each
    position takes as long as a decode step. `threads` is one for each core unless given. With
    `mmap` weights are used where they lie in the mapped file, without it they are copied into
    memory, into huge pages where the system has them; unless given, small models are copied, which
    they gain from. `revision` is a branch, tag or commit of a model on the Hub. Raises
    ModelNotFoundError, CheckpointError or UsageError.
    """
    options = LoadOptions(
        backend=backend, dtype=dtype, cache_dtype=cache_dtype, prefill=prefill, threads=threads,
        mmap=mmap,
    )  # fmt: skip
    if path_or_id is not None and not (isinstance(path_or_id, (str, Path)) and str(path_or_id)):
        raise UsageError(f"{path_or_id!r} is not the name of a model")
    if path_or_id is None and revision is not None:
        raise UsageError("revision needs a Hub model: name the model too")
    folder = default_model() if path_or_id is None else locate(path_or_id, revision=revision)
    return load_folder(folder, options)


def load_folder(folder: Path, options: LoadOptions) -> Model:
    """Load a checkpoint folder. Raises CheckpointError, or UsageError for unfit options."""
    began = time.perf_counter()
    checkpoint = open_checkpoint(folder)
    dtype = None if options.dtype == "auto" else options.dtype
    params = bind(checkpoint, find(checkpoint.config), dtype=dtype)
    if not options.mmap and options.backend != "numpy":
        if options.mmap is False:
            require_memory("leave out --no-mmap or take a smaller model", weights=params.nbytes)
        params = in_memory(params) if options.mmap is False or pays(params) else params
    notes: list[str] = []
    engine = open_engine(
        params,
        backend=options.backend,
        threads=options.threads,
        cache_dtype=options.cache_dtype,
        prefill=options.prefill,
        on_note=notes.append,
    )
    seconds = time.perf_counter() - began - engine.compile_seconds
    return Model(checkpoint, params, engine, load_seconds=seconds, notes=notes)
