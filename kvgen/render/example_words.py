"""The worked examples with words: king and queen, a search for a red car, a cat on a mat."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kvgen.attention.example import KING, RECORDS, SENTENCE, WISH, cat_reads, likenesses, retrieval
from kvgen.render.canvas import Canvas
from kvgen.render.layout import stacked_tables


def similarity(canvas: Canvas) -> list[RenderableType]:
    """King against four words: product, cosine and distance, then scaling and softmax."""
    keys = likenesses()
    headings = ("vector", "q·k", "|k|", "cos", "distance", "/ sqrt(3)", "softmax")
    rows = [
        {
            "key": one.word,
            "vector": str(list(one.vector)),
            "q·k": f"{one.product:g}",
            "|k|": f"{one.length:.3f}",
            "cos": f"{one.cosine:+.3f}" if one.cosine else "0.000",
            "distance": f"{one.distance:.3f}",
            "/ sqrt(3)": f"{one.scaled:.3f}",
            "softmax": f"{one.weight:.2g}",
        }
        for one in keys
    ]
    queen, car, crown, tea = keys
    return [
        Text(f"Similarity: king q = {list(KING)}, |q| = {np.linalg.norm(KING):.3f}", "bold"),
        *_table(headings, rows, canvas),
        Text(
            f"q·k = |q||k|cos: crown's {crown.product:g} against queen's {queen.product:g} is "
            f"mostly its length ({crown.length:.3f}); its direction is close "
            f"(cos {crown.cosine:.3f})"
        ),
        Text(
            f"tea is unrelated to king: q·k = {tea.product:g}, an angle of "
            f"{np.degrees(np.arccos(tea.cosine)):.0f} degrees; car (cos {car.cosine:g}) is "
            "opposite to king, which is not unrelated"
        ),
    ]


def search(canvas: Canvas) -> list[RenderableType]:
    """A search for "red car" in four records: match, normalise, mix."""
    row = retrieval()
    headings = ("label k", "1) match", "/ sqrt(3)", "2) weight w", "content v", "w v")
    rows = [
        {
            "key": name,
            "label k": str(list(key)),
            "1) match": f"{row.products[j]:g}",
            "/ sqrt(3)": f"{row.scaled[j]:.3f}",
            "2) weight w": f"{row.weights[j]:.3f}",
            "content v": _decimals(value, 1),
            "w v": _decimals(row.weights[j] * np.asarray(value), 2),
        }
        for j, (name, (key, value)) in enumerate(RECORDS.items())
    ]
    return [
        Text(
            f'Retrieval: search for "red car", q = {list(WISH)}; features red, vehicle, plant',
            "bold",
        ),
        *_table(headings, rows, canvas, key="record"),
        Text(
            f"3) mix, the sum of w v: {_decimals(row.output, 2)} metres of length and height; "
            f"{row.weights[0]:.0%} of the weight is on the red car"
        ),
        Text(
            "the query is the wish, a key is a record's label, a value its content: match (q·k), "
            "normalise (softmax: the weights sum to 1), mix"
        ),
    ]


def sentence() -> list[RenderableType]:
    """What "cat" reads in "The cat sat on the mat", without and with the causal mask."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("cat reads")
    for word in SENTENCE:
        table.add_column(word, justify="right")
    for name, causal in (("without a mask", False), ("in a decoder", True)):
        weights = cat_reads(causal=causal).weights
        hidden = ["." for _ in range(len(SENTENCE) - len(weights))]
        table.add_row(name, *(f"{weight:.3f}" for weight in weights), *hidden)
    return [
        Text("The cat sat on the mat, with meanings of two numbers made up for it", "bold"),
        table,
        Text('in a causal decoder "cat" cannot see "sat": it comes later, and is not there yet'),
    ]


def _table(
    headings: tuple[str, ...], rows: list[dict[str, str]], canvas: Canvas, *, key: str = "key"
) -> list[RenderableType]:
    """A table with the keys' names first; vectors stand left, numbers right."""
    return stacked_tables(
        {"key": key} | {name: name for name in headings},
        rows,
        width=canvas.width,
        keys=("key",),
        words=("key", "vector", "label k"),
    )


def _decimals(vector: Iterable[float], n: int) -> str:
    return "[" + ", ".join(f"{number:.{n}f}" for number in vector) + "]"
