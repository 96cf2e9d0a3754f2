"""`kvgen inspect-attention`: see where the heads of a model read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvgen.choices import FIGURES
from kvgen.cli.attention_compare import deliver_difference
from kvgen.cli.attention_conflicts import check_conflicts
from kvgen.cli.attention_inside import (
    check_saved,
    inside_of_page,
    inside_options,
    look_inside,
)
from kvgen.cli.attention_numbers import number_options
from kvgen.cli.attention_options import (
    Selection,
    edit_options,
    map_options,
    place_of,
    place_options,
    select,
)
from kvgen.cli.attention_patch import patch_and_show
from kvgen.cli.attention_request import PROBE_TOKENS, Request, given_options, output_of
from kvgen.cli.attention_runs import note_sampling, prepared, recorded
from kvgen.cli.attention_views import (
    Views,
    deliver,
    saved_file,
)
from kvgen.cli.command import PromptCommand
from kvgen.cli.options import display_options, model_options
from kvgen.cli.output import Destination, make_canvas, show
from kvgen.cli.page_extras import add_interventions, add_what_ifs
from kvgen.cli.page_options import page_options
from kvgen.cli.prompt import encode_prompt, prompt_options
from kvgen.cli.sampling_options import sampling_options
from kvgen.cli.what_ifs import EditedRuns, print_edits, show_edits
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.recording import Recording


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
  kvgen inspect-attention "The cat sat on the mat" -n 8 -o att.html --open
  kvgen inspect-attention "Once upon a time" -n 8 -o attention.npz
  kvgen inspect-attention "The cat sat on the mat" --lens
  kvgen inspect-attention "The cat sat on the mat" --contributions
  kvgen inspect-attention "The girl said that" --patch "The boy said that"
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
@inside_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write a file by its ending: .html, a page to explore offline; .npz or .safetensors, "
    "which can be given in place of PROMPT later; .json, .txt, or .png, .svg, .pdf (extra `plot`). "
    "`json` and `txt` alone print that format.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object, as -o json: meta, token_ids, tokens, metrics, maps, names, "
    "predictions, and with --lens and --contributions theirs; with --patch site, layers, columns, "
    "and for each of these patched, effects and next_ids.",
)
@page_options
@edit_options
@click.option(
    "--probe",
    is_flag=True,
    help=f"In place of a prompt: {PROBE_TOKENS} random tokens, twice (--seed, default 0): the "
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
    the head that is named, or the one that writes most for it. --lens, --contributions and --patch
    show how the answer forms; -o FILE.html writes all of it as a page to explore.
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
    elif output.kind != "html" and (request.edits.what_ifs or request.edits.ablate_all):
        _compare_edits(request, output)
    elif request.inside.source is not None:
        _patch(request, request.inside.source, output)
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
    check_saved(seen, request.inside, selection, path)
    deliver(seen, _views(request, selection), output)


def _compare_edits(request: Request, output: Destination) -> None:
    """Reports of the prompt's run with each edit beside the unedited one."""
    model, selection, prompt_ids = prepared(request)
    runs = EditedRuns(model, prompt_ids, request.edits, request.place.at, selection, request.quiet)
    if output.kind == "json":
        print_edits(runs)
    else:
        show_edits(runs, request.display_flags)


def _record_and_show(request: Request, output: Destination) -> None:
    """Views of the prompt and of the tokens that are decoded after it."""
    from kvgen.generate import positions_fed

    model, selection, prompt_ids = prepared(request)
    if request.map_flags.show != "rollout" and f".{output.kind}" in FIGURES:
        from kvgen.render.plot import check_figures

        check_figures(n_maps=len(selection.layers) * len(selection.heads))
    if output.kind == "html":
        n_positions = positions_fed(len(prompt_ids), request.max_new_tokens)
        inside = inside_of_page(request.inside, selection, model.config, n_positions)
        request = replace(request, inside=inside)
    seen = recorded(request, model, selection, prompt_ids)
    look_inside(
        seen,
        request.inside,
        selection,
        request.map_flags.queries,
        display=request.display_flags,
        quiet=request.quiet,
        all_positions=output.kind != "screen" and output.kind != "txt",
    )
    if output.kind == "html":
        edits, at = request.edits, request.place.at
        runs = EditedRuns(model, prompt_ids, edits, at, selection, request.quiet)
        add_what_ifs(seen, runs)
        add_interventions(seen, model, seen.token_ids, quiet=request.quiet)
    deliver(seen, _views(request, selection), output)
    note_sampling(request, seen)


def _patch(request: Request, source: str, output: Destination) -> None:
    """The effects of activations of another prompt's run."""
    if saved_file(request.prompt_flags._replace(prompt=source)) is not None:
        raise UsageError(f"{source}: is a saved recording, and --patch takes a prompt to run")
    model, selection, prompt_ids = prepared(request)
    flags = request.prompt_flags
    source_ids = encode_prompt(model, source, flags, quiet=True).ids  # the notes were given
    patch_and_show(
        model,
        prompt_ids,
        source_ids,
        request.inside,
        selection,
        request.map_flags.queries,
        display=request.display_flags,
        output=output,
        quiet=request.quiet,
    )


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
        model, selection, prompt_ids = prepared(run, model)
        seen.append(recorded(run, model, selection, prompt_ids))
        note_sampling(run, seen[-1])
    deliver_difference(request, seen, output)


def _views(request: Request, selection: Selection) -> Views:
    return Views(
        selection,
        request.map_flags,
        request.number_flags,
        request.inside,
        request.steps,
        request.page,
        request.display_flags,
    )
