"""`kvgen generate`: continue a prompt."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from kvgen.cli.command import PromptCommand
from kvgen.cli.options import ModelFlags, cache_option, load_model, model_options
from kvgen.cli.output import Prose, note, write_text
from kvgen.cli.progress import counting
from kvgen.cli.prompt import PromptFlags, encode_prompt, prompt_options, read_prompt
from kvgen.cli.prompt_cache_option import (
    check_prompt_cache,
    open_prompt_cache,
    prompt_cache_option,
)
from kvgen.cli.sampling_options import SamplingFlags, choose_sampling, sampling_options
from kvgen.cli.token_output import (
    ProbabilityProse,
    TokenFlags,
    logprob_entries,
    token_options,
    write_json_line,
)
from kvgen.cli.watch import Watch
from kvgen.errors import TerminatedError, UsageError

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.piece import Piece
    from kvgen.render.timing import RunTimings
    from kvgen.sampling import Sampler


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
    help="Generate at most this many new tokens; 0 runs the prefill only. [default: 128, or as "
    "many as fit the context]",
)
@sampling_options(default="what the checkpoint recommends, else greedy")
@click.option(
    "--ignore-eos",
    is_flag=True,
    help="Never choose a token that ends the text: go on to -n tokens.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable.")
@cache_option
@prompt_cache_option
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
    use_cache: bool,
    prompt_cache: str | None,
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
    check_prompt_cache(prompt_cache, use_cache=use_cache)
    text = read_prompt(prompt_flags)
    model = load_model(model_flags, quiet=quiet, verbose=verbose)
    sampling = choose_sampling(model.recommendation.sampling, sampling_flags, quiet=quiet)
    if ignore_eos:
        sampling = replace(sampling, ignore_eos=True)
    sampler = model.sampler(sampling, seed=sampling_flags.seed)
    if verbose:
        note(f"sampling: {sampling.describe()}")
    prompt = encode_prompt(model, text, prompt_flags, quiet=quiet)
    as_text = not (as_json or token_flags.as_jsonl)
    run = _Run(model, prompt.ids, token_flags, use_cache=use_cache)
    if max_new_tokens is None:
        max_new_tokens = usual_new_tokens(model.config, len(prompt.ids))
    check_lengths(model.config, len(prompt.ids), max_new_tokens)
    watched, n_positions = None, positions_fed(len(prompt.ids), max_new_tokens)
    if watch is not None:
        if as_json or not use_cache:
            raise UsageError(
                "--watch needs the KV cache and a screen: leave out --json and --no-cache"
            )
        watched = Watch(model, watch, n_positions=n_positions)
    session = Session(model.engine, n_positions) if watched is None else watched.session
    kept = open_prompt_cache(prompt_cache, model, session, prompt.ids)
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
                session=session,
            )
            first = next(pieces, None)
        if kept is not None:  # where RoPE changed, positions of the file have run again
            run.reused = len(prompt.ids) - session.positions_run
        session.on_progress = None
        run.empty_seconds = time.perf_counter() - began
        pieces = itertools.chain([] if first is None else [first], pieces)
        if watched is not None:
            _collect(run, watched.shown(pieces, prompt.ids))
        for piece in pieces:
            run.pieces.append(piece)
            if not as_json:
                run.show(piece)
        run.finish_reason = run.pieces[-1].finish_reason if run.pieces else "length"
    except (KeyboardInterrupt, TerminatedError) as stopped:
        run.finish_reason = "interrupted"
        _report(run, sampler, as_text=as_text, quiet=quiet, verbose=verbose)
        raise click.exceptions.Exit(
            stopped.exit_code if isinstance(stopped, TerminatedError) else 130
        ) from None
    finally:
        run.prose.end()
    _report(run, sampler, as_text=as_text, quiet=quiet, verbose=verbose)
    if kept is not None:
        kept.update()


class _Run:
    """One generation: its pieces so far, and how it ended."""

    def __init__(
        self, model: Model, prompt_ids: list[int], flags: TokenFlags, *, use_cache: bool
    ) -> None:
        self.model = model
        self.prompt_ids = prompt_ids
        self.flags = flags
        self.use_cache = use_cache
        self.prose = ProbabilityProse() if flags.show_probs else Prose()
        self.pieces: list[Piece] = []
        self.finish_reason: str | None = None
        self.reused: int | None = None  # positions of the prompt out of the prompt cache
        self.empty_seconds = 0.0  # of the prefill where -n is 0

    def show(self, piece: Piece) -> None:
        """Print a new token as text, or as a line of JSON."""
        if self.flags.as_jsonl:
            with_top = self.flags.logprobs is not None
            write_json_line(self.model, piece, with_top=with_top)
        elif isinstance(self.prose, ProbabilityProse):
            self.prose.write_piece(piece)
        else:
            self.prose.write(piece.text)


def _collect(run: _Run, pieces: Iterator[Piece]) -> None:
    """Take all pieces, and print their text after the live view has closed, however it ends."""
    try:
        for piece in pieces:
            run.pieces.append(piece)
    finally:
        run.prose.write("".join(piece.text for piece in run.pieces))


def _report(run: _Run, sampler: Sampler, *, as_text: bool, quiet: bool, verbose: bool) -> None:
    """The end of a run: the JSON object, or the timing block on stderr."""
    from kvgen.engine.calibration import known_calibration
    from kvgen.engine.machine import peak_rss_bytes
    from kvgen.render.timing import RunTimings, fewer_threads, timing_block

    model, pieces = run.model, run.pieces
    positions = len(run.prompt_ids) + max(len(pieces) - 1, 0)
    position_bytes = model.config.kv_bytes_per_position(model.engine.cache_dtype)
    changes = tuple(
        (len(run.prompt_ids) + step, piece.positions - 1)
        for step, piece in enumerate(pieces[1:])
        if run.use_cache and piece.positions > 1
    )
    timings = RunTimings(
        load_seconds=model.load_seconds,
        compile_seconds=model.engine.compile_seconds,
        prefill_tokens=len(run.prompt_ids) - (run.reused or 0),
        reused=run.reused,
        prefill_seconds=pieces[0].seconds if pieces else run.empty_seconds,
        decode_seconds=tuple(piece.seconds for piece in pieces[1:]),
        cache_on=run.use_cache,
        positions=positions,
        changes=changes,
        cache_dtype=model.engine.cache_dtype,
        cache_bytes=position_bytes * positions,
        peak_rss_bytes=peak_rss_bytes(),
        prefill=model.engine.prefill,
        bytes_per_step=model.engine.weight_bytes
        + position_bytes * (len(run.prompt_ids) + len(pieces) / 2),
        bandwidth=known_calibration(model.engine).read_bytes_per_second
        if verbose and run.use_cache and len(pieces) > 1 and not changes
        else None,
    )
    if not as_text:
        write_text(json.dumps(_as_json(run, sampler, timings)) + "\n")
        return
    run.prose.end()
    if sys.stdout is not None and sys.stdout.isatty():
        write_text("\n")
    if quiet:
        return
    if isinstance(run.prose, ProbabilityProse):
        run.prose.explain()
    for line in timing_block(timings).splitlines():
        note(line)
    slowed = fewer_threads(model.engine.passes_by_threads, model.engine.threads)
    if verbose and slowed:
        note(slowed)
    if sampler.options.temperature > 0:
        note(f"sampled {sampler.options.describe()} · seed {sampler.seed}")
    if run.finish_reason == "interrupted":
        note("interrupted")


def _as_json(run: _Run, sampler: Sampler, timings: RunTimings) -> dict[str, Any]:
    import kvgen

    asked = run.flags.logprobs is not None
    return {
        "text": "".join(piece.text for piece in run.pieces),
        "ids": [piece.token for piece in run.pieces],
        **({"logprobs": logprob_entries(run.model, run.pieces)} if asked else {}),
        "prompt_ids": run.prompt_ids,
        "finish_reason": run.finish_reason,
        "seed": sampler.seed,
        "model": run.model.name,
        "dtype": run.model.engine.dtype,
        "backend": run.model.engine.backend,
        "threads": run.model.engine.threads,
        "prefill": run.model.engine.prefill,
        "cache": run.use_cache,
        **({"prompt_cache": reuse} if (reuse := timings.reuse()) else {}),
        "timings": {
            "load_seconds": timings.load_seconds,
            "compile_seconds": timings.compile_seconds,
            "prefill_tokens": timings.prefill_tokens,
            "prefill_seconds": timings.prefill_seconds,
            "decode_steps": len(timings.decode_seconds),
            "decode_seconds": sum(timings.decode_seconds),
            "first_token_seconds": timings.prefill_seconds,
            "positions_run": sum(piece.positions for piece in run.pieces) or timings.prefill_tokens,
            "positions_run_again": sum(again for _, again in timings.changes),
        },
        "peak_rss_bytes": timings.peak_rss_bytes,
        "version": kvgen.__version__,
    }
