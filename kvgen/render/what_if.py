"""The effect of an edit of attention: maps, next token, loss, and a lesson from it."""

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
from kvgen.render.canvas import Canvas, causal
from kvgen.render.ink import WEIGHT_INK, Ink
from kvgen.render.layers_by_heads import layers_by_heads
from kvgen.render.layout import beside_or_below, flow, in_bands
from kvgen.render.thumbnail import Thumbnail, thumbnail

_TOP, _WORST = 5, 5
_TERMS = (
    "loss: -ln of the probability of the text's next token, in nats",
    "KL: how far the probabilities of the next token moved, 0 = not at all",
    "worst positions: where the loss grows most",
)
_SIDE = 16
_LESSONS = {
    "kq": "keys look for queries: one would have to cache Q (after RoPE, of every query head) and "
    "V, and not K",
    "unscaled": "without 1/sqrt(d_k) large products saturate the softmax: fewer keys get all",
    "unmasked": "every position sees the token that it should predict, so a lower loss means "
    "nothing. Old rows see later tokens: each new one changes them, and a kept row would be wrong",
    "drop-sink": "weight that a head puts on the first token has to go to other keys",
    "ablate": "an ablated head writes nothing; many heads matter little (arXiv:1905.10650)",
}
_MEAN_LESSON = (
    "an ablated head writes its mean so far, whatever it reads; many heads matter little "
    "(arXiv:1905.10650)"
)


def describe(edit: Edit) -> str:
    """An edit in words."""
    place = "all layers" if edit.layer is None else f"layer {edit.layer}"
    if edit.heads is not None:
        heads = ", ".join(map(str, edit.heads))
        place += f" head{'s' if len(edit.heads) > 1 else ''} {heads}"
    how = (" to its mean so far" if edit.mean else " to 0") if edit.kind == "ablate" else ""
    return f"{edit.kind}{how} in {place}"


def what_if_view(
    result: WhatIf,
    token_text: Callable[[int], str],
    ids: list[int],
    canvas: Canvas,
    *,
    map_of: tuple[int, int] | None,
) -> RenderableType:
    """The report of one edit; with a layer and head its map before, after and the difference."""
    before, after = result.base_losses.mean(), result.edited_losses.mean()
    distances = result.distances
    row, head = np.unravel_index(int(distances.argmax()), distances.shape)
    untouched = int(np.argmax((distances > 1e-6).any(axis=1))) if (distances > 1e-6).any() else None
    maps = (
        "the maps are unchanged"
        if untouched is None
        else f"maps: mean distance of rows, half the sum of |w - w'|, {distances.mean():.2f}; "
        f"largest {row}.{head} {distances[row, head]:.2f}"
        + (f"; unchanged before layer {untouched}" if untouched else "")
    )
    visible = ", all visible" if result.edit.kind == "unmasked" else ""
    parts: list[RenderableType] = [
        Text(
            f"what if: {describe(result.edit)} (propagated: all later layers run with it)", "bold"
        ),
        Text(_MEAN_LESSON if result.edit.mean else _LESSONS[result.edit.kind]),
        Text(
            f"loss on the prompt {before:.2f} -> {after:.2f} nats a token ({after - before:+.2f}, "
            f"{len(result.base_losses)} targets{visible}) · next token KL {result.divergence:.2f} "
            "nats"
        ),
        Text(maps),
        Text(
            f"entropy of a row of weights {result.entropies.mean():.2f} -> "
            f"{result.edited_entropies.mean():.2f} nats, mean over all heads and rows"
        ),
    ]
    if result.kept_rows_change is not None:
        parts.append(
            Text(
                "rows of K and V from before the last token: it changes them by up to "
                f"{result.kept_rows_change:.2g}, so a cache would be wrong by that"
            )
        )
    next_tokens, losses = _next_tokens(result, token_text), _losses(result, token_text, ids)
    parts += [Text(), beside_or_below(next_tokens, losses, canvas.width)]
    parts.append(flow([Text(term, "dim") for term in _TERMS], canvas.width, between=" · "))
    if map_of is None and result.edit.kind == "unmasked":
        map_of = (int(row), int(head))
    if map_of is not None:
        parts += [Text(), *_maps(result, map_of, canvas)]
    return Group(*parts)


def _next_tokens(result: WhatIf, token_text: Callable[[int], str]) -> Table:
    """The most probable next tokens before and after."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("next token", "before", "after", "change"):
        table.add_column(name, justify="left" if name == "next token" else "right", no_wrap=True)
    best = np.argsort(-result.base_next, kind="stable")[:_TOP].tolist()
    best += [
        token
        for token in np.argsort(-result.edited_next, kind="stable")[:_TOP].tolist()
        if token not in best
    ]
    for token in best[: _TOP + 3]:
        before, after = float(result.base_next[token]), float(result.edited_next[token])
        table.add_row(
            Text(token_text(token)), f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"
        )
    return table


def _losses(result: WhatIf, token_text: Callable[[int], str], ids: list[int]) -> Table:
    """The positions whose loss grows most."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("worst positions", "before", "after"):
        table.add_column(name, justify="left" if name[0] == "w" else "right", no_wrap=True)
    change = result.edited_losses - result.base_losses
    for place in np.argsort(-change, kind="stable")[:_WORST].tolist():
        pair = f"{place} {token_text(ids[place])} -> {token_text(ids[place + 1])}"
        table.add_row(
            Text(pair), f"{result.base_losses[place]:.2f}", f"{result.edited_losses[place]:.2f}"
        )
    return table


def _maps(result: WhatIf, place: tuple[int, int], canvas: Canvas) -> list[Text]:
    """One head's map as it is, with the edit in this map only, and in all before it too."""
    layer, head = place
    base, edited = result.base[layer], result.edited[layer]
    whole = result.edit.kind == "unmasked"  # its map is not a triangle

    before = attention_weights(base)
    local, propagated = local_weights(base, result.edit), local_weights(edited, result.edit)
    distance = np.abs(local - before)[head].sum(axis=1).mean() / 2
    change = Ink(name="change", signed=True)

    def drawn(numbers: FloatArray, ink: Ink = WEIGHT_INK) -> Thumbnail:
        shown = numbers[head] if whole else causal(numbers[head])
        return thumbnail(shown, canvas, _SIDE, ink)

    maps = {
        "as it is": drawn(before),
        "local": drawn(local),
        "propagated": drawn(propagated),
        "local - as it is": drawn(local - before, change),
    }
    blocks = [[Text(title.ljust(_SIDE + 4)), *small.lines] for title, small in maps.items()]
    note = maps["local"].note()
    return [
        Text(
            f"layer {layer} head {head}: local distance of rows {distance:.3f}"
            + (f" · {note}" if note else "")
        ),
        *in_bands(blocks, canvas.width),
        canvas.legend(WEIGHT_INK, masked=not whole),
        canvas.legend(change, masked=False),
        flow(
            [
                Text("rows are queries, columns are keys", "dim"),
                Text("local: edited in this map only", "dim"),
                Text("propagated: in all layers before it too", "dim"),
            ],
            canvas.width,
            between=" · ",
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
    """The loss without each head: a cell for each, and the extremes by name."""
    change = without - base
    ink = Ink(name="change of loss, nats", signed=True, most=float(np.abs(change).max()) or 1.0)
    lines = [
        Text(
            f"loss on the prompt {base:.3f} nats a token ({n_targets} targets); without one head, "
            f"its output set to 0 and all later layers run again:"
        )
    ]
    lines += layers_by_heads(change, canvas, ink, layers=layers, heads=heads)
    order = np.argsort(-change, axis=None, kind="stable")

    def named(places: np.ndarray) -> str:
        return "  ".join(
            f"{layers[place // len(heads)]}.{heads[place % len(heads)]} {change.flat[place]:+.3f}"
            for place in places.tolist()
        )

    return Group(
        *lines,
        canvas.legend(ink, masked=False),
        Text(f"missed most (layer.head): {named(order[:_TOP])}"),
        Text(f"missed least:             {named(order[::-1][:_TOP])}"),
    )
