"""`kvgen generate`: continue a prompt."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import click

from kvgen.cli.command import PromptCommand
from kvgen.cli.generate_run import GenerateRun, collect, report
from kvgen.cli.options import ModelFlags, cache_option, load_model, model_options
from kvgen.cli.output import note
from kvgen.cli.progress import counting
from kvgen.cli.prompt import PromptFlags, encode_prompt, prompt_options, read_prompt
from kvgen.cli.prompt_cache_option import PromptCacheFlags, prompt_cache_options
from kvgen.cli.sampling_options import SamplingFlags, choose_sampling, sampling_options
from kvgen.cli.structured_options import (
    StructuredFlags,
    note_closed_early,
    require_whole,
    structured_options,
)
from kvgen.cli.token_output import (
    TokenFlags,
    token_options,
)
from kvgen.cli.watch import Watch
from kvgen.errors import TerminatedError, UsageError


@click.command(
    cls=PromptCommand,
    epilog="""\b
Prefill runs the prompt through the model; a decode step runs one token
more. N new tokens take one prefill and N - 1 decode steps, because the
first new token comes out of the prefill: so the timing block counts.

\b
Examples:
  kvgen generate "Once upon a time"
  kvgen generate "Once upon a time" --seed 1 -n 200
  kvgen generate -f story.txt --greedy --no-cache
  echo "The cat" | kvgen generate --stop . -q
  kvgen generate "The cat" --json | jq .timings
  kvgen generate "The cat" --show-probs
  kvgen generate "The cat" --json --logprobs 5 | jq .logprobs
  kvgen generate -f story.txt --prompt-cache story.safetensors
  kvgen generate "A girl as JSON:" --json-schema girl.schema.json
""",
)
@prompt_options
@model_options
@click.option(
    "-n",
    "--max-tokens",
    "--max-new-tokens",
    "max_new_tokens",
    type=click.IntRange(min=0),
    help="Generate at most this many new tokens; 0 runs the prefill only. JSON and other text that "
    "has to match is closed in time. [default: 128, or as many as fit the context]",
)
@sampling_options(default="what the checkpoint recommends, else greedy")
@click.option(
    "--ignore-eos",
    is_flag=True,
    help="Never choose a token that ends the text: go on to -n tokens.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable.")
@structured_options()
@cache_option
@prompt_cache_options
@click.option(
    "--watch",
    metavar="LAYER.HEAD",
    help="On a terminal: show one head's attention weights under the text while it is generated.",
)
@click.option("--echo", is_flag=True, help="Print the prompt before the new text.")
@token_options()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("-q", "--quiet", is_flag=True, help="No timings, notes or progress.")
@click.option("-v", "--verbose", is_flag=True, help="Print more about the model and the sampling.")
def generate(
    prompt_flags: PromptFlags,
    model_flags: ModelFlags,
    max_new_tokens: int | None,
    sampling_flags: SamplingFlags,
    ignore_eos: bool,
    stop: tuple[str, ...],
    structured_flags: StructuredFlags,
    use_cache: bool,
    prompt_cache_flags: PromptCacheFlags,
    watch: str | None,
    echo: bool,
    token_flags: TokenFlags,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Continue PROMPT with the model.

    New text goes to stdout as it is generated, timings to stderr. The prompt may also come from -p,
    a file (-f) or a pipe.
    """
    from kvgen.generate import check_lengths, positions_fed, usual_new_tokens
    from kvgen.session import Session

    token_flags.check(as_json=as_json, watch=watch)
    structured_flags.check(ignore_eos=ignore_eos)
    prompt_cache_flags.check(use_cache=use_cache)
    text = read_prompt(prompt_flags)
    model = load_model(model_flags, quiet=quiet, verbose=verbose)
    sampling = choose_sampling(model.recommendation.sampling, sampling_flags, quiet=quiet)
    if ignore_eos:
        sampling = replace(sampling, ignore_eos=True)
    sampler = model.sampler(sampling, seed=sampling_flags.seed)
    constraint = structured_flags.build(model)
    if verbose:
        before = "" if constraint is None else f"{constraint.name} > "
        note(f"sampling: {before}{sampling.describe()}")
    prompt = encode_prompt(model, text, prompt_flags, quiet=quiet)
    as_text = not (as_json or token_flags.as_jsonl)
    run = GenerateRun(model, prompt.ids, token_flags, use_cache=use_cache, constraint=constraint)
    if max_new_tokens is None:
        max_new_tokens = usual_new_tokens(
            model.config, len(prompt.ids), constrained=constraint is not None
        )
    check_lengths(model.config, len(prompt.ids), max_new_tokens)
    watched, n_positions = None, positions_fed(len(prompt.ids), max_new_tokens)
    if watch is not None:
        if as_json or not use_cache:
            raise UsageError(
                "--watch needs the KV cache and a screen: leave out --json and --no-cache"
            )
        watched = Watch(model, watch, n_positions=n_positions)
    session = Session(model.engine, n_positions) if watched is None else watched.session
    kept = prompt_cache_flags.open(model, session, prompt.ids)
    if kept is not None:
        run.reused = len(session.ids)
    n_to_run = len(prompt.ids) - len(session.ids)
    if echo and as_text:
        run.prose.write(prompt.text)
    began = time.perf_counter()
    try:
        with counting("prefill", n_to_run, quiet=quiet) as session.on_progress:
            pieces = model.generate(
                prompt.ids,
                max_new_tokens=max_new_tokens,
                sampler=sampler,
                stop=stop,
                cache=use_cache,
                logprobs=token_flags.logprobs or 0,
                constraint=constraint,
                session=session,
            )
            first = next(pieces, None)
        if kept is not None:  # where RoPE changed, positions of the file have run again
            run.reused = len(prompt.ids) - session.positions_run
        session.on_progress = None
        run.empty_seconds = time.perf_counter() - began
        pieces = itertools.chain([] if first is None else [first], pieces)
        if watched is not None:
            collect(run, watched.shown(pieces, prompt.ids))
        for piece in pieces:
            run.pieces.append(piece)
            if not as_json:
                run.show(piece)
        run.finish_reason = run.pieces[-1].finish_reason if run.pieces else "length"
    except (KeyboardInterrupt, TerminatedError) as stopped:
        run.finish_reason = "interrupted"
        report(run, sampler, as_text=as_text, quiet=quiet, verbose=verbose)
        raise click.exceptions.Exit(
            stopped.exit_code if isinstance(stopped, TerminatedError) else 130
        ) from None
    finally:
        run.prose.end()
    report(run, sampler, as_text=as_text, quiet=quiet, verbose=verbose)
    if kept is not None:
        kept.update()
    context_full = n_positions == model.config.max_context
    if not quiet:
        note_closed_early(constraint, run.pieces, n_asked=max_new_tokens, context_full=context_full)
    require_whole(constraint, run.pieces, context_full=context_full)
