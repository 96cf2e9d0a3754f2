"""Options that several commands share, as bundles, and the model that is loaded by them.

Importing this module loads click only: the model's libraries are imported when a command runs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kvgen.choices import (
    MOST_THREADS,
    BackendChoice,
    CacheDTypeChoice,
    Color,
    DTypeChoice,
    LoadOptions,
    PrefillName,
    names,
)
from kvgen.cli import signals
from kvgen.cli.command import OneOf
from kvgen.cli.output import note
from kvgen.cli.progress import working
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.model import Model

Command = Callable[..., Any]


class ModelFlags(NamedTuple):
    """Which model to run, and each way to run it."""

    name: str | None
    revision: str | None
    ways: tuple[LoadOptions, ...]  # one, or every combination where options take lists

    @property
    def fast_prefill(self) -> bool:
        """Whether activations are rounded while the prompt runs."""
        return self.ways[0].prefill == "fast"

    @property
    def stepwise_prefill(self) -> bool:
        """Whether the prompt runs one token at a time."""
        return self.ways[0].prefill == "stepwise"


class _ModelValues(NamedTuple):
    """The values of the options, as click gives them."""

    model_name: str | None
    revision: str | None
    backend: Any
    dtype: Any
    cache_dtype: Any
    prefill: PrefillName
    threads: Any
    mmap: bool | None

    def flags(self) -> ModelFlags:
        """The same, with a LoadOptions for each combination of lists."""
        lists = (self.dtype, self.cache_dtype, self.backend, self.threads)
        ways = itertools.product(*(one if isinstance(one, tuple) else (one,) for one in lists))
        return ModelFlags(
            self.model_name,
            self.revision,
            tuple(
                LoadOptions(
                    backend=backend,
                    dtype=dtype,
                    cache_dtype=cache_dtype,
                    prefill=self.prefill,
                    threads=threads,
                    mmap=self.mmap,
                )
                for dtype, cache_dtype, backend, threads in ways
            ),
        )


class DisplayFlags(NamedTuple):
    """How to draw."""

    color: Color
    width: int | None
    ascii_only: bool


def bundle(
    kind: type[Any],
    name: str,
    *options: Callable[[Command], Command],
    convert: Callable[[Any], Any] = lambda values: values,
) -> Callable[[Command], Command]:
    """Options whose values a command takes together, as its argument `name`.

    They are what `convert` makes of the NamedTuple `kind`.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def gathered(**values: Any) -> Any:
            of_bundle = {field: values.pop(field) for field in kind._fields}
            return command(**values, **{name: convert(kind(**of_bundle))})

        decorated: Command = gathered
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


class Several(click.ParamType[Any]):
    """A comma list of values of another type, as a tuple without repetitions."""

    def __init__(self, one: click.ParamType[Any]) -> None:
        self._one = one
        self.name = f"{one.name}[,...]"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The other type's, followed by [,...]."""
        inner = self._one.get_metavar(param, ctx) or self._one.name.upper()
        return f"{inner}[,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Each part by the other type, whose errors they are."""
        if isinstance(value, tuple):
            return value
        parts = [self._one.convert(part.strip(), param, ctx) for part in str(value).split(",")]
        return tuple(dict.fromkeys(parts))


def _model_options(*, several: bool) -> Callable[[Command], Command]:
    """The options that say which model to run and how; with `several`, lists of some."""

    def kind(one: click.ParamType[Any]) -> click.ParamType[Any]:
        return Several(one) if several else one

    return bundle(
        _ModelValues,
        "model_flags",
        click.option(
            "-m",
            "--model",
            "model_name",
            metavar="FOLDER_OR_ID",
            envvar="KVGEN_MODEL",
            help="Checkpoint folder, or a model's name on the Hugging Face Hub, such as "
            "HuggingFaceTB/SmolLM2-135M. [env: KVGEN_MODEL; default: the shipped model]",
        ),
        click.option(
            "--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub."
        ),
        click.option(
            "--backend",
            type=kind(OneOf(names(BackendChoice))),
            default="auto",
            show_default=True,
            help="numpy is the reference engine; auto takes numba where it is installed.",
        ),
        click.option(
            "--dtype",
            type=kind(OneOf(names(DTypeChoice))),
            default="auto",
            show_default=True,
            help="Width of the weights in memory; auto keeps the stored one, int8 is made while "
            "loading, with one scale a row. Arithmetic is float32.",
        ),
        click.option(
            "--cache-dtype",
            type=kind(OneOf(names(CacheDTypeChoice))),
            default="auto",
            show_default=True,
            help="Width of keys and values in the KV cache; auto is f32 for f32 weights, on the "
            "numpy backend and in inspect-attention, else f16. int8 has one scale a row; "
            "keys are multiplied by a Hadamard matrix before they are rounded.",
        ),
        click.option(
            "--prefill",
            type=OneOf(names(PrefillName)),
            default="exact",
            show_default=True,
            help="fast rounds activations to the width of bf16 or int8 weights while the prompt "
            "runs: faster, not exact, and named in every report. stepwise runs one token at a "
            "time: each takes as long as a decode step, and logits with and without the cache are "
            "equal to the bit.",
        ),
        click.option(
            "-t",
            "--threads",
            type=kind(click.IntRange(1, MOST_THREADS)),
            help="Number of threads that compute. [default: one for each core]",
        ),
        click.option(
            "--mmap/--no-mmap",
            default=None,
            help="Use the weights where they lie in the mapped file, or copy them into memory, "
            "into huge pages where the system has them. [default: copy up to 64 MiB]",
        ),
        convert=_ModelValues.flags,
    )


model_options = _model_options(several=False)
several_model_options = _model_options(several=True)


cache_option = click.option(
    "--cache/--no-cache",
    " /--no-kv-cache",
    "use_cache",
    default=True,
    help="--no-cache: without the KV cache, every step runs all positions again.",
)
display_options = bundle(
    DisplayFlags,
    "display_flags",
    click.option(
        "--color",
        type=OneOf(names(Color)),
        default="auto",
        show_default=True,
        help="Draw maps in colour, or else in block characters.",
    ),
    click.option("--width", type=click.IntRange(min=60), help="Width of the output in columns."),
    click.option("--ascii", "ascii_only", is_flag=True, help="Draw with ASCII only."),
)


def find_model(name: str | None, *, revision: str | None, quiet: bool = False) -> Path | None:
    """The folder of the named model, fetched from the Hub if need be; None is the default model."""
    if name is None:
        if revision is not None:
            raise UsageError("--revision needs a Hub model: name one with -m")
        return None
    from kvgen.checkpoint.hub import locate

    return locate(
        name, revision=revision, progress=not quiet, on_note=(lambda _: None) if quiet else note
    )


def load_model(
    flags: ModelFlags,
    *,
    cache_dtype: CacheDTypeChoice = "auto",
    quiet: bool = False,
    verbose: bool = False,
) -> Model:
    """Load the model in the first way, see `load_models`.

    `cache_dtype` is what `--cache-dtype auto` stands for.
    """
    way = flags.ways[0]
    if way.cache_dtype == "auto":
        way = dataclasses.replace(way, cache_dtype=cache_dtype)
    return load_models(flags._replace(ways=(way,)), quiet=quiet, verbose=verbose)[0]


def load_models(flags: ModelFlags, *, quiet: bool = False, verbose: bool = False) -> list[Model]:
    """A model for each way to run it, with a spinner on a terminal while it loads.

    Notes about the model go to stderr, once.
    """
    folder = find_model(flags.name, revision=flags.revision, quiet=quiet)
    models = [_load(folder, way, quiet=quiet) for way in flags.ways]
    _describe(models[0], quiet=quiet, verbose=verbose)
    return models


def _load(folder: Path | None, way: LoadOptions, *, quiet: bool) -> Model:
    with (
        working(
            "loading the model (at the first start, kernels are compiled: some 8 s)", quiet=quiet
        ),
        signals.deferred(),
    ):
        from kvgen.loading import default_model, load_folder

        return load_folder(folder or default_model(), way)


def _describe(model: Model, *, quiet: bool, verbose: bool) -> None:
    """Print the notes of a model, and with `verbose` its shape and ignored keys."""
    if not quiet:
        for text in model.notes:
            note(text)
    if verbose:
        config = model.config
        note(
            f"{model.name}: {config.n_layers} layers, {config.n_heads} heads on "
            f"{config.n_kv_heads} key/value heads of size {config.head_dim}, width "
            f"{config.d_model}, vocabulary {config.vocab_size}, context {config.max_context}, "
            f"{model.weight_bytes / 2**20:.1f} MiB as {model.engine.dtype}, "
            f"{model.engine.backend} backend"
        )
        note_ignored(model.ignored_keys, model.recommendation.ignored_keys)


def note_ignored(config_keys: Sequence[str], generation_keys: Sequence[str]) -> None:
    """Name the ignored keys of config.json and generation_config.json."""
    files = {"config.json": config_keys, "generation_config.json": generation_keys}
    for file, keys in files.items():
        if keys:
            note(f"ignored keys of {file}: {', '.join(keys)}")
