"""The worked examples of `kvgen inspect-attention --example`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvgen.attention.example import KEYS, QUERIES, VALUES, Walk, order_cases, walk
from kvgen.attention.scaling import N_KEYS, N_QUERIES, SEED, SIZES, scaling_effect
from kvgen.engine.tensors import FloatArray
from kvgen.render.canvas import Canvas
from kvgen.render.example_words import search, sentence, similarity
from kvgen.render.layout import in_bands, stacked_tables


def worked_examples(canvas: Canvas) -> RenderableType:
    """Stages, scaling, similarity, a search, the order of Q and K, the mask, and a sentence."""
    masked, unmasked = (
        walk(QUERIES, KEYS, VALUES, causal=True),
        walk(QUERIES, KEYS, VALUES, causal=False),
    )
    return Group(
        *_stages(unmasked, canvas),
        Text(),
        *_scaling(canvas),
        Text(),
        *similarity(canvas),
        Text(),
        *search(canvas),
        Text(),
        *_order(canvas),
        Text(),
        *_mask(masked, unmasked, canvas),
        Text(),
        *sentence(),
    )


def _matrix(
    numbers: Sequence[Sequence[float]] | FloatArray, name: str, form: str = "g"
) -> list[Text]:
    """A matrix with its name and shape above it; NaN is a masked cell."""
    array = np.asarray(numbers, np.float64)
    cells = [["." if np.isnan(x) else format(x + 0.0, form) for x in row] for row in array]
    width = max(len(cell) for row in cells for cell in row)
    rows = [Text(" ".join(cell.rjust(width) for cell in row)) for row in cells]
    return [Text(f"{name} {array.shape[0]}x{array.shape[1]}", "bold"), *rows]


def _stages(unmasked: Walk, canvas: Canvas) -> list[Text]:
    blocks = [
        _matrix(unmasked.q, "Q"),
        _matrix(unmasked.k, "K"),
        _matrix(unmasked.v, "V"),
        _matrix(unmasked.scores, "1) QK^T"),
        _matrix(unmasked.scaled, "2) / sqrt(4)"),
        _matrix(unmasked.weights, "3) softmax of rows", ".3f"),
        _matrix(unmasked.output, "4) times V", ".3f"),
    ]
    sums = ", ".join(f"{total:.3f}" for total in unmasked.weights.sum(axis=1))
    return [
        Text("The four stages, T = 3, d_k = 4, d_v = 5: values may have another size", "bold"),
        *in_bands(blocks, canvas.width, gap=4),
        Text(f"each row of weights sums to 1: {sums}"),
    ]


def _scaling(canvas: Canvas) -> list[RenderableType]:
    effects = [scaling_effect(d_k, scaled=scaled) for d_k in SIZES for scaled in (False, True)]
    rows = [
        {
            "d_k": f"{effect.d_k}",
            "sqrt(d_k)": f"{effect.d_k**0.5:g}",
            "scores": "scaled" if effect.scaled else "q·k",
            "spread": f"{effect.spread:.2f}",
            "greatest weight": f"{effect.greatest_weight:.3f}",
            "mean gradient": f"{effect.mean_gradient:.4f}",
            "median gradient": f"{effect.median_gradient:.4f}",
        }
        for effect in effects
    ]
    unscaled, scaled = effects[-2:]
    return [
        Text(
            f"Why 1/sqrt(d_k): {N_QUERIES} queries, {N_KEYS} keys, standard normal numbers, "
            f"seed {SEED}",
            "bold",
        ),
        *stacked_tables(
            {name: name for name in rows[0]},
            rows,
            width=canvas.width,
            keys=("d_k", "sqrt(d_k)", "scores"),
            words=("scores",),
        ),
        Text(
            "spread: standard deviation; gradient: Frobenius norm of the softmax's Jacobian, "
            "diag(w) - w w^T",
            "dim",
        ),
        Text(
            "without scaling the spread grows as sqrt(d_k), and the softmax puts nearly all weight "
            f"on one key: at d_k = {unscaled.d_k} the median gradient is "
            f"{unscaled.median_gradient:.4f} instead of {scaled.median_gradient:.2f}. Where the "
            "gradient vanishes, nothing is learned (Vaswani et al. 2017, section 3.2.1)"
        ),
    ]


def _order(canvas: Canvas) -> list[RenderableType]:
    forward = walk(QUERIES, KEYS, VALUES, causal=False)
    swapped = walk(KEYS, QUERIES, VALUES, causal=False)
    blocks = [
        _matrix(forward.scores, "QK^T"),
        _matrix(swapped.scores, "KQ^T"),
        _matrix(forward.weights, "softmax rows of QK^T", ".3f"),
        _matrix(swapped.weights, "of KQ^T", ".3f"),
    ]
    rows = [
        {
            "S = QK^T with": case.keys,
            "|S - S^T|": f"{case.asymmetry:g}",
            "outputs differ by": f"{case.output_difference:.3f}",
        }
        for case in order_cases()
    ]
    return [
        Text("May QK^T be swapped for KQ^T? Then keys look for queries", "bold"),
        *in_bands(blocks, canvas.width, gap=4),
        Text("KQ^T is QK^T transposed, and the softmax normalises what were columns"),
        *stacked_tables(
            {name: name for name in rows[0]},
            rows,
            width=canvas.width,
            keys=("S = QK^T with",),
            words=("S = QK^T with",),
        ),
        Text(
            "both orders are equal exactly when QK^T is symmetric, as with the first three K. In "
            "self-attention, Q = X W_Q and K = X W_K, it is so for every X when W_Q W_K^T is "
            "symmetric; W_Q and W_K are learned separately, so in general it is not"
        ),
    ]


def _mask(masked: Walk, unmasked: Walk, canvas: Canvas) -> list[Text]:
    blocks = [
        _matrix(masked.weights, "causal weights", ".3f"),
        _matrix(masked.output, "o_t, sum over j <= t", ".3f"),
        _matrix(unmasked.output, "o_t, sum over all j", ".3f"),
    ]
    return [
        Text("With the causal mask row t is a sum to t, without it a sum to T", "bold"),
        *in_bands(blocks, canvas.width, gap=4),
        Text(
            "row t needs one q, its own, and every k and v up to t; the next row needs all those "
            "again, and a new q: K and V are cached, Q is not"
        ),
    ]
