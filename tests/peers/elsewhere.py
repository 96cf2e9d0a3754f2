"""What the measuring scripts share: those of other Pythons too, so NumPy and nothing of kvgen."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable

import numpy as np

DEPTHS = (16, 960)  # positions before the steps that are timed
N_PROMPT = 512
N_GREEDY = 48
GREEDY_PROMPT = 32  # ids


def random_ids(n: int, vocab_size: int) -> list[int]:
    """n ids, others for every n: no prompt begins with another one, which might be kept."""
    return np.random.default_rng(n).integers(0, vocab_size, n).tolist()


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of every script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=48, help="decode steps; 0: measure nothing")
    parser.add_argument(
        "--text", type=pathlib.Path, help="ids as JSON: write --logits and print greedy ids"
    )
    parser.add_argument("--logits", type=pathlib.Path)
    return parser


def report(
    options: argparse.Namespace,
    version: str,
    measure: Callable[[], dict[str, object]],
    judge: Callable[[list[int]], tuple[np.ndarray, list[int]]],
) -> None:
    """Print as JSON what the options ask for.

    `measure` gives rates by test, and what else is to be kept; `judge` the logits [T, V] and the
    greedy ids of a text.
    """
    found: dict[str, object] = {"version": version}
    if options.new:
        found |= measure()
    if options.text:
        logits, greedy = judge(json.loads(options.text.read_text(encoding="utf-8")))
        np.save(options.logits, logits.astype(np.float32))
        found["greedy"] = [int(token) for token in greedy]
    print(json.dumps(found), flush=True)  # noqa: T201
