"""Activation patching: the effect of every patch as a map, and the greatest ones in numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.patch import PatchMap
from kvgen.render.canvas import Canvas
from kvgen.render.ink import Ink
from kvgen.render.layers_by_heads import layers_by_heads
from kvgen.render.layout import flow, map_and_tables, stacked_tables
from kvgen.render.numbers import counted, signed

_TOP = 8
_NOT_RUN = "?"
_SITES = {
    "head": ("head", "the outputs z of single heads"),
    "kv-head": ("kv head", "the outputs z of the heads of single kv heads"),
    "residual": ("position", "the states that enter a layer, at single positions"),
}


def patch_view(found: PatchMap, token_text: Callable[[int], str], canvas: Canvas) -> RenderableType:
    """The map of effects on the difference of two logits; 1 goes all the way to the source's.

    `token_text` gives a token's label, short and without control characters.
    """
    column, what = _SITES[found.site]
    effects = found.effects
    base_next, source_next = (
        f"'{token_text(token)}'" for token in (found.base_next, found.source_next)
    )
    wanted = f"logit '{token_text(found.token)}' - logit '{token_text(found.against)}'"
    most = max(1.0, float(np.nan_to_num(np.abs(effects)).max()))
    ink = Ink(name="effect", signed=True, most=most)
    n_left_out = _n_alike(found) if len(found.columns) > canvas.width // 2 else 0
    drawn = layers_by_heads(
        effects[:, n_left_out:],
        canvas,
        ink,
        layers=found.layers,
        heads=found.columns[n_left_out:],
        title=column,
        missing=_NOT_RUN,
    )
    remarks = [*_notes(found), *_left_out(found.columns[:n_left_out])]
    notes = flow([Text(note, "dim") for note in remarks], canvas.width, between=" · ")
    legend = Group(canvas.legend(ink, masked=False), notes)
    parts: list[RenderableType] = [
        flow(
            [Text(part, "bold") for part in (f"patching: {what},", "taken from the source's run")],
            canvas.width,
            between=" ",
        ),
        _differing(found, token_text, canvas),
        flow(
            [
                f"{wanted}: {signed(found.base)} in the prompt, which predicts {base_next}",
                f"{signed(found.source)} in the source, which predicts {source_next}",
            ],
            canvas.width,
            between=" · ",
        ),
        Text(),
        *map_and_tables(drawn, legend, _greatest(found, token_text, canvas), canvas.width),
    ]
    n_patches = counted(effects.size, "patch", "patches")
    if found.base_next != found.source_next:
        parts.append(
            flow(
                [
                    f"after {len(found.flips)} of {n_patches} the model predicts "
                    f"{source_next}, as in the source"
                ],
                canvas.width,
            )
        )
    if found.interrupted:
        n_run = int((~np.isnan(effects)).sum())
        parts.append(Text(f"interrupted: {n_run} of {n_patches} were run", "bold"))
    return Group(*parts)


def _notes(found: PatchMap) -> list[str]:
    """Remarks on the map: its ends, what was patched, what was not."""
    notes = [
        "effect 0: the difference stays as in the prompt",
        "1: it becomes that of the source",
    ]
    if found.site != "residual" and len(found.positions) < len(found.ids):
        notes.append(f"patched at positions {_ranges(found.positions)}")
    return [*notes, *[f"{_NOT_RUN}: not run"] * found.interrupted]


def _n_alike(found: PatchMap) -> int:
    """The number of the first columns where both runs are the same; 0 if no other follows."""
    if found.site != "residual":
        return 0
    pairs = zip(found.ids, found.source_ids, strict=True)
    first = next(place for place, (one, other) in enumerate(pairs) if one != other)
    n_alike = sum(place < first for place in found.columns)
    return n_alike if n_alike < len(found.columns) else 0


def _left_out(positions: tuple[int, ...]) -> list[str]:
    if not positions:
        return []
    return [f"left out: {_ranges(positions)}, where both runs are the same and the effect is 0"]


def _differing(found: PatchMap, token_text: Callable[[int], str], canvas: Canvas) -> Text:
    """The positions whose tokens differ."""
    pairs = [
        f"{place} {token_text(one)} -> {token_text(other)}"
        for place, (one, other) in enumerate(zip(found.ids, found.source_ids, strict=True))
        if one != other
    ]
    more = [f"and {len(pairs) - _TOP} more"] if len(pairs) > _TOP else []
    first, *others = pairs[:_TOP]
    return flow(
        [f"{len(found.ids)} tokens, prompt -> source: {first}", *others, *more],
        canvas.width,
        between=" · ",
    )


def _greatest(
    found: PatchMap, token_text: Callable[[int], str], canvas: Canvas
) -> list[RenderableType]:
    """The patches with the greatest effects, either way."""
    sizes = np.nan_to_num(np.abs(found.effects), nan=-1.0)
    order = np.argsort(-sizes, axis=None, kind="stable")[:_TOP]
    rows: list[dict[str, str]] = []
    for place in order.tolist():
        row, column = divmod(place, len(found.columns))
        nothing = rows and found.effects[row, column] == 0
        if nothing or np.isnan(found.patched[row, column]):
            continue
        layer, number = found.layers[row], found.columns[column]
        name = f"{_SITES[found.site][0]} {layer}.{number}"
        if found.site == "residual":
            name = f"layer {layer} at {number} {token_text(found.ids[number])}"
        token = int(found.next_ids[row, column])
        rows.append(
            {
                "patch": name,
                "effect": signed(found.effects[row, column], 2),
                "difference": signed(found.patched[row, column]),
                "next": token_text(token)
                + (" as in the source" if token == found.source_next != found.base_next else ""),
            }
        )
    headings = {
        "patch": "greatest effects", "effect": "effect", "difference": "difference",
        "next": "predicts",
    }  # fmt: skip
    return stacked_tables(
        headings, rows, width=canvas.width, keys=("patch",), words=("patch", "next")
    )


def _ranges(numbers: tuple[int, ...]) -> str:
    """`0-3, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in parts)
