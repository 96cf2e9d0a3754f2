"""Options of `kvgen inspect-attention` that do not go together, as one table."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from kvgen.errors import UsageError

INSIDE = ("--lens", "--contributions", "--patch")
OTHER_SITES = ("--site kv-head", "--site residual")
EDITS = ("--what-if", "--ablate-all")
MAP_OPTIONS = ("--show", "--scale", "--range", "--sink", "--pool", "--queries", "--keys")
PROMPTS = ("PROMPT", "-p", "-f", "--chat", "--system")
# Names for values of an option, beside the names of options themselves.
ROLLOUT = "--show rollout"
FIGURE, ARRAY_FILE, JSON_FILE, TEXT = "a figure", "a file of arrays", "a .json file", "a text"
PAGE = "a page"
LAYER, HEAD = "a layer", "a head"  # named by -l and -H, or by --at
RECORDING = "a saved recording"
FAST_PREFILL = "--prefill fast"
_FILES = (FIGURE, ARRAY_FILE, JSON_FILE, PAGE)
_NOT_DRAWN = (*_FILES, "--json")  # these hold all maps, nothing is drawn


class Conflict(NamedTuple):
    """Any of `these` is refused with any of `others`, or always, `unless` one of those is given."""

    these: tuple[str, ...]
    message: str  # {this} and {other} stand for the options that conflict
    others: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()


CONFLICTS = (
    Conflict(
        ("--json",),
        "--example is a text: leave out --json",
        others=("--example",),
    ),
    Conflict(
        EDITS,
        "{this} compares runs of the prompt: leave out {other}",
        others=("--explain", "--similarity", "--multi-head", "-o", "-n"),
        unless=(PAGE,),  # which shows the runs beside the recording
    ),
    Conflict(
        ("--ablate-all",),
        "--ablate-all compares runs of the prompt: leave out {other}",
        others=(PAGE,),
    ),
    Conflict(
        EDITS,
        "{this} draws maps of its own: leave out {other}",
        others=(*MAP_OPTIONS, "--metric", "--steps"),
    ),
    Conflict(
        ("--compare",),
        "--compare shows how weights differ between two runs: leave out {other}",
        others=("--show", "--sink", "--metric", "--steps", "--explain", *EDITS, "--probe"),
    ),
    Conflict(
        ("--compare", "--patch"),
        "{this} writes .json and .txt files: choose one of them in place of {other}",
        others=(FIGURE, ARRAY_FILE, PAGE),
    ),
    Conflict(
        INSIDE,
        "{this} is a view of its own: leave out {other}",
        others=(
            "--explain",
            "--similarity",
            "--multi-head",
            "--steps",
            "--metric",
            "--compare",
            *EDITS,
            *(option for option in MAP_OPTIONS if option != "--queries"),
        ),
    ),
    Conflict(
        ("--patch",),
        "--patch compares runs of two prompts: leave out {other}",
        others=("--lens", "--contributions", "-n", "--probe"),
    ),
    Conflict(
        ("--lens", "--contributions"),
        "{this} is drawn as text: write a .txt file in place of {other}",
        others=(FIGURE,),
    ),
    Conflict(
        ("--token", "--against"),
        "{this} names a token for --contributions or --patch: give one of them",
        unless=("--contributions", "--patch"),
    ),
    Conflict(
        ("--site",),
        "--site says what --patch takes from its prompt: add --patch FROM_PROMPT",
        unless=("--patch",),
    ),
    Conflict(
        OTHER_SITES,
        "{this} patches all heads of it together: leave out {other}",
        others=("-H", HEAD),
    ),
    Conflict(
        ("--lens",),
        "--lens looks behind whole layers: leave out {other}",
        others=("-H", HEAD),
        unless=("--contributions",),
    ),
    Conflict(
        ("--contributions",),
        "--contributions with -l shows what single heads read: add -H HEAD",
        others=(LAYER,),
        unless=(HEAD, "--lens"),
    ),
    Conflict(
        ("--contributions",),
        "--contributions takes one query, such as --contributions 3: leave out --queries",
        others=("--queries",),
        unless=("--lens",),
    ),
    Conflict(
        ("--at",),
        "--at takes the place of -l and -H: leave out {other}",
        others=("-l", "-H"),
        unless=("--what-if",),  # then --at names the layer or head that is edited
    ),
    Conflict(
        ("--json",),
        "--json and -o name two outputs: give one of them",
        others=(*_FILES, TEXT),
    ),
    Conflict(
        ("-H",),
        "-H names a head of a layer: add -l LAYER",
        unless=("-l", "--similarity", "--patch", *_NOT_DRAWN),
    ),
    Conflict(
        ("--similarity",),
        "--similarity and --multi-head are two views: give one of them",
        others=("--multi-head",),
    ),
    Conflict(
        ("--similarity", "--multi-head"),
        "{this} is a view of its own: leave out {other}",
        others=("--explain", "--steps", "--metric", *MAP_OPTIONS),
    ),
    Conflict(
        ("--multi-head",),
        "--multi-head adds up all heads of a layer: leave out {other}",
        others=("-H", HEAD),
    ),
    Conflict(
        ("--multi-head",),
        "a saved recording holds no model, and --multi-head needs its W_O: leave it out",
        others=(RECORDING,),
    ),
    Conflict(
        ("--multi-head",),
        "--multi-head adds up the heads of a layer: add -l LAYER",
        unless=(LAYER,),
    ),
    Conflict(
        ("--vectors",),
        "--vectors shows the vectors of an explained query: add --explain",
        unless=("--explain",),
    ),
    Conflict(
        (ROLLOUT,),
        "--show rollout combines all heads and layers; it cannot be used with {other}",
        others=("-H", HEAD, "--explain", "--steps"),
    ),
    Conflict(
        ("--metric",),
        "--metric applies to the summary of all layers: leave out {other}",
        others=("-l", "--at", "--explain"),
    ),
    Conflict(
        MAP_OPTIONS,
        "{this} applies to a map: add -l LAYER",
        unless=(LAYER, ROLLOUT, "--lens", "--patch", *_NOT_DRAWN),
    ),
    Conflict(
        ("--steps",),
        "--steps shows the decode steps of one head: add -l LAYER",
        unless=(LAYER,),
    ),
    Conflict(
        ("--steps",),
        "--steps shows the decode steps of one head: add -H HEAD",
        unless=(HEAD,),
    ),
    Conflict(
        ("--steps",),
        "--steps and --explain are two views: give one of them",
        others=("--explain",),
    ),
    Conflict(
        ("--explain", "--similarity", "--multi-head"),
        "{this} draws text: leave it out, or write a .txt file in place of {other}",
        others=_NOT_DRAWN,
    ),
    Conflict(
        MAP_OPTIONS,
        "{other} holds the maps as they are: leave out {this}",
        others=(ARRAY_FILE, JSON_FILE, PAGE, "--json"),
        unless=("--lens", "--patch"),
    ),
    Conflict(
        (*EDITS, "--probe", "--patch", "-n"),
        "a saved recording holds no model to run: leave out {this}",
        others=(RECORDING,),
    ),
    Conflict(
        ("--detail", "--max-size", "--open"),
        "{this} is for a page: add -o FILE.html",
        unless=(PAGE,),
    ),
    Conflict(
        ("--probe",),
        "--probe makes its own prompt: leave out {other}",
        others=PROMPTS,
    ),
    Conflict(
        (FAST_PREFILL,),
        "--prefill fast rounds activations, and attention is recorded exactly: leave it out",
        unless=(RECORDING,),
    ),
)


def check_conflicts(given: Collection[str]) -> None:
    """Raise UsageError for the first row of the table that the given options match."""
    for conflict in CONFLICTS:
        this = next((name for name in conflict.these if name in given), None)
        other = next((name for name in conflict.others if name in given), None)
        if this is None or (conflict.others and other is None):
            continue
        if not any(name in given for name in conflict.unless):
            raise UsageError(conflict.message.format(this=this, other=other))
