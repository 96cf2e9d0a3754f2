"""One run of `kvgen generate`: its pieces as they come, and its report at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvgen.cli.output import Prose, note, write_text
from kvgen.cli.structured_options import constraint_as_json
from kvgen.cli.token_output import (
    ProbabilityProse,
    TokenFlags,
    logprob_entries,
    write_json_line,
)

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.piece import Piece
    from kvgen.render.timing import RunTimings
    from kvgen.sampling import Sampler
    from kvgen.text.constraint import Constraint


class GenerateRun:
    """One generation: its pieces so far, and how it ended."""

    def __init__(
        self,
        model: Model,
        prompt_ids: list[int],
        flags: TokenFlags,
        *,
        use_cache: bool,
        constraint: Constraint | None,
    ) -> None:
        self.model = model
        self.prompt_ids = prompt_ids
        self.flags = flags
        self.use_cache = use_cache
        self.constraint = constraint
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


def collect(run: GenerateRun, pieces: Iterator[Piece]) -> None:
    """Take all pieces, and print their text after the live view has closed, however it ends."""
    try:
        for piece in pieces:
            run.pieces.append(piece)
    finally:
        run.prose.write("".join(piece.text for piece in run.pieces))


def report(
    run: GenerateRun, sampler: Sampler, *, as_text: bool, quiet: bool, verbose: bool
) -> None:
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
        constraint=run.constraint.kind if run.constraint is not None else None,
        constraint_seconds=sum(piece.constraint_seconds for piece in pieces),
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
    )
    if verbose and run.use_cache and len(pieces) > 1 and not changes:
        known = known_calibration(model.engine, reached=timings.bytes_per_second)
        timings = replace(timings, bandwidth=known.read_bytes_per_second)
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


def _as_json(run: GenerateRun, sampler: Sampler, timings: RunTimings) -> dict[str, Any]:
    import kvgen

    asked = run.flags.logprobs is not None
    return {
        "text": "".join(piece.text for piece in run.pieces),
        "ids": [piece.token for piece in run.pieces],
        **({"logprobs": logprob_entries(run.model, run.pieces)} if asked else {}),
        "prompt_ids": run.prompt_ids,
        "finish_reason": run.finish_reason,
        **constraint_as_json(run.constraint, run.pieces),
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
            **({"constraint_seconds": timings.constraint_seconds} if run.constraint else {}),
            "first_token_seconds": timings.prefill_seconds,
            "positions_run": sum(piece.positions for piece in run.pieces) or timings.prefill_tokens,
            "positions_run_again": sum(again for _, again in timings.changes),
        },
        "peak_rss_bytes": timings.peak_rss_bytes,
        "version": kvgen.__version__,
    }
