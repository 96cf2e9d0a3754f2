"""`kvgen verify`: compare the cached run with every other way to run the same ids."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING

import click

from kvgen.cli.command import Count
from kvgen.cli.options import ModelFlags, load_models, several_model_options
from kvgen.cli.output import write_line, write_text
from kvgen.cli.progress import working
from kvgen.errors import UsageError, VerificationError
from kvgen.render.numbers import counted

if TYPE_CHECKING:
    from kvgen.bench.verify import Check
    from kvgen.model import Model

_POSITIONS = 200


@click.command(
    short_help="Check that the cache changes nothing.",
    epilog="""\b
Each line is one way to run the same ids, compared with one pass over all
of them: token by token through the cache; in two chunks, cut at several
places; after the cache was cut back; on the NumPy reference; and, where
rotary frequencies change with the length, in steps across the change.
One line compares bits: with and without the cache, always one token at a
time, so that every sum has the same order (--prefill stepwise elsewhere).
Exit code 5 where one differs by more than rounding explains.

\b
Examples:
  kvgen verify
  kvgen verify path/to/model --dtype f32,bf16,int8
""",
)
@click.argument("model", required=False, metavar="[FOLDER_OR_ID]")
@several_model_options
@click.option(
    "-p",
    "--n-prompt",
    type=Count(min=2, hint="in verify -p is a number of positions; it takes no prompt"),
    help=f"Positions to run. [default: {_POSITIONS}, or the context]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the checks that failed.")
@click.option("-v", "--verbose", is_flag=True, help="Print more about the model.")
def verify(
    model: str | None,
    model_flags: ModelFlags,
    n_prompt: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check that cached, chunked and uncached runs of a model agree with the reference.

    Prints a line for each check of each --dtype, and one at the end.
    """
    source = click.get_current_context().get_parameter_source("model_name")
    if model is not None and source is click.core.ParameterSource.COMMANDLINE:
        raise UsageError("name the model once: as an argument or with -m")
    if model_flags.fast_prefill:
        raise UsageError(
            "--prefill fast rounds activations, and verify compares exact runs: leave it out"
        )
    if model_flags.stepwise_prefill:
        raise UsageError(
            "--prefill stepwise has no chunks, and verify runs the ids in chunks and token by "
            "token: leave it out"
        )
    named = model_flags._replace(name=model or model_flags.name)
    models = load_models(named, quiet=quiet, verbose=verbose)
    ids = _ids(models[0], n_prompt)

    from kvgen.bench.verify import verify as run_checks
    from kvgen.engine.open import open_engine

    results: list[tuple[str, Check]] = []
    for one in models:
        engine = one.engine
        name = f"{engine.dtype}, {engine.cache_dtype} cache, {engine.backend}"
        with working("verifying", quiet=quiet):
            reference = engine
            if engine.backend != "numpy":
                reference = open_engine(
                    one.params,
                    backend="numpy",
                    threads=engine.threads,
                    cache_dtype=engine.cache_dtype,
                )
        for check in run_checks(engine, reference, ids):
            results.append((name, check))
            if not as_json and not (quiet and check.passed):
                write_line(f"{name}: {_describe(check)}", good=check.passed)
    failed = sum(not check.passed for _, check in results)
    if as_json:
        write_text(json.dumps(_as_json(models[0], len(ids), results)) + "\n")
    elif not failed:
        write_line(f"verified: {len(results)} checks over {len(ids)} positions agree", good=True)
    if failed:
        raise VerificationError(f"{failed} of {len(results)} checks failed")


def _ids(model: Model, n_prompt: int | None) -> list[int]:
    """Ids of the text that ships with the benchmark, or random ones without a tokenizer."""
    context = model.config.max_context
    length = n_prompt if n_prompt is not None else min(_POSITIONS, context)
    if length > context:
        raise UsageError(f"{length} positions exceed the context of {context}: give a lower -p")
    if model.tokenizer is not None:
        ids = model.encode(files("kvgen.bench").joinpath("text.txt").read_text("utf-8"))
        return (ids * (1 + length // len(ids)))[:length]

    import numpy as np

    random_ids: list[int] = (
        np.random.default_rng(0).integers(0, model.config.vocab_size, length).tolist()
    )
    return random_ids


def _describe(check: Check) -> str:
    state = "ok" if check.passed else "FAILED"
    if not check.n_positions:
        counts = f", {check.miscounted} totals are wrong" if check.miscounted else ""
        return f"{check.name}: {state}{counts}"
    if check.different_bits is not None:
        rows = f"at {check.n_positions} lengths"
        if not check.different_bits:
            return f"{check.name}: {state}, all logits equal to the bit {rows}"
        return (
            f"{check.name}: {state}, {check.different_bits:,} logits have other bits {rows}, by at "
            f"most {check.max_abs_difference:.1e}"
        )
    ties = f", {counted(check.near_ties, 'near-tie')}" if check.near_ties else ""
    return (
        f"{check.name}: {state}, logits differ by {check.max_abs_difference:.1e} (at most "
        f"{check.tolerance:.1e}), {check.n_equal:,} of {check.n_positions:,} tokens the same{ties}"
    )


def _as_json(model: Model, n_positions: int, results: list[tuple[str, Check]]) -> object:
    return {
        "model": model.name,
        "positions": n_positions,
        "checks": [
            {
                "run": name,
                "check": check.name,
                "passed": check.passed,
                "max_abs_logit_difference": check.max_abs_difference,
                "tolerance": check.tolerance,
                "positions": check.n_positions,
                "tokens_equal": check.n_equal,
                "near_ties": check.near_ties,
                "miscounted": check.miscounted,
                "different_bits": check.different_bits,
            }
            for name, check in results
        ],
        "passed": all(check.passed for _, check in results),
    }
