"""`kvgen bench`: time prefill and decode, with and without the KV cache."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING

import click

from kvgen.cli.options import (
    DisplayFlags,
    ModelFlags,
    display_options,
    load_model,
    model_options,
)
from kvgen.cli.output import (
    check_writable,
    counting,
    make_canvas,
    note,
    show,
    write_file,
    write_text,
)
from kvgen.cli.prompt import PromptFlags, given_prompt
from kvgen.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from kvgen.model import Model

_PROMPT_TOKENS, _NEW_TOKENS = 512, 128
_REPETITIONS = 5
_TIMED_SECONDS = 60.0  # what the timed passes may take where -r was not given
_LONG_SECONDS = 20.0  # what is announced before it starts


@click.command(
    short_help="Time prefill and decode, with and without the KV cache.",
    epilog="""\b
With --no-cache both arms run interleaved (A B A B ...) on the same ids:
those that the cached arm chooses greedily. The first pass of each arm is
not timed: it warms up and compares the logits of every step. Loading,
compiling, progress and drawing are outside the clock.

\b
Examples:
  kvgen bench
  kvgen bench --no-cache
  kvgen bench --no-cache -p 128 -n 128
  kvgen bench "The cat sat on the mat" --no-cache -n 16 --output json
""",
)
@click.argument("prompt", required=False)
@click.option("--prompt", "prompt_option", metavar="TEXT", help="PROMPT, given as an option.")
@model_options
@click.option(
    "-p",
    "--n-prompt",
    type=click.IntRange(min=1),
    help=f"Prompt of so many random ids. [default: a text of {_PROMPT_TOKENS} tokens]",
)
@click.option(
    "-n",
    "--n-gen",
    type=click.IntRange(min=0),
    help=f"Decode steps. [default: {_NEW_TOKENS}]",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(min=1),
    help=f"Timed passes of each arm. [default: {_REPETITIONS}, fewer if they take over a minute]",
)
@click.option(
    "--cache/--no-cache",
    " /--no-kv-cache",
    "cached_only",
    default=True,
    help="Measure the same tokens without the KV cache too, and compare.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option("--out", metavar="FILE", help="Write JSON to a file as well.")
@click.option(
    "-s", "--seed", type=click.IntRange(min=0), help="For random ids. [default: random, printed]"
)
@display_options
@click.option("-q", "--quiet", is_flag=True, help="No notes or progress.")
@click.option("-v", "--verbose", is_flag=True, help="Say more about the model.")
def bench(
    prompt: str | None,
    prompt_option: str | None,
    model_flags: ModelFlags,
    n_prompt: int | None,
    n_gen: int | None,
    repetitions: int | None,
    cached_only: bool,
    output: str,
    out: str | None,
    seed: int | None,
    display_flags: DisplayFlags,
    quiet: bool,
    verbose: bool,
) -> None:
    """Time prefill and decode; with --no-cache, show what the KV cache saves.

    The prompt is a text that ships with kvgen, PROMPT, or with -p random ids.
    """
    text = given_prompt(PromptFlags(prompt, prompt_option))
    if text is not None and n_prompt is not None:
        raise UsageError("-p asks for random ids: give a text or -p, not both")
    if n_gen == 0 and not cached_only:
        raise UsageError("-n 0 leaves no step to compare: --no-cache needs at least -n 1")
    if not cached_only and model_flags.prefill == "fast":
        raise UsageError("--prefill fast is inexact, and --no-cache compares the logits")
    if out is not None:
        check_writable(out)
    model = load_model(model_flags, quiet=quiet, verbose=verbose)
    work = _choose_work(model, text, n_prompt, n_gen, seed)

    from kvgen.bench.report import BenchPlan
    from kvgen.bench.run import bench as run_bench
    from kvgen.bench.run import seconds_per_position
    from kvgen.machine import environment
    from kvgen.render.bench import bench_json, bench_view

    plan = BenchPlan(
        prompt_ids=work.prompt_ids,
        n_gen=work.n_gen,
        repetitions=repetitions or _REPETITIONS,
        arms=("on",) if cached_only else ("on", "off"),
    )
    pace = seconds_per_position(model.engine, plan)
    if repetitions is None:
        affordable = int(_TIMED_SECONDS / (pace * plan.positions_per_pass))
        plan = replace(plan, repetitions=max(1, min(affordable, _REPETITIONS)))
    seconds = pace * plan.total_positions
    if seconds > _LONG_SECONDS and not quiet:
        note(
            f"about {seconds:.0f} s for {plan.total_positions:,} positions; "
            "fewer of -r, -p or -n make it shorter"
        )
    with counting("benchmark", plan.total_positions, quiet=quiet) as advance:
        report = run_bench(model.engine, plan, on_progress=advance)
    facts = {
        "model": model.name,
        "dtype": model.engine.dtype,
        "cache_dtype": model.engine.cache_dtype,
        "backend": model.engine.backend,
        "threads": model.engine.threads,
        "prompt": work.prompt,
        "seed": work.seed,
        "environment": environment(),
    }
    content = json.dumps(bench_json(report, facts)) + "\n"
    if output == "json":
        write_text(content)
    else:
        canvas = make_canvas(**display_flags._asdict())
        show(bench_view(report, facts, canvas), canvas)
    if out is not None:
        write_file(out, content.encode())
    if report.verification is not None and not report.verification.passed:
        raise VerificationError(
            "cached and uncached logits differ by "
            f"{report.verification.max_abs_logit_difference:.2g}, more than rounding explains "
            f"({report.verification.tolerance:.2g})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    prompt_ids: tuple[int, ...]
    n_gen: int
    prompt: str  # where the ids come from, in words
    seed: int | None


def _choose_work(
    model: Model, text: str | None, n_prompt: int | None, n_gen: int | None, seed: int | None
) -> _Work:
    """Which ids to feed: a text where there is one and a tokenizer for it, else random ids."""
    from kvgen.generate import check_lengths

    context = model.config.max_context
    # Defaults shrink with the context; what was asked for is taken or refused.
    n_new = n_gen if n_gen is not None else min(_NEW_TOKENS, max(1, context // 5))
    if text is not None:
        ids = model.encode(text)
        check_lengths(model.config, len(ids), n_new)
        return _Work(prompt_ids=tuple(ids), n_gen=n_new, prompt=f"{len(ids)} tokens", seed=None)
    length = n_prompt if n_prompt is not None else max(1, min(_PROMPT_TOKENS, context - n_new))
    check_lengths(model.config, length, n_new)
    if n_prompt is None and model.tokenizer is not None:
        ids = model.encode(files("kvgen.bench").joinpath("text.txt").read_text("utf-8"))
        ids = ids[:length]
        scaled = f", scaled to the context of {context}" if length < _PROMPT_TOKENS else ""
        words = f"{len(ids)} tokens of the text that ships with the benchmark{scaled}"
        return _Work(prompt_ids=tuple(ids), n_gen=n_new, prompt=words, seed=None)

    import numpy as np

    from kvgen.sampling import Sampler, SamplingOptions

    seed = Sampler(SamplingOptions(), seed=seed).seed
    n_tokens = min(
        model.config.vocab_size,
        model.tokenizer.n_tokens if model.tokenizer is not None else model.config.vocab_size,
    )
    random_ids = np.random.default_rng(seed).integers(0, n_tokens, length)
    return _Work(
        prompt_ids=tuple(random_ids.tolist()),
        n_gen=n_new,
        prompt=f"{length} random ids, seed {seed}",
        seed=seed,
    )
