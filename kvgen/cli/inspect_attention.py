"""`kvgen inspect-attention`: see where the heads of a model read."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvgen.cli.attention_options import (
    AS_IT_IS,
    EditFlags,
    MapFlags,
    PlaceFlags,
    edit_options,
    map_options,
    place_options,
    resolve_place,
)
from kvgen.cli.attention_views import (
    FIGURES,
    Seen,
    Wanted,
    deliver,
    indices_of,
    read_saved,
    saved_file,
)
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
)
from kvgen.cli.prompt import PromptFlags, encode_prompt, prompt_options, read_prompt
from kvgen.cli.sampling_options import SamplingFlags, choose_sampling, sampling_options
from kvgen.cli.what_ifs import show_edits
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.model import Model


_PROBE_TOKENS = 50
_MUCH_MEMORY = 100 * 2**20


@click.command(
    "inspect-attention",
    epilog="""\b
Layers, heads and queries count from 0; -1 is the last one. Every run
recomputes the output of attention from the captured Q, K and V and prints
how far it is from what the kernel put out.

\b
Examples:
  kvgen inspect-attention "The cat sat on the mat"
  kvgen inspect-attention "The cat sat on the mat" -l 2
  kvgen inspect-attention "The cat sat on the mat" -l 2 -H 3
  kvgen inspect-attention "The cat sat on the mat" -l 2 -H 3 --show share
  kvgen inspect-attention "The cat sat on the mat" --explain
  kvgen inspect-attention "Once upon a time" -n 8 -o attention.npz
  kvgen inspect-attention "The cat sat on the mat" --what-if ablate=2.3
  kvgen inspect-attention attention.npz -l 2 -H 3
  kvgen inspect-attention --probe
  kvgen inspect-attention --example
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
    default=0,
    show_default=True,
    help="Decode so many tokens with the KV cache and show their rows too.",
)
@place_options
@map_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write a file by its ending: .npz, .safetensors, .json, .txt, or .png, .svg, .pdf "
    "(extra `plot`). The first two can be given in place of PROMPT later.",
)
@edit_options
@click.option(
    "--probe",
    is_flag=True,
    help=f"In place of a prompt: {_PROBE_TOKENS} random tokens twice (--seed, default 0), for "
    "which induction is defined exactly.",
)
@click.option(
    "--steps", is_flag=True, help="With -n, -l and -H: the decode steps, one after another."
)
@click.option("--example", is_flag=True, help="The formula on small numbers; needs no model.")
@sampling_options(default="0")
@display_options
@click.option("-q", "--quiet", is_flag=True, help="No notes or progress.")
@click.option("-v", "--verbose", is_flag=True, help="Say more about the model.")
def inspect_attention(
    prompt_flags: PromptFlags,
    model_flags: ModelFlags,
    max_new_tokens: int,
    place: PlaceFlags,
    map_flags: MapFlags,
    output: str | None,
    edits: EditFlags,
    probe: bool,
    steps: bool,
    example: bool,
    sampling_flags: SamplingFlags,
    display_flags: DisplayFlags,
    quiet: bool,
    verbose: bool,
) -> None:
    """See where the heads of a model read in PROMPT.

    Without an index: all layers and heads at a glance. With -l: a layer's heads. With -l and -H:
    one head's map. With --explain: one query with the numbers of every step, in the head that is
    named, or the one that writes most for it.
    """
    if example:
        from kvgen.render.example import worked_examples

        canvas = make_canvas(**display_flags._asdict())
        show(worked_examples(canvas), canvas)
        return
    editing = bool(edits.what_ifs) or edits.ablate_all
    if editing and (place.query_spec is not None or output is not None or max_new_tokens):
        raise UsageError("edits compare runs of the prompt: leave out --explain, -o and -n")
    if editing and (map_flags != AS_IT_IS or steps):
        raise UsageError("edits have their own maps: leave out --show and the like, and --steps")
    place = resolve_place(place, edits)
    wanted = Wanted(place, map_flags, steps)
    wanted.check(output)
    if output is not None:
        check_writable(output)
    drawn = Path(output or "").suffix in FIGURES
    if drawn:
        from kvgen.render.plot import check_figures

        check_figures()
    saved = saved_file(prompt_flags)
    if saved is not None:
        if editing or probe or max_new_tokens:
            raise UsageError(
                "a saved file holds no model: leave out --what-if, --ablate-all, --probe and -n"
            )
        deliver(read_saved(saved), wanted, output, display_flags)
        return
    if probe and any(given for given in prompt_flags if given):
        raise UsageError("--probe makes its own prompt: leave the text out")
    text = "" if probe else read_prompt(prompt_flags)
    if model_flags.prefill == "fast":
        raise UsageError("--prefill fast is inexact, and attention is looked at as it is")
    model = load_model(model_flags, cache_dtype="f32", quiet=quiet, verbose=verbose)
    config = model.config
    layers = indices_of(place.layer_spec, config.n_layers, "layer")
    heads = indices_of(place.head_spec, config.n_heads, "head")
    wanted = wanted.resolved(layers, heads)
    if map_flags.show == "rollout":
        layers = list(range(max(layers) + 1))
    elif drawn:
        check_figures(n_maps=len(layers) * len(heads))
    tokenizer = model.require_tokenizer()
    if probe:
        prompt_ids = _probe_ids(model, sampling_flags.seed or 0)
    else:
        prompt_ids = encode_prompt(model, text, prompt_flags, quiet=quiet).ids

    if editing:
        show_edits(model, prompt_ids, edits, place.at, display_flags, layers, heads, quiet=quiet)
        return

    from kvgen.attention.record import record, recording_bytes
    from kvgen.generate import check_lengths

    recommend = functools.partial(model.recommendation.sampling, temperature=0.0)
    sampling = choose_sampling(recommend, sampling_flags, quiet=quiet)
    sampler = model.sampler(sampling, seed=sampling_flags.seed)
    check_lengths(config, len(prompt_ids), max_new_tokens)
    taken = recording_bytes(
        config,
        n_layers=len(layers),
        n_heads=len(heads),
        n_prompt=len(prompt_ids),
        n_new=max_new_tokens,
    )
    if verbose or (taken > _MUCH_MEMORY and not quiet):
        note(
            f"looking takes about {taken / 2**20:,.0f} MiB: q and z of {len(layers)} layers x "
            f"{len(heads)} heads, and a few maps at a time; -l and -H choose fewer"
        )
    with counting("prefill", len(prompt_ids), quiet=quiet) as advance:
        recording = record(
            model.engine,
            prompt_ids,
            layers=layers,
            heads=sorted(heads),
            sampler=sampler,
            max_new_tokens=max_new_tokens,
            stop_ids=model.stop_ids,
            on_progress=advance,
            output_weights=model.output_weights,
            probe=_PROBE_TOKENS if probe else None,
        )
    if recording.run_again and not quiet:
        note(
            f"rotary frequencies changed: {recording.run_again:,} positions were run again, and "
            "every row is shown with the last frequencies"
        )
    seen = Seen(
        recording=recording,
        tokens=[tokenizer.token_bytes(token) for token in recording.trace.token_ids],
        facts={
            "model": model.name,
            "dtype": model.engine.dtype,
            "cache_dtype": model.engine.cache_dtype,
            "backend": model.engine.backend,
            "rotary": bool(config.rope),
            "sampling": sampling.describe(),
            "seed": sampler.seed if sampling.temperature > 0 else None,
            "probe": _PROBE_TOKENS if probe else None,
        },
    )
    deliver(seen, wanted, output, display_flags)
    if sampling.temperature > 0 and not quiet:
        note(f"sampled {sampling.describe()} · seed {sampler.seed}")


def _probe_ids(model: Model, seed: int) -> list[int]:
    from kvgen.attention.record import probe_ids

    tokenizer = model.require_tokenizer()
    return probe_ids(
        tokenizer.ordinary_ids(), n_tokens=_PROBE_TOKENS, seed=seed, first=model.encode("")
    )
