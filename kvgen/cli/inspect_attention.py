"""`kvgen inspect-attention`: see where the heads of a model read."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvgen.choices import FIGURES
from kvgen.cli.attention_compare import deliver_difference
from kvgen.cli.attention_conflicts import check_conflicts
from kvgen.cli.attention_numbers import number_options
from kvgen.cli.attention_options import (
    Selection,
    edit_options,
    map_options,
    place_of,
    place_options,
    select,
)
from kvgen.cli.attention_request import Request, given_options, output_of
from kvgen.cli.attention_views import (
    Views,
    deliver,
    saved_file,
)
from kvgen.cli.command import PromptCommand
from kvgen.cli.options import display_options, load_model, model_options
from kvgen.cli.output import Destination, make_canvas, note, show
from kvgen.cli.progress import counting
from kvgen.cli.prompt import encode_prompt, prompt_options, read_prompt
from kvgen.cli.sampling_options import choose_sampling, sampling_options
from kvgen.cli.what_ifs import EditedRuns, print_edits, show_edits

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.recording import Recording
    from kvgen.sampling import Sampler

_PROBE_TOKENS = 50
_MUCH_MEMORY = 100 * 2**20


@click.command(
    "inspect-attention",
    cls=PromptCommand,
    epilog="""\b
Layers, heads and queries count from 0; -1 is the last one. Every run
recomputes the output of attention from the recorded Q, K and V and prints
how far it is from the kernel's own output.

\b
Examples:
  kvgen inspect-attention "The cat sat on the mat"
  kvgen inspect-attention "The cat sat on the mat" -l 2
  kvgen inspect-attention "The cat sat on the mat" -l 2 -H 3
  kvgen inspect-attention "The cat sat on the mat" -l 2 -H 3 --show share
  kvgen inspect-attention "The cat sat on the mat" --explain --vectors
  kvgen inspect-attention "The cat sat on the mat" -l 2 --multi-head
  kvgen inspect-attention "The cat sat on the mat" --similarity
  kvgen inspect-attention "Once upon a time" -n 8 -o attention.npz
  kvgen inspect-attention "The cat sat on the mat" --what-if ablate=2.3
  kvgen inspect-attention attention.npz -l 2 -H 3
  kvgen inspect-attention "The cat sat" --compare "The dog sat"
  kvgen inspect-attention --probe
  kvgen inspect-attention --example
""",
)
@prompt_options
@click.option(
    "--compare",
    metavar="PROMPT",
    help="Show how the weights of this prompt differ from those of PROMPT. Both need the same "
    "number of tokens; either may be a saved recording.",
)
@model_options
@click.option(
    "-n",
    "--max-tokens",
    "--max-new-tokens",
    "max_new_tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decode this many new tokens with the KV cache and show their rows too.",
)
@place_options
@map_options
@number_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write a file by its ending: .npz, .safetensors, .json, .txt, or .png, .svg, .pdf "
    "(extra `plot`). The first two can be given in place of PROMPT later. `json` and `txt` "
    "alone print that format.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as -o json.")
@edit_options
@click.option(
    "--probe",
    is_flag=True,
    help=f"In place of a prompt: {_PROBE_TOKENS} random tokens, twice (--seed, default 0): the "
    "exact test for induction, a head that continues a repeated text.",
)
@click.option(
    "--steps",
    is_flag=True,
    help="With -n, -l and -H: the decode steps, one after another; -n 4 makes 3 of them.",
)
@click.option("--example", is_flag=True, help="The formula on small numbers; needs no model.")
@sampling_options(default="0")
@display_options
@click.option("-q", "--quiet", is_flag=True, help="No notes or progress.")
@click.option("-v", "--verbose", is_flag=True, help="Print more about the model.")
def inspect_attention(**flags: Any) -> None:
    """See where the heads of a model read in PROMPT.

    Without -l: all layers and heads at a glance. With -l: a layer's heads. With -l and -H:
    one head's map. With --explain: one query with the numbers of every stage of the formula, in
    the head that is named, or the one that writes most for it.
    """
    request = Request(**flags)
    saved = saved_file(request.prompt_flags)
    output = output_of(request)
    all_saved = all(saved_file(one.prompt_flags) is not None for one in request.runs())
    check_conflicts(given_options(request, output, saved=all_saved))
    if request.example:
        _show_example(request)
    elif request.compare is not None:
        _compare(request, output)
    elif saved is not None:
        _show_saved(request, saved, output)
    elif request.edits.what_ifs or request.edits.ablate_all:
        _compare_edits(request, output)
    else:
        _record_and_show(request, output)


def _show_example(request: Request) -> None:
    from kvgen.render.example import worked_examples

    canvas = make_canvas(**request.display_flags._asdict())
    show(worked_examples(canvas), canvas)


def _show_saved(request: Request, path: Path, output: Destination) -> None:
    """Views of a file that -o has written."""
    from kvgen.recording import Recording

    seen = Recording.open(path)
    selection = select(
        place_of(request.place, request.edits),
        layers=seen.layers,
        heads=seen.heads,
        owner="recording",
    )
    deliver(seen, _views(request, selection), output)


def _compare_edits(request: Request, output: Destination) -> None:
    """Reports of the prompt's run with each edit beside the unedited one."""
    model, selection, prompt_ids = _prepare(request)
    runs = EditedRuns(model, prompt_ids, request.edits, request.place.at, selection, request.quiet)
    if output.kind == "json":
        print_edits(runs)
    else:
        show_edits(runs, request.display_flags)


def _record_and_show(request: Request, output: Destination) -> None:
    """Views of the prompt and of the tokens that are decoded after it."""
    model, selection, prompt_ids = _prepare(request)
    if request.map_flags.show != "rollout" and f".{output.kind}" in FIGURES:
        from kvgen.render.plot import check_figures

        check_figures(n_maps=len(selection.layers) * len(selection.heads))
    seen = _run(request, model, selection, prompt_ids)
    deliver(seen, _views(request, selection), output)
    _note_sampling(request, seen)


def _compare(request: Request, output: Destination) -> None:
    """The difference of two recordings, each a saved one or made now, by the same model."""
    from kvgen.recording import Recording

    seen: list[Recording] = []
    model = None
    for one in request.runs():
        path = saved_file(one.prompt_flags)
        if path is not None:
            seen.append(Recording.open(path))
            continue
        run = one if model is None else one.again(seed=seen[0].facts["seed"])
        model, selection, prompt_ids = _prepare(run, model)
        seen.append(_run(run, model, selection, prompt_ids))
        _note_sampling(run, seen[-1])
    deliver_difference(request, seen, output)


def _run(request: Request, model: Model, selection: Selection, prompt_ids: list[int]) -> Recording:
    """The recording of a prompt, with its tokens and the facts of the run."""
    recommend = functools.partial(model.recommendation.sampling, temperature=0.0)
    sampling = choose_sampling(recommend, request.sampling_flags, quiet=request.quiet)
    sampler = model.sampler(sampling, seed=request.sampling_flags.seed)
    return _record(request, model, selection, prompt_ids, sampler)


def _note_sampling(request: Request, seen: Recording) -> None:
    if seen.facts["seed"] is not None and not request.quiet:
        note(f"sampled {seen.facts['sampling']} · seed {seen.facts['seed']}")


def _views(request: Request, selection: Selection) -> Views:
    return Views(
        selection, request.map_flags, request.number_flags, request.steps, request.display_flags
    )


def _prepare(request: Request, model: Model | None = None) -> tuple[Model, Selection, list[int]]:
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
    if request.map_flags.show == "rollout":
        layers = list(range(max(layers) + 1))
    check_lengths(model.config, len(prompt_ids), request.max_new_tokens)
    needed = recording_bytes(
        model.config,
        n_layers=len(layers),
        n_heads=len(heads),
        n_prompt=len(prompt_ids),
        n_new=request.max_new_tokens,
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
            states=False,
            sampler=sampler,
            probe=_PROBE_TOKENS if request.probe else None,
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
        tokenizer.ordinary_ids(), n_tokens=_PROBE_TOKENS, seed=seed, first=model.encode("")
    )
