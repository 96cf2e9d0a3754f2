"""`kvgen score`: how well a model predicts a text."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kvgen.choices import CacheDTypeName, DTypeName, names
from kvgen.cli.command import OneOf
from kvgen.cli.options import ModelFlags, Several, load_models, model_options
from kvgen.cli.output import make_canvas, note, show, write_text
from kvgen.cli.progress import counting
from kvgen.cli.prompt import PromptFlags, given_prompt
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.render.score import ScoredModel, ScoredText

_REFERENCE = "f32"  # of --compare-dtypes, where it is among them


class _Widths(OneOf):
    """A weight type, or weight type+cache type."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Both by their names."""
        weights, plus, cache = str(value).partition("+")
        weights = super().convert(weights, param, ctx)
        if not plus:
            return weights
        return f"{weights}+{OneOf(names(CacheDTypeName)).convert(cache, param, ctx)}"


@click.command(
    short_help="Measure how well a model predicts a text.",
    epilog="""\b
The text runs in windows, and each token is scored once: behind the first
window with at least window - stride + 1 tokens before it. The first token
(the start token, where the tokenizer adds one) is not scored. Bits per
byte are the bits of all scored tokens over the bytes of the text (UTF-8).

\b
Examples:
  kvgen score story.txt
  kvgen score story.txt --window 256 --stride 256
  kvgen score story.txt --compare-dtypes f32,bf16,int8
  kvgen score - --csv < story.txt > tokens.csv
""",
)
@click.argument("file", metavar="FILE")
@model_options
@click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Positions that run together. [default: 1024, or a shorter context]",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Positions from the start of a window to the start of the next one; at most a window. A "
    "shorter stride gives each token more before it, and takes longer. [default: half the window]",
)
@click.option(
    "--compare-dtypes",
    type=Several(_Widths(names(DTypeName))),
    help="Score with each of these weight types, and compare their predictions with those of f32, "
    "or of the first where f32 is not among them. f32+int8 has f32 weights and an int8 cache.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: totals and tokens.")
@click.option(
    "--csv", "as_csv", is_flag=True, help="Print one row for each token; totals go to stderr."
)
@click.option("-q", "--quiet", is_flag=True, help="Print the result only.")
@click.option("-v", "--verbose", is_flag=True, help="Print more about the model.")
def score(
    file: str,
    model_flags: ModelFlags,
    window: int | None,
    stride: int | None,
    compare_dtypes: tuple[Any, ...] | None,
    as_json: bool,
    as_csv: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Measure how well a model predicts FILE (- for stdin): perplexity and bits per byte.

    A byte order mark and one final line end of the file are dropped.
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv are two formats: give one of them")
    flags = _with_dtypes(model_flags, compare_dtypes)
    text = given_prompt(PromptFlags(None, None, file))
    if not text:
        raise UsageError(f"{'standard input' if file == '-' else file}: the text is empty")
    models = load_models(flags, quiet=quiet, verbose=verbose)
    ids = models[0].encode(text)

    from kvgen.render.score import ScoredModel, ScoredText, compared_view, score_view
    from kvgen.scoring import positions_run, scores, sizes_for

    sizes = sizes_for(models[0].config, window=window, stride=stride)
    called: Sequence[str] = compare_dtypes or [model.engine.dtype for model in models]
    reference = called.index(_REFERENCE) if _REFERENCE in called else 0
    total = len(models) * positions_run(len(ids), sizes)
    with counting("scoring", total, quiet=quiet) as advance:
        measured = scores(
            [model.engine for model in models], ids, sizes, reference=reference, on_progress=advance
        )
    scored = [
        ScoredModel(
            score=one,
            name=name,
            dtype=model.engine.dtype,
            cache_dtype=model.engine.cache_dtype,
            weight_bytes=model.weight_bytes,
        )
        for name, model, one in zip(called, models, measured, strict=True)
    ]
    what = ScoredText(
        model=models[0].name,
        engine=_engine(models[0]),
        n_tokens=len(ids),
        n_bytes=len(text.encode()),
        sizes=sizes,
    )
    if as_json:
        content = _as_json(models[0], ids, what, scored, None if not compare_dtypes else reference)
        write_text(json.dumps(content, allow_nan=False) + "\n")
    elif as_csv:
        write_text(_as_csv(models[0], ids, scored, several=compare_dtypes is not None))
        if not quiet:
            for one in scored:
                note(_in_one_line(what, one))
    else:
        view = (
            compared_view(what, scored, reference=reference)
            if compare_dtypes
            else score_view(what, scored[0])
        )
        show(view, make_canvas(color="never", width=None, ascii_only=False))


def _with_dtypes(flags: ModelFlags, dtypes: tuple[Any, ...] | None) -> ModelFlags:
    """The flags with a way for each of --compare-dtypes."""
    if dtypes is None:
        return flags
    if len(dtypes) < 2:
        raise UsageError("--compare-dtypes takes two types or more; for one take --dtype")
    if flags.ways[0].dtype != "auto":
        raise UsageError("--compare-dtypes names the weight types: leave out --dtype")
    from dataclasses import replace

    ways = []
    for name in dtypes:
        weights, _, cache = name.partition("+")
        way = replace(flags.ways[0], dtype=weights)
        ways.append(replace(way, cache_dtype=cache) if cache else way)
    return flags._replace(ways=tuple(ways))


def _engine(model: Model) -> str:
    """The backend, and how several positions run at once where that is not exact."""
    engine = model.engine
    return engine.backend + ("" if engine.prefill == "exact" else f", {engine.prefill} prefill")


def _as_json(
    model: Model,
    ids: list[int],
    what: ScoredText,
    scored: list[ScoredModel],
    reference: int | None,
) -> dict[str, Any]:
    """The totals, and each token; None is a reference that there is not."""
    content: dict[str, Any] = {
        "model": what.model,
        "backend": model.engine.backend,
        "prefill": model.engine.prefill,
        "window": what.sizes.window,
        "stride": what.sizes.stride,
        "bytes": what.n_bytes,
        "tokens_scored": what.n_tokens - 1,
    }
    rows = [_totals(what, one) for one in scored]
    by_token = list(zip(*(one.score.log_probabilities.tolist() for one in scored), strict=True))
    if reference is None:
        content |= rows[0]
        named = [{"logprob": each} for (each,) in by_token]
    else:
        for row, one in zip(rows, scored, strict=True):
            row |= {"mean_kl": one.score.mean_kl, "same_choice": one.score.same_choice}
        content |= {"reference": scored[reference].name, "dtypes": rows}
        keys = [one.name for one in scored]
        named = [{"logprobs": dict(zip(keys, each, strict=True))} for each in by_token]
    content["tokens"] = [
        {"position": position, "id": token, "text": model.token_text(token)} | values
        for position, (token, values) in enumerate(zip(ids[1:], named, strict=True), 1)
    ]
    return content


def _totals(what: ScoredText, one: ScoredModel) -> dict[str, Any]:
    perplexity = one.score.perplexity
    return {
        "dtype": one.dtype,
        "cache_dtype": one.cache_dtype,
        "weight_bytes": one.weight_bytes,
        "nats": one.score.nats,
        "nats_per_token": one.score.nats_per_token,
        "perplexity": perplexity if math.isfinite(perplexity) else None,
        "bits_per_byte": one.score.bits_per_byte(what.n_bytes),
    }


def _as_csv(model: Model, ids: list[int], scored: list[ScoredModel], *, several: bool) -> str:
    """A row for each token.

    Its text is written as JSON, in quotes: a spreadsheet would take =1 for a formula.
    """
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    columns = [f"logprob_{one.name}" for one in scored] if several else ["logprob"]
    writer.writerow(["position", "id", "text", *columns])
    numbers = zip(*(one.score.log_probabilities.tolist() for one in scored), strict=True)
    for position, (token, values) in enumerate(zip(ids[1:], numbers, strict=True), 1):
        text = json.dumps(model.token_text(token), ensure_ascii=False)
        writer.writerow([position, token, text, *values])
    return rows.getvalue()


def _in_one_line(what: ScoredText, one: ScoredModel) -> str:
    score = one.score
    return (
        f"{what.model}, {one.dtype}, {one.cache_dtype} cache, {what.engine}: "
        f"{score.nats_per_token:.4f} nats per token, perplexity {score.perplexity:,.4f}, "
        f"{score.bits_per_byte(what.n_bytes):.4f} bits per byte; {what.n_tokens - 1:,} tokens, "
        f"windows of {what.sizes.window:,}, stride {what.sizes.stride:,}"
    )
