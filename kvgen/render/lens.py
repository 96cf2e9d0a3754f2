"""The logit lens: a table of layers x positions, and one position's candidates layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from kvgen.attention.lens import Lens
from kvgen.render.canvas import TOKEN_CELLS, Canvas, draw_level, name_label, token_label
from kvgen.render.ink import FRACTION_INK
from kvgen.render.layout import flow, stacked_tables

_LABEL, _CELL = 7, 10  # a token; with the marks of its probability and of the final choice
_MARGIN = 6  # columns of the layers' numbers
_TERMS = (
    "lens: the final norm and the head behind each block, as if the model ended there",
    "rank: that of the model's final choice, 1 = the likeliest",
    "H: entropy, 0 = certain",
)


def positions_that_fit(n_positions: int, canvas: Canvas) -> range:
    """The last positions that a table of this width has room for."""
    return range(max(0, n_positions - _per_row(canvas)), n_positions)


def lens_view(
    lens: Lens,
    tokens: Sequence[bytes],
    names: Mapping[int, bytes],
    canvas: Canvas,
) -> RenderableType:
    """What each layer would predict at each position, and the last position in numbers."""
    parts: list[RenderableType] = [
        flow(
            [
                f"lens · {len(lens.layers)} layers x {len(lens.positions)} of {len(tokens)} "
                "positions",
                "the likeliest next token behind each layer",
            ],
            canvas.width,
            between=" · ",
        )
    ]
    per_row = _per_row(canvas)
    for begin in range(0, len(lens.positions), per_row):
        columns = range(begin, min(begin + per_row, len(lens.positions)))
        parts += [*_table(lens, tokens, names, columns, canvas), Text()]
    parts += [*_candidates(lens, tokens, names, canvas), _legend(canvas)]
    parts.append(flow([Text(term, "dim") for term in _TERMS], canvas.width, between=" · "))
    parts.append(
        Text(f"verified: |last layer - the model's own logits| <= {lens.error:.1e}", "dim")
    )
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
    mark = ("=" if canvas.mode == "ascii" else "◂") if final else " "
    if canvas.mode != "color":
        return Text(label) + draw_level(probability, canvas) + Text(mark + " ")
    background = FRACTION_INK.color(probability, canvas.colors)
    foreground = "black" if probability > 0.5 else "white"
    style = Style(color=foreground, bgcolor=background, bold=final)
    return Text(label + " " + mark, style) + Text(" ")


def _candidates(
    lens: Lens, tokens: Sequence[bytes], names: Mapping[int, bytes], canvas: Canvas
) -> list[RenderableType]:
    """The last position's likeliest tokens in every layer, and the rank of the final choice."""
    last = len(lens.positions) - 1
    final = name_label(int(lens.final_ids[last]), names, canvas, TOKEN_CELLS).strip()
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
    return [
        Text(f"position {place} {read}: rank and probability of the final choice {final}", "bold"),
        *stacked_tables(
            headings, rows, width=canvas.width, keys=("layer",), words=("likely",), padding=2
        ),
    ]


def _short(probability: float) -> str:
    """A probability in three cells: .07, 1.0."""
    return "1.0" if probability >= 0.995 else f"{probability:.2f}"[1:]


def _legend(canvas: Canvas) -> Text:
    """The probabilities that cells are drawn by, and the mark."""
    mark = "= the final choice" if canvas.mode == "ascii" else "◂ the final choice"
    parts = []
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        if canvas.mode == "color":
            swatch = Text("██", Style(color=FRACTION_INK.color(value, canvas.colors)))
        else:
            swatch = draw_level(value, canvas)
        parts.append(Text.assemble(swatch, (f" {value:.1f}".replace("0.", "."), "dim")))
    parts[0] = Text.assemble(("probability: ", "dim"), parts[0])
    return flow([*parts, Text(mark, "dim")], canvas.width)
