"""Which rows a step needs, as strips over positions and over layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from rich.text import Text

from kvgen.bench.interventions import Intervention, LaterToken, Recomputed
from kvgen.bench.report import BenchReport
from kvgen.choices import RowKind
from kvgen.render.canvas import Canvas, draw_level
from kvgen.render.layout import flow

_STRIP = 40  # columns at most
_DECADES = 6  # of the greatest change, drawn at different heights: float32 has no more


def of_first_engine(report: BenchReport) -> list[Intervention]:
    """The interventions on the engine of the first run."""
    backend = report.runs[0].backend
    return [one for one in report.interventions if one.backend == backend]


def need_sentence(report: BenchReport) -> str | None:
    """Which kept rows a step needs, in one sentence; None where nobody has asked."""
    asked = of_first_engine(report)
    if not asked:
        return None
    n_layers = len({one.layer for one in asked})
    layers = f"{n_layers} layer{'s' if n_layers != 1 else ''}"
    if not all(one.as_expected for one in asked):
        return f"NOT AS EXPECTED in {layers}: " + "; ".join(
            f"layer {one.layer} {one.row.upper()}: {one.n_changing} of {len(one.positions)} rows "
            "change the logits"
            for one in asked
            if not one.as_expected
        )
    n_rows = len(asked[0].positions)
    windows = any(one.first_visible for one in asked)
    return (
        f"of {n_rows:,} kept rows in each of {layers} a step needs every one of K and V"
        + (" inside the layer's window" if windows else "")
        + " and not one of Q: changing an old q changes no bit of its logits"
    )


def need_picture(report: BenchReport, canvas: Canvas) -> list[Text]:
    """Three strips over the positions before a step: what changing a row of K, V and Q changes."""
    words = need_words(report)
    if words is None:
        return []
    lines = [Text(words.title)]
    for kind, of_kind in words.of_kinds.items():
        changes = [one.max_abs_logit_change for one in of_first_engine(report) if one.row == kind]
        strip = _strip(np.max(changes, axis=0), words.greatest, canvas)
        lines += _beside(Text.assemble(f"{kind.upper()}  ", strip), of_kind, canvas)
    legend = [f"   {words.legend[0]}", *words.legend[1:]]
    return [*lines, flow([Text(part, "dim") for part in legend], canvas.width, between=" · ")]


class NeedWords(NamedTuple):
    """What stands around the strips of K, V and Q."""

    title: str
    greatest: float  # change that is drawn at full height
    of_kinds: dict[RowKind, str]
    legend: list[str]


def need_words(report: BenchReport) -> NeedWords | None:
    """The title of the strips, the words beside each, and a legend; None where nobody has asked."""
    asked = of_first_engine(report)
    if not asked:
        return None
    positions = asked[0].positions
    at, last = asked[0].step + report.runs[0].workload.length, positions[-1]
    changes = [change for one in asked for change in one.max_abs_logit_change]
    greatest = _greatest(changes)
    sampled = "" if len(positions) == last + 1 else f", {len(positions)} of them"
    legend = [
        f"positions 0 to {last:,}{sampled}",
        f"height: change of the logits, logarithmic, up to {_number(greatest)}",
        "dot: not one bit",
    ]
    if any(one.with_other_key for one in asked):
        legend.append("another K: one that draws attention, where rounding hides V")
    return NeedWords(
        f"rows that the step at position {at:,} needs: one changed at a time, in any layer",
        greatest,
        {kind: _words([one for one in asked if one.row == kind]) for kind in get_args(RowKind)},
        legend,
    )


def _words(of_kind: Sequence[Intervention]) -> str:
    """How many rows changed the logits, of one kind in all layers."""
    changing = sum(one.n_changing for one in of_kind)
    if of_kind[0].row == "q":
        n_layers, live = len(of_kind), sum(bool(one.q_live) for one in of_kind)
        n_rows = sum(len(one.positions) for one in of_kind)
        own = f"its own q does ({live} of {n_layers} layers)"
        return f"{changing:,} of {n_rows:,} rows matter; {own}"
    visible = sum(one.n_visible for one in of_kind)
    words = f"{changing:,} of {visible:,} visible rows matter"
    hidden = sum(len(one.positions) for one in of_kind) - visible
    outside = sum(
        change > 0
        for one in of_kind
        for position, change in zip(one.positions, one.max_abs_logit_change, strict=True)
        if position < one.first_visible
    )
    small = sum(len(one.with_other_key) for one in of_kind)
    words += f" ({small} with another K)" if small else ""
    return words + (f", {outside} of {hidden:,} outside a window" if hidden else "")


def recomputed_picture(recomputed: Sequence[Recomputed], canvas: Canvas) -> list[Text]:
    """Without a cache: what changing all old queries of one layer changes, layer by layer."""
    if not recomputed:
        return []
    return _strips_in_lines(recomputed_strips(recomputed), canvas)


def recomputed_strips(recomputed: Sequence[Recomputed]) -> Strips:
    """The strips of `recomputed_picture`, by layer."""
    first = [one for one in recomputed if one.backend == recomputed[0].backend]
    logits = [one.max_abs_logit_change for one in first]
    rows = [one.next_rows_change for one in first if one.next_rows_change is not None]
    strips = [
        Strip(
            "logits",
            logits,
            _greatest(logits),
            f"layers 0 to {len(first) - 1}; {_number(logits[-1])} in the last one",
        )
    ]
    if rows:
        strips.append(
            Strip("next K, V", rows, _greatest(rows), "the way on: K and V of the next layer")
        )
    lesson = (
        "old rows of Q are computed again only to rebuild the K and V that a cache would have kept"
        if logits[-1] == 0
        else "NOT AS EXPECTED: old rows of Q in the last layer change the output"
    )
    title = (
        f"without the cache: all {first[0].n_positions:,} old rows of Q changed in one layer, "
        "everything computed again"
    )
    return Strips(title, strips, lesson)


def later_token_picture(later: LaterToken, canvas: Canvas) -> list[Text]:
    """What another last token changes in the rows before it, with the causal mask and without."""
    return _strips_in_lines(later_token_strips(later), canvas) if later.causal else []


def later_token_strips(later: LaterToken) -> Strips:
    """The strips of `later_token_picture`, by position."""
    causal, unmasked = np.array(later.causal), np.array(later.unmasked)
    greatest = _greatest([*later.causal, *later.unmasked])
    changed = int((unmasked > 0).sum())
    return Strips(
        "another last token: what it changes in rows of K and V before it, in any layer",
        [
            Strip(
                "causal",
                later.causal,
                greatest,
                "not one bit: a kept row stays right"
                if not causal.any()
                else f"NOT AS EXPECTED: {int((causal > 0).sum())} rows change",
            ),
            Strip(
                "unmasked",
                later.unmasked,
                greatest,
                f"{changed:,} of {len(unmasked):,} rows, by up to {_number(unmasked.max())}: a "
                "kept row would be wrong",
            ),
        ],
    )


class Strip(NamedTuple):
    """Changes from left to right, and the words beside them."""

    name: str
    changes: Sequence[float]  # 0: not one bit
    most: float  # what is drawn at full height
    words: str


class Strips(NamedTuple):
    """Some strips under a title, and what they teach."""

    title: str
    strips: list[Strip]
    lesson: str = ""


def _strips_in_lines(of: Strips, canvas: Canvas) -> list[Text]:
    lines = [Text(of.title)]
    for name, changes, most, words in of.strips:
        strip = Text.assemble(f"{name:<11}", _strip(np.array(changes), most, canvas))
        lines += _beside(strip, words, canvas)
    return [*lines, *[Text(of.lesson)] * bool(of.lesson)]


def _strip(
    changes: np.ndarray[tuple[int], np.dtype[np.float64]], most: float, canvas: Canvas
) -> Text:
    """One cell for each number, or for the greatest of several neighbours."""
    columns = max(1, min(len(changes), _STRIP, canvas.width - 12))
    strip = Text()
    for part in np.array_split(changes, columns):
        strip.append_text(draw_level(_height(float(part.max()), most), canvas))
    return strip


def _greatest(changes: Sequence[float]) -> float:
    """The greatest finite change; 1 where there is none, or all are 0."""
    return max((change for change in changes if math.isfinite(change)), default=1.0) or 1.0


def _height(change: float, most: float) -> float:
    """0 for no change, else above the lowest level, by the change's logarithm."""
    if change == 0:
        return 0.0
    if not math.isfinite(change) or change >= most:
        return 1.0
    return 1 / 9 + 8 / 9 * max(0.0, 1 + math.log10(change / most) / _DECADES)


def _beside(strip: Text, words: str, canvas: Canvas) -> list[Text]:
    """The words behind the strip, or below it where they do not fit."""
    if strip.cell_len + 2 + len(words) <= canvas.width:
        return [strip.append(f"  {words}")]
    return [strip, Text(f"   {words}")]


def _number(change: float) -> str:
    return f"{change:.2g}"
