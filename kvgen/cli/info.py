"""`kvgen info`: the facts of a checkpoint, without running it."""

from __future__ import annotations

import json

import click

from kvgen.cli.options import DisplayFlags, display_options, find_model, note_ignored
from kvgen.cli.output import make_canvas, note, show, write_line, write_text
from kvgen.cli.progress import working
from kvgen.errors import UsageError


@click.command(
    epilog="""\b
Examples:
  kvgen info
  kvgen info HuggingFaceTB/SmolLM2-135M
  kvgen info --tokens 2000
  kvgen info weights/storyteller --json | jq .kv_bytes_per_token
"""
)
@click.argument("model", required=False, metavar="[FOLDER_OR_ID]")
@click.option(
    "-m",
    "--model",
    "model_option",
    metavar="FOLDER_OR_ID",
    envvar="KVGEN_MODEL",
    help="The model, given as an option. [env: KVGEN_MODEL; default: the shipped model]",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")
@click.option(
    "--tokens",
    "n_tokens",
    type=click.IntRange(min=1),
    help="Print the size of the KV cache for this many tokens too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@display_options
@click.option("-q", "--quiet", is_flag=True, help="No notes or progress.")
@click.option("-v", "--verbose", is_flag=True, help="List the ignored keys of the JSON files too.")
@click.pass_context
def info(
    context: click.Context,
    model: str | None,
    model_option: str | None,
    revision: str | None,
    n_tokens: int | None,
    as_json: bool,
    display_flags: DisplayFlags,
    quiet: bool,
    verbose: bool,
) -> None:
    """Show the facts of a model: family, shapes, bytes, positions, tokenizer.

    The model is not run, and no kernel is compiled.
    """
    on_command_line = context.get_parameter_source("model_option")
    if model is not None and on_command_line is click.core.ParameterSource.COMMANDLINE:
        raise UsageError("name the model once: as an argument or with -m")
    folder = find_model(model or model_option, revision=revision, quiet=quiet)

    with working("reading the model", quiet=quiet):
        from kvgen.facts import read_facts
        from kvgen.loading import default_model
        from kvgen.render.info import facts_json, facts_view

        facts = read_facts(folder or default_model())
    content = facts_json(facts)
    if n_tokens is not None:
        n_bytes = content["kv_bytes_per_token"] * n_tokens
        content |= {"tokens": n_tokens, "kv_bytes_for_tokens": n_bytes}
    if as_json:
        write_text(json.dumps(content) + "\n")
        return
    canvas = make_canvas(**display_flags._asdict())
    show(facts_view(facts, canvas), canvas)
    if n_tokens is not None:
        size, dtype = n_bytes / 2**20, content["cache_dtype"]
        write_line(f"{n_tokens:,} tokens take {size:,.1f} MiB of KV cache ({dtype})")
    if quiet:
        return
    if n_tokens is not None and n_tokens > facts.config.max_context:
        note(f"{n_tokens:,} tokens exceed the context of {facts.config.max_context:,}")
    for text in facts.notes:
        note(text)
    if verbose:
        note_ignored(facts.ignored_keys, facts.ignored_generation_keys)
