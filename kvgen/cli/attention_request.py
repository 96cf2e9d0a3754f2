"""One command line of `kvgen inspect-attention`, and which of its options were given."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvgen.choices import ARRAY_FILES, FIGURES, RECORDING_FILES
from kvgen.cli.attention_conflicts import (
    ARRAY_FILE,
    FAST_PREFILL,
    FIGURE,
    HEAD,
    JSON_FILE,
    LAYER,
    PAGE,
    RECORDING,
    TEXT,
)
from kvgen.cli.attention_inside import InsideFlags
from kvgen.cli.attention_numbers import NumberFlags
from kvgen.cli.attention_options import EditFlags, MapFlags, PlaceFlags, place_of
from kvgen.cli.attention_views import FORMATS
from kvgen.cli.options import DisplayFlags, ModelFlags
from kvgen.cli.output import Destination, destination
from kvgen.cli.page_options import PageFlags
from kvgen.cli.prompt import PromptFlags
from kvgen.cli.sampling_options import SamplingFlags

PROBE_TOKENS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One command line."""

    prompt_flags: PromptFlags
    compare: str | None
    model_flags: ModelFlags
    max_new_tokens: int
    place: PlaceFlags
    map_flags: MapFlags
    number_flags: NumberFlags
    inside: InsideFlags
    page: PageFlags
    output: str | None
    as_json: bool
    edits: EditFlags
    probe: bool
    steps: bool
    example: bool
    sampling_flags: SamplingFlags
    display_flags: DisplayFlags
    quiet: bool
    verbose: bool

    def runs(self) -> list[Request]:
        """The request for each recording: one, or with --compare two that are alike."""
        if self.compare is None:
            return [self]
        flags = self.prompt_flags._replace(
            prompt=self.compare, prompt_option=None, prompt_file=None
        )
        return [self, replace(self, prompt_flags=flags)]

    def again(self, *, seed: int | None) -> Request:
        """The same without notes, and with the seed of an earlier run unless one was given."""
        flags = self.sampling_flags
        if flags.seed is None:
            flags = flags._replace(seed=seed)
        return replace(self, sampling_flags=flags, quiet=True)


def output_of(request: Request) -> Destination:
    """Where the result goes. Raises UsageError where it could not be written or drawn there."""
    if request.example or request.output is None:
        return Destination("json" if request.as_json else "screen", None)
    output = destination(request.output, formats=FORMATS, endings=RECORDING_FILES)
    if f".{output.kind}" in FIGURES:
        from kvgen.render.plot import check_figures

        check_figures()
    return output


def given_options(request: Request, output: Destination, *, saved: bool) -> set[str]:
    """The options that were given, as the table of conflicts names them."""
    if request.example:
        return {"--example", *(["--json"] if request.as_json else [])}
    prompt, place, edits = request.prompt_flags, request.place, request.edits
    named = place_of(place, edits)
    kinds = dict.fromkeys(FIGURES, FIGURE) | dict.fromkeys(ARRAY_FILES, ARRAY_FILE)
    kinds |= {".json": JSON_FILE, ".txt": TEXT, ".html": PAGE}
    facts = {
        "PROMPT": prompt.prompt,
        "-p": prompt.prompt_option,
        "-f": prompt.prompt_file,
        "--chat": prompt.chat,
        "--system": prompt.system,
        "-l": place.layers is not None,
        "-H": place.heads is not None,
        LAYER: named.layers is not None,
        HEAD: named.heads is not None,
        "--at": place.at != "all",
        "--explain": place.query is not None,
        "--compare": request.compare is not None,
        "-n": request.max_new_tokens,
        "-o": output.path is not None,
        "--json": request.as_json or (output.path is None and output.kind == "json"),
        "--what-if": edits.what_ifs,
        "--ablate-all": edits.ablate_all,
        "--probe": request.probe,
        "--steps": request.steps,
        RECORDING: saved,
        FAST_PREFILL: request.model_flags.fast_prefill,
    }
    given = {name for name, value in facts.items() if value}
    if request.output is not None and request.output != "json":
        given.add(kinds[f".{output.kind}"])
    for flags in (request.map_flags, request.number_flags, request.inside, request.page):
        given.update(flags.given())
    return given
