"""How well a model predicts a text: the totals in lines, or a table of weight types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from kvgen.render.layout import flow, stacked_tables
from kvgen.scoring import Score, Sizes
from kvgen.visible import one_line

_COLUMNS = (
    "dtype", "cache", "nats/token", "perplexity", "bits/byte", "mean KL", "same choice", "weights",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredModel:
    """A score with the model that made it."""

    score: Score
    name: str  # the weight type, with +cache type where that was asked for
    dtype: str
    cache_dtype: str
    weight_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredText:
    """What was scored, and how."""

    model: str
    engine: str  # the backend, in words
    n_tokens: int
    n_bytes: int
    sizes: Sizes


def score_view(text: ScoredText, scored: ScoredModel) -> RenderableType:
    """The totals of one model."""
    score = scored.score
    return Group(
        _Flow((f"{text.model}:", f"{scored.dtype} weights,", f"{scored.cache_dtype} cache,",
               text.engine)),
        _head(text),
        Text(f"nats per token  {score.nats_per_token:.4f}"),
        Text(f"perplexity      {_number(score.perplexity)}"),
        Text(f"bits per byte   {score.bits_per_byte(text.n_bytes):.4f}"),
    )  # fmt: skip


def compared_view(
    text: ScoredText, models: Sequence[ScoredModel], *, reference: int
) -> RenderableType:
    """A row for each weight type, compared with the one of the reference."""
    rows = tuple(
        {
            "dtype": one.dtype,
            "cache": one.cache_dtype,
            "nats/token": f"{one.score.nats_per_token:.4f}",
            "perplexity": _number(one.score.perplexity),
            "bits/byte": f"{one.score.bits_per_byte(text.n_bytes):.4f}",
            "mean KL": "-" if number == reference else f"{one.score.mean_kl:.2e}",
            "same choice": "-" if number == reference else f"{one.score.same_choice:.2%}",
            "weights": f"{one.weight_bytes / 2**20:,.1f} MiB",
        }
        for number, one in enumerate(models)
    )
    name = models[reference].name
    words = (
        f"mean KL: KL({name} || other) of the next token's probabilities, nats per token;",
        f"same choice: tokens where the most probable one is that of {name}",
    )
    return Group(_Flow((f"{text.model}:", text.engine)), _head(text), Text(), _Table(rows),
                 _Flow(words))  # fmt: skip


def _head(text: ScoredText) -> RenderableType:
    window, stride = text.sizes
    bytes_ = "byte" if text.n_bytes == 1 else "bytes"
    parts = [f"{text.n_bytes:,} {bytes_},", f"{text.n_tokens:,} tokens, all but the first scored;"]
    parts += [f"windows of {window:,},", f"stride {stride:,}"]
    return _Flow(tuple(parts))


def _number(value: float) -> str:
    if math.isinf(value):
        return "above 1e304"
    return f"{value:,.4f}" if value < 1e6 else f"{value:.4e}"


@dataclass(frozen=True, slots=True)
class _Flow:
    """Words in lines that fit the console that they are drawn on."""

    parts: tuple[str, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts, broken where the next one does not fit."""
        yield flow([one_line(part) for part in self.parts], options.max_width, between=" ")


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows as tables that fit the console that they are drawn on."""

    rows: tuple[dict[str, str], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One table, or several below each other where its columns do not fit."""
        yield from stacked_tables(
            {name: name for name in _COLUMNS},
            self.rows,
            width=options.max_width,
            keys=_COLUMNS[:2],
            words=_COLUMNS[:2],
        )
