"""What-ifs: attention with one thing changed, to see what that thing is good for.

An edit changes the map of one head as it stands (locally), or every map that it touches while the
model runs (propagated, by the reference engine).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvgen.engine import formula
from kvgen.engine.places import ADDRESS, check_number, parse_address
from kvgen.engine.tensors import FloatArray
from kvgen.errors import UsageError

Kind = Literal["kq", "unscaled", "unmasked", "drop-sink", "ablate"]
_AT_A_PLACE: dict[str, Kind] = {
    "kq": "kq",
    "unscaled": "unscaled",
    "unmasked": "unmasked",
    "drop-sink": "drop-sink",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One change, and where it is made."""

    kind: Kind
    layer: int | None = None  # None: in every layer
    heads: tuple[int, ...] | None = None  # None: all of them
    mean: bool = False  # ablate: the mean of z so far in place of 0

    def touches(self, layer: int) -> bool:
        """Whether this layer is changed."""
        return self.layer is None or self.layer == layer

    def chosen(self, n_heads: int) -> list[int]:
        """The heads that are changed, where the layer is."""
        return list(range(n_heads)) if self.heads is None else list(self.heads)


def parse_edit(spec: str, *, n_layers: int, n_heads: int, n_kv_heads: int, at: str) -> Edit:
    """`kq`, `unscaled`, `unmasked`, `drop-sink` at a place, `ablate=L.H[:mean]` or `ablate=kvL.G`.

    A place is `all`, a layer `5`, or a head `5.1` or `L5H1`. Raises UsageError for what is neither,
    or is not in the model.
    """
    if match := re.fullmatch(rf"ablate=(kv)?{ADDRESS}(:mean)?", spec):
        if match[3] is None:
            raise UsageError(f"what-if {spec}: give a layer and a head, such as ablate=2.3")
        layer = check_number(int(match[2]), range(n_layers), "layer")
        if match[1] is None:
            heads = [check_number(int(match[3]), range(n_heads), "head")]
        else:
            kv_head = check_number(int(match[3]), range(n_kv_heads), "key/value head")
            group_size = n_heads // n_kv_heads
            heads = list(range(kv_head * group_size, (kv_head + 1) * group_size))
        return Edit(kind="ablate", layer=layer, heads=tuple(heads), mean=match[4] is not None)
    if spec in _AT_A_PLACE:
        kind = _AT_A_PLACE[spec]
        if at == "all":
            return Edit(kind=kind)
        layer, head = parse_address(at)
        check_number(layer, range(n_layers), "layer")
        if head is None:
            return Edit(kind=kind, layer=layer)
        return Edit(kind=kind, layer=layer, heads=(check_number(head, range(n_heads), "head"),))
    raise UsageError(
        f"what-if {spec!r} is not one of kq, unscaled, unmasked, drop-sink, ablate=L.H, "
        "ablate=L.H:mean and ablate=kvL.G"
    )


def apply_edit(
    edit: Edit, layer: int, scores: FloatArray, mask: formula.Mask, *, scale: float
) -> None:  # scores and mask [H, T, T]
    """Change a layer's scores, already scaled, and its mask, in their place."""
    if not edit.touches(layer):
        return
    chosen = edit.chosen(len(scores))
    if edit.kind == "kq":
        scores[chosen] = scores[chosen].swapaxes(1, 2)
    elif edit.kind == "unscaled":
        scores[chosen] /= np.float32(scale)
    elif edit.kind == "unmasked":
        mask[chosen] = True
    elif edit.kind == "drop-sink":
        mask[chosen, 1:, 0] = False
        # A row whose window holds nothing else keeps itself.
        mask[chosen] |= np.eye(scores.shape[1], dtype=bool)


def edited_weights(
    edit: Edit,
    layer: int,
    q: FloatArray,
    k: FloatArray,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> FloatArray:  # q [T, H, D], k [T, G, D] -> [H, T, T]
    """The weights of a whole sequence; rows sum to 1."""
    T, H, _ = q.shape
    scores = formula.scaled(formula.dot_products(q, k), scale)
    mask = np.repeat(formula.causal_mask(T, T, window)[None], H, axis=0)
    apply_edit(edit, layer, scores, mask, scale=scale)
    return formula.softmax(formula.masked(formula.soft_cap(scores, softcap), mask))


def edited_output(
    edit: Edit, layer: int, weights: FloatArray, v: FloatArray
) -> FloatArray:  # weights [H, T, T], v [T, G, D] -> [T, H, D]
    """Each head's sum of values; 0, or its mean over the positions so far, where it is ablated."""
    H, T, _ = weights.shape
    z = np.ascontiguousarray(formula.weighted_sum(weights, v))
    if edit.kind == "ablate" and edit.touches(layer):
        for head in edit.chosen(H):
            so_far = np.cumsum(z[:, head], axis=0) / np.arange(1, T + 1, dtype=np.float32)[:, None]
            z[:, head] = so_far if edit.mean else 0
    return z
