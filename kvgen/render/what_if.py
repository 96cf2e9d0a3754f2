"""What an edit of attention does: maps, next token, loss, and what it teaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvgen.attention.steps import attention_weights
from kvgen.attention.what_if import WhatIf, local_weights
from kvgen.engine.edits import Edit
from kvgen.engine.tensors import FloatArray
from kvgen.render.attention import thumbnail_lines
from kvgen.render.canvas import WEIGHT_INK, Canvas, Ink, causal, draw_map, side_by_side

_TOP, _WORST = 5, 5
_SIDE = 16
_LESSONS = {
    "kq": "keys look for queries: one would have to cache Q (after RoPE, of every query head) and "
    "V, and not K",
    "unscaled": "without 1/sqrt(d_k) large products saturate the softmax: fewer keys get all",
    "unmasked": "old rows see what comes later, so that each new token changes them: what a cache "
    "has kept is no longer true. The loss below is no language model's: the target is visible",
    "drop-sink": "weight that a head leaves on the first token has to go somewhere else",
    "ablate": "what this head wrote is gone; many heads matter little (arXiv:1905.10650)",
}


def describe(edit: Edit) -> str:
    """An edit in words."""
    place = "all layers" if edit.layer is None else f"layer {edit.layer}"
    if edit.heads is not None:
        heads = ", ".join(map(str, edit.heads))
        place += f" head{'s' if len(edit.heads) > 1 else ''} {heads}"
    how = (" to its mean so far" if edit.mean else " to 0") if edit.kind == "ablate" else ""
    return f"{edit.kind}{how} in {place}"


def what_if_view(
    found: WhatIf,
    token_text: Callable[[int], str],
    ids: list[int],
    canvas: Canvas,
    *,
    map_of: tuple[int, int] | None,
) -> RenderableType:
    """The report of one edit; with a layer and head its map before, after and the difference."""
    before, after = found.base_losses.mean(), found.edited_losses.mean()
    distances = found.distances
    row, head = np.unravel_index(int(distances.argmax()), distances.shape)
    untouched = int(np.argmax((distances > 1e-6).any(axis=1))) if (distances > 1e-6).any() else None
    maps = (
        "the maps are unchanged"
        if untouched is None
        else f"maps: mean distance of rows, half the sum of |w - w'|, {distances.mean():.3f}; "
        f"largest {row}.{head} {distances[row, head]:.2f}"
        + (f"; unchanged before layer {untouched}" if untouched else "")
    )
    parts: list[RenderableType] = [
        Text(f"what if: {describe(found.edit)} (propagated: all later layers run with it)", "bold"),
        Text(_LESSONS[found.edit.kind]),
        Text(
            f"loss on the prompt {before:.3f} -> {after:.3f} nats a token ({after - before:+.3f}, "
            f"{len(found.base_losses)} targets) · next token KL {found.divergence:.3f} nats"
        ),
        Text(maps),
    ]
    if found.kept_rows_change is not None:
        parts.append(
            Text(
                f"rows of K and V kept before the last token differ from those it would need by up "
                f"to {found.kept_rows_change:.2g}: the cache is not valid"
            )
        )
    both = Table.grid(padding=(0, 4))
    both.add_row(_next_tokens(found, token_text), _losses(found, token_text, ids))
    parts += [Text(), both]
    if map_of is not None:
        parts += [Text(), *_maps(found, map_of, canvas)]
    return Group(*parts)


def _next_tokens(found: WhatIf, token_text: Callable[[int], str]) -> Table:
    """The most probable next tokens before and after."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("next token", "before", "after", "change"):
        table.add_column(name, justify="left" if name == "next token" else "right", no_wrap=True)
    best = np.argsort(-found.base_next, kind="stable")[:_TOP].tolist()
    best += [
        token
        for token in np.argsort(-found.edited_next, kind="stable")[:_TOP].tolist()
        if token not in best
    ]
    for token in best[: _TOP + 3]:
        before, after = float(found.base_next[token]), float(found.edited_next[token])
        table.add_row(
            Text(token_text(token)), f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"
        )
    return table


def _losses(found: WhatIf, token_text: Callable[[int], str], ids: list[int]) -> Table:
    """The positions whose loss grows most."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("worst positions", "before", "after"):
        table.add_column(name, justify="left" if name[0] == "w" else "right", no_wrap=True)
    change = found.edited_losses - found.base_losses
    for place in np.argsort(-change, kind="stable")[:_WORST].tolist():
        pair = f"{place} {token_text(ids[place])} -> {token_text(ids[place + 1])}"
        table.add_row(
            Text(pair), f"{found.base_losses[place]:.2f}", f"{found.edited_losses[place]:.2f}"
        )
    return table


def _maps(found: WhatIf, place: tuple[int, int], canvas: Canvas) -> list[Text]:
    """One head's map as it is, with the edit in this map only, and in all before it too."""
    layer, head = place
    base, edited = found.base[layer], found.edited[layer]
    whole = found.edit.kind == "unmasked"  # whose map is no triangle

    def drawn(title: str, numbers: FloatArray, ink: Ink = WEIGHT_INK) -> list[Text]:
        shown = numbers[head] if whole else causal(numbers[head])
        return [Text(title.ljust(_SIDE + 8)), *thumbnail_lines(shown, canvas, _SIDE, ink)]

    before = attention_weights(base)
    local, propagated = local_weights(base, found.edit), local_weights(edited, found.edit)
    distance = np.abs(local - before)[head].sum(axis=1).mean() / 2
    return [
        Text(f"layer {layer} head {head}: local distance of rows {distance:.3f}"),
        *side_by_side(
            [
                drawn("as it is", before),
                drawn("local", local),
                drawn("propagated", propagated),
                drawn("local - as it is", local - before, Ink(name="change", signed=True)),
            ][: 4 if canvas.width >= 100 else 3]
        ),
    ]


def ablation_view(
    base: float,
    without: FloatArray,
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    n_targets: int,
    canvas: Canvas,
) -> RenderableType:
    """What the loss becomes without each head: a cell for each, and the extremes by name."""
    change = without - base
    ink = Ink(name="change of loss, nats", signed=True, most=float(np.abs(change).max()) or 1.0)
    step = 2 if 2 * len(heads) + 6 <= canvas.width else 1
    per_row = (canvas.width - 6) // step
    lines = [
        Text(
            f"loss on the prompt {base:.3f} nats a token ({n_targets} targets); without one head, "
            f"its output set to 0 and all later layers run again:"
        )
    ]
    for begin in range(0, len(heads), per_row):
        shown = heads[begin : begin + per_row]
        numbers = "".join(f"{head % 10}".ljust(step) for head in shown)
        lines.append(Text("layer " + numbers, "dim"))
        drawn = draw_map(change[:, begin : begin + per_row], canvas, ink, cell_width=step)
        lines += [Text(f"{layer:>4}  ") + cells for layer, cells in zip(layers, drawn, strict=True)]
    order = np.argsort(-change, axis=None, kind="stable")

    def named(places: np.ndarray) -> str:
        return "  ".join(
            f"{layers[place // len(heads)]}.{heads[place % len(heads)]} {change.flat[place]:+.3f}"
            for place in places.tolist()
        )

    return Group(
        *lines,
        Text(canvas.legend(ink), "dim"),
        Text(f"missed most (layer.head): {named(order[:_TOP])}"),
        Text(f"missed least:             {named(order[::-1][:_TOP])}"),
    )
