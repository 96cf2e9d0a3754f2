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
from kvgen.render.layout import flow, stacked_tables

_TOP = 8
_SITES = {
    "head": ("head", "outputs z of single heads"),
    "kv-head": ("kv head", "outputs z of the heads of single kv heads"),
    "residual": ("position", "states that enter a layer, at single positions"),
}


def patch_view(found: PatchMap, token_text: Callable[[int], str], canvas: Canvas) -> RenderableType:
    """The map of effects on the difference of two logits; 1 goes all the way to the source's."""
    column, what = _SITES[found.site]
    effects = found.effects
    token, against = token_text(found.token), token_text(found.against)
    most = max(1.0, float(np.nanmax(np.abs(effects))))
    ink = Ink(name="effect", signed=True, most=most)
    parts: list[RenderableType] = [
        Text(f"patching: {what}, taken from the source's run", "bold"),
        flow(
            [
                f"logit {token} - logit {against}",
                f"{found.base:+.3f} in the prompt, which predicts {token_text(found.base_next)}",
                f"{found.source:+.3f} in the source, where {token_text(found.source_next)} is "
                "predicted",
            ],
            canvas.width,
            between=" · ",
        ),
        _differing(found, token_text, canvas),
        Text(),
        *layers_by_heads(
            effects, canvas, ink, layers=found.layers, heads=found.columns, title=column
        ),
        canvas.legend(ink, "0: as in the prompt", "1: as in the source", masked=False),
        Text(),
        *_greatest(found, token_text, canvas),
    ]
    if found.site != "residual" and len(found.positions) < len(found.ids):
        parts.append(Text(f"patched at positions {_ranges(found.positions)}"))
    flips = len(found.flips)
    if found.base_next != found.source_next:
        parts.append(
            Text(
                f"after {flips} of {effects.size} patches the next token is the source's, "
                f"{token_text(found.source_next)}"
            )
        )
    if found.interrupted:
        n_run = int((~np.isnan(effects)).sum())
        parts.append(Text(f"interrupted: {n_run} of {effects.size} patches were run", "bold"))
    return Group(*parts)


def _differing(found: PatchMap, token_text: Callable[[int], str], canvas: Canvas) -> Text:
    """The positions whose tokens differ."""
    pairs = [
        f"{place} {token_text(one)} -> {token_text(other)}"
        for place, (one, other) in enumerate(zip(found.ids, found.source_ids, strict=True))
        if one != other
    ]
    more = [f"and {len(pairs) - _TOP} more"] if len(pairs) > _TOP else []
    return flow(
        [f"{len(found.ids)} tokens, which differ at", *pairs[:_TOP], *more],
        canvas.width,
        between=" · ",
    )


def _greatest(
    found: PatchMap, token_text: Callable[[int], str], canvas: Canvas
) -> list[RenderableType]:
    """The patches with the greatest effects, either way."""
    sizes = np.nan_to_num(np.abs(found.effects), nan=-1.0)
    order = np.argsort(-sizes, axis=None, kind="stable")[:_TOP]
    rows = []
    for place in order.tolist():
        row, column = divmod(place, len(found.columns))
        if np.isnan(found.patched[row, column]):
            continue
        layer, number = found.layers[row], found.columns[column]
        name = f"{layer}.{number}"
        if found.site == "residual":
            name = f"layer {layer} at {number} {token_text(found.ids[number])}"
        elif found.site == "kv-head":
            name = f"kv {name}"
        token = int(found.next_ids[row, column])
        rows.append(
            {
                "patch": name,
                "effect": f"{found.effects[row, column]:+.2f}",
                "difference": f"{found.patched[row, column]:+.3f}",
                "next": token_text(token)
                + (" (the source's)" if token == found.source_next != found.base_next else ""),
            }
        )
    headings = {
        "patch": "greatest", "effect": "effect", "difference": "difference", "next": "next token",
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
