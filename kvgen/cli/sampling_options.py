"""The options of sampling, and their values on top of the checkpoint's recommendation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kvgen.cli.options import Command, bundle
from kvgen.cli.output import note
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.sampling import SamplingOptions


_FILTERS = ("top_k", "top_p", "min_p")


class SamplingFlags(NamedTuple):
    """How to choose tokens; None where no option says it."""

    temperature: float | None
    greedy: bool
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repeat_last_n: int | None
    logit_bias: tuple[tuple[int, float], ...]
    seed: int | None


class _Bias(click.ParamType[tuple[int, float]]):
    """A token id and what is added to its logit: 262=1.5, 262=-inf, or 262=false."""

    name = "ID=B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, float]:
        """The pair; the number's range is checked with the other options of sampling."""
        if isinstance(value, tuple):
            return value
        token, _, bias = value.partition("=")
        try:
            return int(token), float("-inf" if bias.strip().lower() == "false" else bias)
        except ValueError:
            self.fail(f"{value!r} is not ID=B, such as 262=1.5, 262=-inf or 262=false", param, ctx)


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
            "--frequency-penalty",
            type=float,
            help="Subtract this from a token's logit each time the token has occurred. [default: "
            "0]",
        ),
        click.option(
            "--presence-penalty",
            type=float,
            help="Subtract this once from the logit of a token that has occurred. [default: 0]",
        ),
        click.option(
            "--repeat-last-n",
            type=click.IntRange(min=-1),
            help="How many of the last tokens, the prompt's included, the three penalties look "
            "at; 0: none, -1: all. [default: -1]",
        ),
        click.option(
            "--logit-bias",
            type=_Bias(),
            multiple=True,
            help="Add B to the logit of token ID; -inf or false: never choose it. Repeatable.",
        ),
        click.option(
            "-s",
            "--seed",
            type=click.IntRange(min=0),
            help="The same seed gives the same text on every backend, with and without the cache; "
            "only where two choices lie within rounding of each other it may differ. [default: "
            "random, and printed]",
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
    given["logit_bias"] = _as_mapping(flags.logit_bias) or None
    said = {name: value for name, value in given.items() if value is not None}
    chosen = recommend(**said)
    idle = [f"--{name.replace('_', '-')}" for name in said if name in _FILTERS]
    if chosen.temperature == 0 and idle and not quiet:
        note(f"{' and '.join(idle)} changes nothing at temperature 0: the best token is taken")
    if said.get("repeat_last_n", 0) > 0 and not chosen.penalizes and not quiet:
        note("--repeat-last-n changes nothing without a penalty")
    return chosen


def _as_mapping(pairs: tuple[tuple[int, float], ...]) -> dict[int, float]:
    """The biases by id. Raises UsageError where an id comes twice."""
    biases = dict(pairs)
    if len(biases) < len(pairs):
        twice = next(token for token in biases if sum(token == id_ for id_, _ in pairs) > 1)
        raise UsageError(f"--logit-bias: token id {twice} is given twice: leave one out")
    return biases
