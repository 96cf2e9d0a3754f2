"""`kvgen inspect-attention`: see where the heads of a model read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from kvgen.cli.options import (
    DisplayFlags,
    ModelFlags,
    SamplingFlags,
    choose_sampling,
    display_options,
    load_model,
    model_options,
    sampling_options,
)
from kvgen.cli.output import (
    check_writable,
    counting,
    make_canvas,
    note,
    show,
    write_file,
)
from kvgen.cli.prompt import PromptFlags, encode_prompt, prompt_options, read_prompt
from kvgen.cli.what_ifs import show_what_ifs
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.attention.diagnostics import Diagnostics
    from kvgen.attention.record import Recording
    from kvgen.model import Model
    from kvgen.render.canvas import Canvas


_PROBE_TOKENS = 50


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
  kvgen inspect-attention "The cat sat on the mat" -l 2 -H 3 --explain last
  kvgen inspect-attention "Once upon a time" -n 8 -o attention.npz
  kvgen inspect-attention "The cat sat on the mat" --what-if ablate=2.3
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
@click.option("-l", "--layer", "layer_spec", metavar="L", help="5, 0-3,7, -1 or all: its heads.")
@click.option("-H", "--head", "head_spec", metavar="H", help="With -l: one map for each head.")
@click.option(
    "--explain",
    "query_spec",
    metavar="QUERY",
    help="With -l and -H: walk one query (an index or last) through the formula.",
)
@click.option("-o", "--output", metavar="FILE.npz", help="Write the maps to a NumPy archive.")
@click.option(
    "--what-if",
    "what_ifs",
    multiple=True,
    metavar="EDIT",
    help="Run with one thing changed: kq, unscaled, unmasked, drop-sink, ablate=L.H[:mean], "
    "ablate=kvL.G. Repeatable.",
)
@click.option(
    "--at", default="all", show_default=True, metavar="PLACE", help="Where: all, a layer, or L.H."
)
@click.option(
    "--probe",
    is_flag=True,
    help=f"In place of a prompt: {_PROBE_TOKENS} random tokens twice (--seed, default 0), for "
    "which induction is defined exactly.",
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
    layer_spec: str | None,
    head_spec: str | None,
    query_spec: str | None,
    output: str | None,
    what_ifs: tuple[str, ...],
    at: str,
    probe: bool,
    example: bool,
    sampling_flags: SamplingFlags,
    display_flags: DisplayFlags,
    quiet: bool,
    verbose: bool,
) -> None:
    """See where the heads of a model read in PROMPT.

    Without an index: all layers and heads at a glance. With -l: a layer's heads. With -l and -H:
    one head's map. With --explain: one query with the numbers of every step.
    """
    if example:
        from kvgen.render.example import worked_examples

        canvas = make_canvas(**display_flags._asdict())
        show(worked_examples(canvas), canvas)
        return
    if head_spec is not None and layer_spec is None and output is None:
        raise UsageError("-H needs -l: which layer's head?")
    if query_spec is not None and (layer_spec is None or head_spec is None):
        raise UsageError("--explain needs one head: add -l and -H")
    if what_ifs and (query_spec is not None or output is not None or max_new_tokens):
        raise UsageError("--what-if compares runs of the prompt: leave out --explain, -o and -n")
    if query_spec is not None and output is not None:
        raise UsageError("--explain draws and -o writes: leave one of them out")
    if output is not None and not output.endswith(".npz"):
        raise UsageError(f"{output}: the file's name must end in .npz")
    if output is not None:
        check_writable(output)
    if probe and any(given for given in prompt_flags if given):
        raise UsageError("--probe makes its own prompt: leave the text out")
    text = "" if probe else read_prompt(prompt_flags)
    if model_flags.prefill == "fast":
        raise UsageError("--prefill fast is inexact, and attention is looked at as it is")
    model = load_model(model_flags, cache_dtype="f32", quiet=quiet, verbose=verbose)
    layers = _indices("all" if layer_spec is None else layer_spec, model.config.n_layers, "layer")
    heads = _indices("all" if head_spec is None else head_spec, model.config.n_heads, "head")
    tokenizer = model.require_tokenizer()
    if probe:
        prompt_ids = _probe_ids(model, sampling_flags.seed or 0)
    else:
        prompt_ids = encode_prompt(model, text, prompt_flags, quiet=quiet).ids

    if what_ifs:
        show_what_ifs(model, prompt_ids, what_ifs, at, display_flags, layers, heads, quiet=quiet)
        return

    from kvgen.attention.diagnostics import diagnose
    from kvgen.attention.record import record
    from kvgen.render.attention import verify_line
    from kvgen.sampling import SamplingOptions

    sampling = choose_sampling(SamplingOptions(), sampling_flags, quiet=quiet)
    sampler = model.sampler(sampling, seed=sampling_flags.seed)
    with counting("prefill", len(prompt_ids), quiet=quiet) as advance:
        recording = record(
            model.engine,
            prompt_ids,
            layers=layers,
            sampler=sampler,
            max_new_tokens=max_new_tokens,
            stop_ids=model.stop_ids,
            on_progress=advance,
        )
    found = diagnose(recording.trace, probe=_PROBE_TOKENS if probe else None)
    tokens = [tokenizer.token_bytes(token) for token in recording.trace.token_ids]
    if output is not None:
        from kvgen.attention.export import to_npz

        facts = {
            "model": model.name,
            "dtype": model.engine.dtype,
            "cache_dtype": model.engine.cache_dtype,
            "backend": model.engine.backend,
            "rotary": bool(model.config.rope),
            "sampling": sampling.describe(),
            "seed": sampler.seed if sampling.temperature > 0 else None,
        }
        write_file(output, to_npz(recording, found, tokens, heads=heads, facts=facts))
        note(f"{output}: {len(layers)} layers x {len(heads)} heads x {len(tokens)} tokens")
        note(verify_line(recording))
        return
    canvas = make_canvas(**display_flags._asdict())
    _draw(
        recording,
        found,
        tokens,
        canvas,
        layers=layers if layer_spec is not None else [],
        heads=heads,
        one_map=head_spec is not None,
        query=_query(query_spec, len(tokens)) if query_spec is not None else None,
    )
    if sampling.temperature > 0 and not quiet:
        note(f"sampled {sampling.describe()} · seed {sampler.seed}")


def _probe_ids(model: Model, seed: int) -> list[int]:
    from kvgen.attention.record import probe_ids

    tokenizer = model.require_tokenizer()
    return probe_ids(
        tokenizer.ordinary_ids(), n_tokens=_PROBE_TOKENS, seed=seed, first=model.encode("")
    )


def _draw(
    recording: Recording,
    found: Diagnostics,
    tokens: list[bytes],
    canvas: Canvas,
    *,
    layers: list[int],
    heads: list[int],
    one_map: bool,
    query: int | None,
) -> None:
    """The view that the indices ask for: none, a layer, a head, a query."""
    from rich.text import Text

    from kvgen.attention.steps import explain_row
    from kvgen.render.attention import head_map, layer_grid, summary, verify_line
    from kvgen.render.explain import explanation

    trace = recording.trace
    if not layers:
        show(summary(trace, found, canvas), canvas)
    for layer in layers:
        if not one_map:
            show(layer_grid(trace, found, layer=layer, heads=heads, canvas=canvas), canvas)
        for head in heads if one_map else []:
            if query is None:
                show(head_map(trace, tokens, found, layer=layer, head=head, canvas=canvas), canvas)
                continue
            of_layer = trace.layer(layer)
            group = of_layer.kv_head(head)
            row = explain_row(
                of_layer.q[query, head],
                of_layer.k[: query + 1, group],
                of_layer.v[: query + 1, group],
                scale=of_layer.scale,
                softcap=of_layer.softcap,
                window=of_layer.window,
            )
            show(
                explanation(trace, tokens, row, layer=layer, head=head, query=query, canvas=canvas),
                canvas,
            )
    show(Text(verify_line(recording), "dim"), canvas)


def _indices(spec: str, count: int, what: str) -> list[int]:
    """The numbers that `5`, `0-3,7`, `-1` or `all` name, in that order.

    Raises UsageError for what cannot be read or is out of range.
    """
    if spec == "all":
        return list(range(count))
    chosen: list[int] = []
    for part in spec.split(","):
        match = re.fullmatch(r"(-[0-9]{1,6})|([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
        if match is None:
            raise UsageError(f"{what} {part!r} is not a number, a range like 0-3, or all")
        first = int(match[1] or match[2])
        last = int(match[3]) if match[3] is not None else first
        if not -count <= first <= last < count:
            raise UsageError(f"{what} {part}: this model has {what}s 0-{count - 1}")
        chosen += [index % count for index in range(first, last + 1)]
    return list(dict.fromkeys(chosen))


def _query(spec: str, count: int) -> int:
    if spec == "last":
        return count - 1
    if re.fullmatch("-?[0-9]{1,6}", spec) is None or not -count <= int(spec) < count:
        raise UsageError(f"query {spec}: this run has queries 0-{count - 1}, or last")
    return int(spec) % count
