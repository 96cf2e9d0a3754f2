"""The runs of `kvgen inspect-attention`: the model, what to look at in it, and the recording."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from kvgen.cli.attention_options import Selection, place_of, select
from kvgen.cli.attention_request import PROBE_TOKENS, Request
from kvgen.cli.options import load_model
from kvgen.cli.output import note
from kvgen.cli.progress import counting
from kvgen.cli.prompt import encode_prompt, read_prompt
from kvgen.cli.sampling_options import choose_sampling

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.recording import Recording
    from kvgen.sampling import Sampler

_MUCH_MEMORY = 100 * 2**20


def recorded(
    request: Request, model: Model, selection: Selection, prompt_ids: list[int]
) -> Recording:
    """The recording of a prompt, with its tokens and the facts of the run."""
    recommend = functools.partial(model.recommendation.sampling, temperature=0.0)
    sampling = choose_sampling(recommend, request.sampling_flags, quiet=request.quiet)
    sampler = model.sampler(sampling, seed=request.sampling_flags.seed)
    return _record(request, model, selection, prompt_ids, sampler)


def note_sampling(request: Request, seen: Recording) -> None:
    """Say how tokens were sampled, if they were, so that the run can be repeated."""
    if seen.facts["seed"] is not None and not request.quiet:
        note(f"sampled {seen.facts['sampling']} · seed {seen.facts['seed']}")


def prepared(request: Request, model: Model | None = None) -> tuple[Model, Selection, list[int]]:
    """The model, unless it is loaded already, what to look at in it, and the prompt's ids."""
    place = place_of(request.place, request.edits)
    text = "" if request.probe else read_prompt(request.prompt_flags)
    quiet = request.quiet
    model = model or load_model(
        request.model_flags, cache_dtype="f32", quiet=quiet, verbose=request.verbose
    )
    config = model.config
    selection = select(
        place, layers=range(config.n_layers), heads=range(config.n_heads), owner="model"
    )
    if request.probe:
        return model, selection, _probe_ids(model, request.sampling_flags.seed or 0)
    return model, selection, encode_prompt(model, text, request.prompt_flags, quiet=quiet).ids


def _record(
    request: Request,
    model: Model,
    selection: Selection,
    prompt_ids: list[int],
    sampler: Sampler,
) -> Recording:
    """Run the model, keeping the queries of the selected layers and heads."""
    from kvgen.attention.record import recording_bytes
    from kvgen.generate import check_lengths

    quiet, layers, heads = request.quiet, list(selection.layers), sorted(selection.heads)
    everything = request.inside.needs_everything
    if everything:
        layers, heads = list(range(model.config.n_layers)), list(range(model.config.n_heads))
    elif request.map_flags.show == "rollout":
        layers = list(range(max(layers) + 1))
    check_lengths(model.config, len(prompt_ids), request.max_new_tokens)
    needed = recording_bytes(
        model.config,
        n_layers=len(layers),
        n_heads=len(heads),
        n_prompt=len(prompt_ids),
        n_new=request.max_new_tokens,
        states=everything,
    )
    if request.verbose or (needed > _MUCH_MEMORY and not quiet):
        note(
            f"recording attention needs about {needed / 2**20:,.0f} MiB: Q and head outputs of "
            f"{len(layers)} layers x {len(heads)} heads, and a few maps at a time; choose fewer "
            "with -l and -H"
        )
    with counting("prefill", len(prompt_ids), quiet=quiet) as advance:
        seen = model.inspect(
            prompt_ids,
            max_new_tokens=request.max_new_tokens,
            layers=layers,
            heads=heads,
            states=everything,
            sampler=sampler,
            probe=PROBE_TOKENS if request.probe else None,
            on_progress=advance,
        )
    if seen.run.run_again and not quiet:
        note(
            f"rotary frequencies changed with the length: {seen.run.run_again:,} positions ran "
            "again, and every row is shown with the last frequencies"
        )
    return seen


def _probe_ids(model: Model, seed: int) -> list[int]:
    from kvgen.attention.record import probe_ids

    tokenizer = model.require_tokenizer()
    return probe_ids(
        tokenizer.ordinary_ids(), n_tokens=PROBE_TOKENS, seed=seed, first=model.encode("")
    )
