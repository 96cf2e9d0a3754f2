"""Options that several commands share, as bundles, and what is made of them.

Importing this module loads click only: the model's libraries are imported when a command runs.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from kvgen.cli import signals
from kvgen.cli.output import note, working
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.sampling import SamplingOptions

Command = TypeVar("Command", bound=Callable[..., Any])


def _bundle(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def model_options(command: Command) -> Command:
    """-m, --backend, --dtype, -t."""
    return _bundle(
        click.option(
            "-m",
            "--model",
            "folder",
            metavar="FOLDER",
            envvar="KVGEN_MODEL",
            help="Hugging Face checkpoint folder. [env: KVGEN_MODEL; default: the shipped model]",
        ),
        click.option(
            "--backend",
            type=click.Choice(["auto", "numpy", "numba"]),
            default="auto",
            show_default=True,
            help="numpy is the plain reference; auto is numba where it is installed.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "f32", "bf16", "f16"]),
            default="auto",
            show_default=True,
            help="How weights are held; auto is as stored. Arithmetic is float32 throughout.",
        ),
        click.option(
            "-t",
            "--threads",
            type=click.IntRange(1, 1024),
            help="Threads of the numpy backend's BLAS; the numba backend runs on one.",
        ),
    )(command)


def prompt_options(command: Command) -> Command:
    """PROMPT, -p, -f."""
    return _bundle(
        click.argument("prompt", required=False),
        click.option(
            "-p", "--prompt", "prompt_option", metavar="TEXT", help="PROMPT, given as an option."
        ),
        click.option(
            "-f",
            "--file",
            "prompt_file",
            metavar="FILE",
            help="Read the prompt from a file, - for stdin; one final line end is dropped.",
        ),
    )(command)


def sampling_options(*, default: str) -> Callable[[Command], Command]:
    """--temperature, --greedy, --top-k, --top-p, --min-p, --seed; `default` is for the help."""
    return _bundle(
        click.option(
            "--temperature",
            "--temp",
            type=click.FloatRange(min=0),
            help=f"0 is greedy. [default: {default}]",
        ),
        click.option("--greedy", is_flag=True, help="Same as --temperature 0."),
        click.option("--top-k", type=click.IntRange(min=0), help="Keep the K most probable."),
        click.option(
            "--top-p",
            type=click.FloatRange(0, 1, min_open=True),
            help="Keep the fewest whose probabilities reach P.",
        ),
        click.option(
            "--min-p",
            type=click.FloatRange(0, 1),
            help="Keep those at least P times as probable as the best.",
        ),
        click.option(
            "-s",
            "--seed",
            type=click.IntRange(min=0),
            help="The same seed gives the same text. [default: random, and printed]",
        ),
    )


def display_options(command: Command) -> Command:
    """--color, --width, --ascii."""
    return _bundle(
        click.option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            show_default=True,
            help="Maps in colour; without it in block characters.",
        ),
        click.option("--width", type=click.IntRange(min=60), help="Columns to draw in."),
        click.option("--ascii", "ascii_only", is_flag=True, help="Draw with ASCII only."),
    )(command)


def read_prompt(
    prompt: str | None, prompt_option: str | None, prompt_file: str | None, *, required: bool = True
) -> str | None:
    """The prompt from wherever it was given; a pipe on stdin counts where nothing else was.

    Raises UsageError where it was given twice, is missing although required, cannot be read, or is
    not UTF-8.
    """
    given = [each for each in (prompt, prompt_option, prompt_file) if each is not None]
    if len(given) > 1:
        raise UsageError("give the prompt once: as PROMPT, with -p, or with -f")
    if prompt_file is not None and prompt_file != "-":
        try:
            return _decode(Path(prompt_file).read_bytes(), prompt_file).removesuffix("\n")
        except OSError as error:
            raise UsageError(f"{prompt_file}: cannot be read: {error.strerror}") from None
    if given == ["-"] or (not given and required and _stdin_is_fed()):
        if sys.stdin is None:
            raise UsageError("there is no standard input to read the prompt from")
        return _decode(sys.stdin.buffer.read(), "standard input").removesuffix("\n")
    if not given and required:
        raise UsageError("no prompt: give it as PROMPT, with -p, with -f FILE, or through a pipe")
    if given and not given[0].isascii():
        # Under a locale that is not UTF-8 the command line arrives as bytes in disguise.
        return _decode(os.fsencode(given[0]), "the prompt")
    return given[0] if given else None


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{where}: is not valid UTF-8") from None


def _stdin_is_fed() -> bool:
    """Whether stdin is a pipe or a file; a terminal or /dev/null would not bring a prompt."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # a stand-in without a file behind it
        return True
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def load_model(
    folder: str | None,
    *,
    backend: Literal["auto", "numpy", "numba"],
    dtype: Literal["auto", "f32", "bf16", "f16"],
    threads: int | None,
    quiet: bool = False,
    verbose: bool = False,
) -> Model:
    """Load the model with a sign of life on a terminal, and say what the user should know."""
    with working("loading the model and its kernels", quiet=quiet), signals.deferred():
        from kvgen.model import load

        model = load(folder, backend=backend, dtype=dtype, threads=threads)
    if not quiet:
        for text in model.notes:
            note(text)
        if threads is not None and threads != model.engine.threads:
            note(f"the {model.engine.backend} backend runs on {model.engine.threads} thread")
    if verbose:
        config = model.config
        note(
            f"{model.name}: {config.n_layers} layers, {config.n_heads} heads on "
            f"{config.n_kv_heads} key/value heads of size {config.head_dim}, width "
            f"{config.d_model}, vocabulary {config.vocab_size}, context {config.max_context}, "
            f"{model.weight_bytes / 2**20:.1f} MiB as {model.engine.dtype}, "
            f"{model.engine.backend} backend"
        )
        if model.ignored_keys:
            note(f"config.json keys that play no part: {', '.join(model.ignored_keys)}")
    return model


def choose_sampling(
    default: SamplingOptions,
    *,
    temperature: float | None,
    greedy: bool,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    quiet: bool = False,
) -> SamplingOptions:
    """The default with the given flags in place of it."""
    from dataclasses import replace

    if greedy and temperature:
        raise UsageError("--greedy and --temperature contradict each other")
    given = {
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    flags: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    chosen = replace(default, **flags)
    idle = [f"--{name.replace('_', '-')}" for name in flags if name != "temperature"]
    if chosen.temperature == 0 and idle and not quiet:
        note(f"at temperature 0 the best token is taken whatever {' and '.join(idle)} says")
    return chosen
