"""The formula on numbers small enough to follow with a pencil; no model is needed.

Every row is computed by `explain_row`, as a real model's rows are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvgen.attention.steps import RowExplanation, explain_row
from kvgen.engine.tensors import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Softmax(Q K^T / sqrt(d_k)) V with every stage, for T queries and keys.

    In a causal walk a query sees only the keys up to its own; masked cells are NaN.
    """

    q: FloatArray  # [T, d_k]
    k: FloatArray  # [T, d_k]
    v: FloatArray  # [T, d_v]
    scores: FloatArray  # [T, T]
    scaled: FloatArray
    weights: FloatArray
    output: FloatArray  # [T, d_v]


def walk(q: npt.ArrayLike, k: npt.ArrayLike, v: npt.ArrayLike, *, causal: bool) -> Walk:
    """The stages of the formula for all T positions."""
    q, k, v = (np.asarray(array, np.float32) for array in (q, k, v))
    T = len(q)
    rows = [
        explain_row(q[i], k[: i + 1] if causal else k, v[: i + 1] if causal else v)
        for i in range(T)
    ]

    def table(name: str) -> FloatArray:
        cells = np.full((T, T), np.nan, np.float32)
        for i, row in enumerate(rows):
            numbers: FloatArray = getattr(row, name)
            cells[i, : len(numbers)] = numbers
        return cells

    return Walk(
        q=q,
        k=k,
        v=v,
        scores=table("products"),
        scaled=table("scaled"),
        weights=table("weights"),
        output=np.stack([row.output for row in rows]),
    )


# T = 3, d_k = 4, d_v = 5.
QUERIES = ((1, 0, 2, 1), (0, 1, 1, 0), (2, 1, 0, 1))
KEYS = ((1, 1, 0, 1), (0, 2, 1, 0), (1, 0, 1, 2))
VALUES = ((1, 0, 0, 2, 1), (0, 3, 1, 0, 1), (2, 1, 0, 1, 0))

KING = (1, 2, 3)
WORDS = {"queen": (1, 2, 3), "car": (-1, -2, -3), "crown": (1, 1, 1), "tea": (3, 0, -1)}

# A search for "red car". A record's key says how red, a vehicle and a plant it is, its value gives
# length and height in metres. The query is three times a key: longer queries choose more sharply.
WISH = (3, 3, 0)
RECORDS = {
    "red car": ((1, 1, 0), (4.2, 1.5)),
    "blue car": ((0, 1, 0), (3.8, 1.6)),
    "red apple": ((1, 0, 1), (0.1, 0.1)),
    "green tree": ((0, 0, 1), (6.0, 15.0)),
}

SENTENCE = ("The", "cat", "sat", "on", "the", "mat")
# Two features: how much a word names a thing, and how much an action.
MEANINGS = ((0.1, 0.1), (2.0, 0.5), (0.5, 2.0), (0.2, 0.3), (0.1, 0.1), (1.5, 0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How alike king and another word are, by three measures, and the weight that follows."""

    word: str
    vector: tuple[int, ...]
    product: float
    distance: float
    cosine: float
    length: float
    scaled: float  # product / sqrt(3)
    weight: float  # softmax over the words


def likenesses() -> tuple[Likeness, ...]:
    """King as a query, and queen, car, crown and tea as its keys.

    >>> [(one.word, one.product, round(one.cosine, 3)) for one in likenesses()]
    [('queen', 14.0, 1.0), ('car', -14.0, -1.0), ('crown', 6.0, 0.926), ('tea', 0.0, 0.0)]
    """
    keys = list(WORDS.values())
    row = explain_row(KING, keys, np.ones((len(keys), 1)))
    return tuple(
        Likeness(
            word=word,
            vector=vector,
            product=float(row.products[j]),
            distance=float(np.linalg.norm(np.subtract(KING, vector))),
            cosine=float(row.cosines[j]),
            length=float(row.key_lengths[j]),
            scaled=float(row.scaled[j]),
            weight=float(row.weights[j]),
        )
        for j, (word, vector) in enumerate(WORDS.items())
    )


def retrieval() -> RowExplanation:
    """The search for "red car": its wish matched with labels, and the mix of the contents."""
    keys, values = zip(*RECORDS.values(), strict=True)
    return explain_row(WISH, keys, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCase:
    """A choice of K, and how far QK^T and KQ^T lie apart with it: greatest differences."""

    keys: str
    asymmetry: float  # |S - S^T|, S = Q K^T
    output_difference: float  # of softmax(S / sqrt(d_k)) V and the same of S^T


def order_cases() -> tuple[OrderCase, ...]:
    """Keys with which QK^T is symmetric, and those of the example, with which it is not.

    >>> [case.asymmetry for case in order_cases()]
    [0.0, 0.0, 0.0, 1.0]
    """
    Q = np.asarray(QUERIES)
    cases = {
        "K = Q": Q,
        "K = 2 Q": 2 * Q,
        "K = Q diag(1, 2, 3, 4)": Q @ np.diag((1, 2, 3, 4)),
        "K of the example": np.asarray(KEYS),
    }
    return tuple(_order_case(name, K) for name, K in cases.items())


def _order_case(name: str, K: npt.ArrayLike) -> OrderCase:
    forward, swapped = (
        walk(QUERIES, K, VALUES, causal=False),
        walk(K, QUERIES, VALUES, causal=False),
    )
    return OrderCase(
        keys=name,
        asymmetry=float(np.abs(forward.scores - forward.scores.T).max()),
        output_difference=float(np.abs(forward.output - swapped.output).max()),
    )


def cat_reads(*, causal: bool) -> RowExplanation:
    """The row of "cat" as a query in "The cat sat on the mat", with made-up meanings."""
    cat = SENTENCE.index("cat")
    n_keys = cat + 1 if causal else len(SENTENCE)
    return explain_row(MEANINGS[cat], MEANINGS[:n_keys], MEANINGS[:n_keys])
