"""The logit lens: a table of layers x positions, and one position's candidates layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from kvgen.attention.lens import Lens
from kvgen.render.canvas import TOKEN_CELLS, Canvas, draw_level, name_label, quoted, token_label
from kvgen.render.ink import FRACTION_INK
from kvgen.render.layout import flow, stacked_tables
from kvgen.render.numbers import counted

_LABEL, _CELL = 7, 10  # a token; with the marks of its probability and of the final choice
_MARGIN = 6  # columns of the layers' numbers
_TERMS = (
    "rank, p: the rank (1 = the likeliest) and the probability of the final choice in each layer",
    "H: entropy, 0 = certain",
)
_LENS = "lens: the final norm and the output head after each layer, as if the model ended there"


def positions_that_fit(n_positions: int, canvas: Canvas) -> range:
    """The last positions that a table of this width has room for."""
    return range(max(0, n_positions - _per_row(canvas)), n_positions)


def lens_view(
    lens: Lens,
    tokens: Sequence[bytes],
    names: Mapping[int, bytes],
    canvas: Canvas,
) -> RenderableType:
    """What each layer would predict at each position, and the last column in numbers."""
    first, n_shown = lens.positions[0], len(lens.positions)
    at_end = n_shown < len(tokens) and lens.positions == tuple(range(first, len(tokens)))
    which = counted(n_shown, "position")
    if n_shown < len(tokens):
        which = f"{'the last ' if at_end else ''}{n_shown} of {len(tokens)} positions"
    parts: list[RenderableType] = [
        flow(
            [
                f"lens · {counted(len(lens.layers), 'layer')} x {which}",
                "each cell: the likeliest next token after that layer",
            ],
            canvas.width,
            between=" · ",
        )
    ]
    per_row = _per_row(canvas)
    for begin in range(0, n_shown, per_row):
        columns = range(begin, min(begin + per_row, n_shown))
        parts += [*[Text()] * (begin > 0), *_table(lens, tokens, names, columns, canvas)]
    parts += [_legend(canvas), Text(), *_candidates(lens, tokens, names, canvas)]
    parts += [
        flow([Text(term, "dim") for term in terms], canvas.width, between=" · ")
        for terms in (_TERMS, [_LENS])
    ]
    parts.append(
        Text(f"verified: |last layer - the model's own logits| <= {lens.error:.1e}", "dim")
    )
    if at_end:
        parts.append(flow([f"next: --queries 0:{first} for earlier positions"], canvas.width))
    return Group(*parts)


def _per_row(canvas: Canvas) -> int:
    return max(1, (canvas.width - _MARGIN) // _CELL)


def _table(
    lens: Lens,
    tokens: Sequence[bytes],
    names: Mapping[int, bytes],
    columns: range,
    canvas: Canvas,
) -> list[Text]:
    """Layers x some of the positions: each cell the likeliest token, drawn by its probability."""
    places = [lens.positions[column] for column in columns]
    numbers = "".join(str(place).ljust(_CELL) for place in places)
    read = "".join(token_label(tokens[place], canvas, _CELL - 1) + " " for place in places)
    lines = [Text("".ljust(_MARGIN) + numbers, "dim"), Text("layer".ljust(_MARGIN) + read, "bold")]
    for row, layer in enumerate(lens.layers):
        line = Text(f"{layer:>4}  ")
        for column in columns:
            token, probability = int(lens.ids[row, column, 0]), lens.probabilities[row, column, 0]
            label = name_label(token, names, canvas, _LABEL)
            final = token == lens.final_ids[column]
            line += _cell(label, float(probability), canvas, final=final)
        lines.append(line)
    return lines


def _cell(label: str, probability: float, canvas: Canvas, *, final: bool) -> Text:
    """A token as dark or bright as it is probable, and a mark where it is the final choice."""
    mark = _mark(canvas) if final else " "
    if canvas.mode != "color":
        return Text(label) + draw_level(probability, canvas) + Text(mark + " ")
    background = FRACTION_INK.color(probability, canvas.colors)
    foreground = "black" if probability > 0.5 else "white"
    style = Style(color=foreground, bgcolor=background, bold=final)
    return Text.assemble((f"{label} {mark}", style), " ")


def _mark(canvas: Canvas) -> str:
    return "=" if canvas.mode == "ascii" else "◂"


def _candidates(
    lens: Lens, tokens: Sequence[bytes], names: Mapping[int, bytes], canvas: Canvas
) -> list[RenderableType]:
    """The last position's likeliest tokens in every layer, and the rank of the final choice."""
    last = len(lens.positions) - 1
    place = lens.positions[last]
    read = token_label(tokens[place], canvas, TOKEN_CELLS).strip()
    rows = []
    n_shown = max(1, min(lens.ids.shape[2], (canvas.width - 31) // 14))
    for row, layer in enumerate(lens.layers):
        likely = zip(lens.ids[row, last], lens.probabilities[row, last], strict=True)
        shown = [
            f"{name_label(int(token), names, canvas, 8)} {_short(float(probability))}"
            for token, probability in likely
        ]
        rows.append(
            {
                "layer": str(layer),
                "rank": f"{lens.ranks[row, last]:,}",
                "p": f"{lens.final_probabilities[row, last]:.3f}",
                "H": f"{lens.entropies[row, last]:.2f}",
                "likely": "  ".join(shown[:n_shown]),
            }
        )
    headings = {"layer": "layer", "rank": "rank", "p": "p", "H": "H/nats", "likely": "likeliest"}
    column = ", the last column" if last else ""
    heading = [
        f"position {place} '{read}'{column}",
        f"the final choice: {quoted(int(lens.final_ids[last]), names, canvas)}",
    ]
    return [
        flow([Text(part, "bold") for part in heading], canvas.width, between=" · "),
        *stacked_tables(
            headings, rows, width=canvas.width, keys=("layer",), words=("likely",), padding=2
        ),
    ]


def _short(probability: float) -> str:
    """A probability in three cells: .07, 1.0."""
    return "1.0" if probability >= 0.995 else f"{probability:.2f}"[1:]


def _legend(canvas: Canvas) -> Text:
    """The probabilities that cells are drawn by, and the mark."""
    mark = f"{_mark(canvas)} the final choice: the likeliest token of the whole model"
    parts = []
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        if canvas.mode == "color":
            swatch = Text("██", Style(color=FRACTION_INK.color(value, canvas.colors)))
        else:
            swatch = draw_level(value, canvas)
        parts.append(Text.assemble(swatch, (f" {value:.1f}".replace("0.", "."), "dim")))
    parts[0] = Text.assemble(("probability: ", "dim"), parts[0])
    return flow([*parts, Text(mark, "dim")], canvas.width)
