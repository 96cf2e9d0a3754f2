"""kvgen's side: `python -m tests.peers.ours FOLDER --dtype int8` prints JSON.

A process of its own. A warm-up comes first: one prefill and a decode step, as in llama-bench.
Decoding chooses the best token of each step, which llama-bench leaves out.
"""

from __future__ import annotations

import time

import numpy as np

import kvgen
from kvgen.model import Model
from kvgen.session import Session
from tests.peers.elsewhere import (
    DEPTHS,
    GREEDY_PROMPT,
    N_GREEDY,
    N_PROMPT,
    parser_of,
    random_ids,
    report,
)
from tests.peers.samples import FAST, PREFILL


def decode_rate(model: Model, depth: int, n_new: int) -> float:
    """Tokens per second behind `depth` positions, choosing the best token each time."""
    session = Session(model.engine, depth + n_new)
    logits = session.feed(random_ids(depth, model.config.vocab_size))
    began = time.perf_counter()
    for _ in range(n_new):
        logits = session.feed([int(logits.argmax())])
    return n_new / (time.perf_counter() - began)


def prefill_rate(model: Model) -> float:
    """Tokens per second of a prompt."""
    session = Session(model.engine, N_PROMPT)
    ids = random_ids(N_PROMPT, model.config.vocab_size)
    began = time.perf_counter()
    session.feed(ids)
    return N_PROMPT / (time.perf_counter() - began)


def measure(model: Model, n_new: int) -> dict[str, object]:
    """Tokens per second by test, and the probe; fast prefill changes nothing of a decode step."""
    prefill_rate(model)
    rates = {}
    if model.engine.prefill != FAST:
        decode_rate(model, 1, 1)
        rates = {f"tg@{depth}": decode_rate(model, depth, n_new) for depth in DEPTHS}
    rates[PREFILL] = prefill_rate(model)
    probe = model.engine.calibrate().read_bytes_per_second
    return {"rates": rates, "read_bytes_per_second": probe}


def judge(model: Model, ids: list[int]) -> tuple[np.ndarray, list[int]]:
    """The logits [T, V] and the greedy ids of a text."""
    logits = Session(model.engine, len(ids)).feed(ids, all_logits=True)
    pieces = model.generate(ids[:GREEDY_PROMPT], max_new_tokens=N_GREEDY)
    return logits, [piece.token for piece in pieces]


def main() -> None:
    """Measure one model in one way."""
    parser = parser_of(__doc__)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prefill", default="exact")
    options = parser.parse_args()
    model = kvgen.load(
        options.folder, backend="numba", dtype=options.dtype, prefill=options.prefill,
        threads=options.threads,
    )  # fmt: skip
    report(
        options,
        kvgen.__version__,
        lambda: measure(model, options.new),
        lambda ids: judge(model, ids),
    )


if __name__ == "__main__":
    main()
