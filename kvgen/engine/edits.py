"""What-ifs: attention with one thing changed, to see what that thing is good for.

An edit changes the map of one head as it stands (locally), or every map that it touches while the
model runs (propagated, by the reference engine).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvgen.engine.tensors import FloatArray
from kvgen.errors import UsageError

Kind = Literal["kq", "unscaled", "unmasked", "drop-sink", "ablate"]
_AT_A_PLACE: dict[str, Kind] = {
    "kq": "kq",
    "unscaled": "unscaled",
    "unmasked": "unmasked",
    "drop-sink": "drop-sink",
}


_PLACE = r"[Ll]?([0-9]{1,5})(?:[.Hh]([0-9]{1,5}))?"


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

    A place is `all`, a layer `L` or a head `L.H`, see `parse_place`. Raises UsageError for what is
    neither, or is not in the model.
    """
    if match := re.fullmatch(rf"ablate=(kv)?{_PLACE}(:mean)?", spec):
        if match[3] is None:
            raise UsageError(f"what-if {spec}: give a layer and a head, such as ablate=2.3")
        layer, head = int(match[2]), int(match[3])
        n_here = n_kv_heads if match[1] else n_heads
        _check_place(layer, head, n_layers, n_here)
        share = n_heads // n_kv_heads
        heads = tuple(range(head * share, (head + 1) * share)) if match[1] else (head,)
        return Edit(kind="ablate", layer=layer, heads=heads, mean=match[4] is not None)
    if spec in _AT_A_PLACE:
        kind = _AT_A_PLACE[spec]
        if at == "all":
            return Edit(kind=kind)
        layer, one_head = parse_place(at)
        _check_place(layer, one_head or 0, n_layers, n_heads)
        return Edit(kind=kind, layer=layer, heads=None if one_head is None else (one_head,))
    raise UsageError(
        f"what-if {spec!r} is not one of kq, unscaled, unmasked, drop-sink, ablate=L.H, "
        "ablate=L.H:mean and ablate=kvL.G"
    )


def parse_place(text: str) -> tuple[int, int | None]:
    """The layer, and the head if there is one, of `5`, `5.1` or `L5H1`.

    Raises UsageError for what is none of them.
    """
    match = re.fullmatch(_PLACE, text)
    if match is None:
        raise UsageError(f"{text!r} is no place: give a layer such as 5, or a head such as 5.1")
    return int(match[1]), None if match[2] is None else int(match[2])


def _check_place(layer: int, head: int, n_layers: int, n_heads: int) -> None:
    if layer >= n_layers or head >= n_heads:
        raise UsageError(
            f"there is no {layer}.{head}: this model has layers 0-{n_layers - 1} of heads "
            f"0-{n_heads - 1}"
        )


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
    keys = np.repeat(k, H // k.shape[1], axis=1).transpose(1, 0, 2)  # [H, T, D]
    scores = q.transpose(1, 0, 2) @ keys.swapaxes(1, 2)
    behind = np.arange(T)[:, None] - np.arange(T)  # how far key j lies behind query i
    seen = np.repeat(((behind >= 0) & (behind < (window or T + 1)))[None], H, axis=0)
    factors = np.full((H, 1, 1), scale, np.float32)
    if edit.touches(layer):
        chosen = edit.chosen(H)
        if edit.kind == "kq":
            scores[chosen] = scores[chosen].swapaxes(1, 2)
        elif edit.kind == "unscaled":
            factors[chosen] = 1
        elif edit.kind == "unmasked":
            seen[chosen] = True
        elif edit.kind == "drop-sink":
            seen[chosen, 1:, 0] = False
            # A row whose window holds nothing else keeps itself.
            seen[chosen] |= np.eye(T, dtype=bool)
    scores = scores * factors
    if softcap is not None:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    scores = np.where(seen, scores, -np.float32(np.inf))
    weights: FloatArray = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def edited_output(
    edit: Edit, layer: int, weights: FloatArray, v: FloatArray
) -> FloatArray:  # weights [H, T, T], v [T, G, D] -> [T, H, D]
    """Each head's sum of values; 0, or its mean over the positions so far, where it is ablated."""
    H, T, _ = weights.shape
    values = np.repeat(v, H // v.shape[1], axis=1).transpose(1, 0, 2)
    z = np.ascontiguousarray((weights @ values).swapaxes(0, 1))
    if edit.kind == "ablate" and edit.touches(layer):
        for head in edit.chosen(H):
            so_far = np.cumsum(z[:, head], axis=0) / np.arange(1, T + 1, dtype=np.float32)[:, None]
            z[:, head] = so_far if edit.mean else 0
    return z
