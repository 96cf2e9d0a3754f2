"""The options of sampling, and their values on top of the checkpoint's recommendation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.cli.options import Command, bundle
from kvgen.cli.output import note
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.sampling import SamplingOptions


class SamplingFlags(NamedTuple):
    """How to choose tokens; None where no option says it."""

    temperature: float | None
    greedy: bool
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None


def sampling_options(*, default: str) -> Callable[[Command], Command]:
    """Flags for choosing tokens; `default` is for the help."""
    return bundle(
        SamplingFlags,
        "sampling_flags",
        click.option(
            "--temperature",
            "--temp",
            type=click.FloatRange(min=0),
            help=f"Above 0: sample; 0: take the most probable token. [default: {default}]",
        ),
        click.option(
            "--greedy",
            is_flag=True,
            help="Take the most probable token, as --temperature 0.",
        ),
        click.option(
            "--top-k",
            type=click.IntRange(min=-1),
            help="Sample from the K most probable tokens; 0 or -1: all.",
        ),
        click.option(
            "--top-p",
            type=click.FloatRange(0, 1, min_open=True),
            help="Sample from the fewest tokens whose probabilities sum to P.",
        ),
        click.option(
            "--min-p",
            type=click.FloatRange(0, 1),
            help="Sample from tokens at least P times as probable as the best one.",
        ),
        click.option(
            "--repetition-penalty",
            "--repeat-penalty",
            type=click.FloatRange(min=0, min_open=True),
            help="Above 1: make earlier tokens less likely. [default: what the "
            "checkpoint recommends, else 1]",
        ),
        click.option(
            "-s",
            "--seed",
            type=click.IntRange(min=0),
            help="The same seed gives the same text. [default: random, and printed]",
        ),
    )


def choose_sampling(
    recommend: Callable[..., SamplingOptions], flags: SamplingFlags, *, quiet: bool = False
) -> SamplingOptions:
    """The sampling of the given flags, completed by `recommend`."""
    if flags.greedy and flags.temperature:
        raise UsageError("--greedy and --temperature contradict each other: leave one out")
    given = flags._asdict() | {"temperature": 0.0 if flags.greedy else flags.temperature}
    for name in ("greedy", "seed"):
        del given[name]
    said = {name: value for name, value in given.items() if value is not None}
    chosen = recommend(**said)
    filters = said.keys() - {"temperature", "repetition_penalty"}
    idle = [f"--{name.replace('_', '-')}" for name in said if name in filters]
    if chosen.temperature == 0 and idle and not quiet:
        note(f"{' and '.join(idle)} changes nothing at temperature 0: the best token is taken")
    return chosen
