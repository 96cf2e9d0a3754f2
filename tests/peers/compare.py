"""kvgen and llama.cpp on the same weights, interleaved: tokens per second and their ratio.

Each row takes the better of llama.cpp's `-fa 0` and `-fa 1`. The machines that this runs on are
noisy, so that only the ratio says something: medians over rounds, both engines in each round.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np

import kvgen
from kvgen.model import Model
from kvgen.session import Session
from tests.peers.models import SHAPES

# Checkpoint, weights as kvgen holds them, and llama.cpp's format.
FORMATS = {
    "f32": ("f32", "auto", "F32"),
    "bf16": ("bf16", "auto", "BF16"),
    "int8": ("bf16", "int8", "Q8_0"),
}
DEPTHS = (16, 960)
PROMPT = 512


def decode_rate(model: Model, depth: int, steps: int) -> float:
    """Tokens per second of decoding behind `depth` positions, choosing the best token each time."""
    session = Session(model.engine, depth + steps)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, depth).tolist()
    logits = session.feed(ids)
    began = time.perf_counter()
    for _ in range(steps):
        logits = session.feed([int(logits.argmax())])
    return steps / (time.perf_counter() - began)


def prefill_rate(model: Model) -> float:
    """Tokens per second of a prompt."""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, PROMPT).tolist()
    session = Session(model.engine, PROMPT)
    began = time.perf_counter()
    session.feed(ids)
    return PROMPT / (time.perf_counter() - began)


def llama_rates(bench: str, file: Path, threads: int, steps: int) -> dict[str, float]:
    """llama.cpp's tokens per second of each test, the better of both kinds of attention."""
    best: dict[str, float] = {}
    tests = [["-p", "0", "-n", str(steps), "-d", ",".join(map(str, DEPTHS))]]
    tests.append(["-p", str(PROMPT), "-n", "0"])
    for flash in ("0", "1"):
        for test in tests:
            command = [bench, "-m", str(file), "-t", str(threads), "-r", "1", "-fa", flash]
            done = subprocess.run(
                [*command, *test, "-o", "csv"], check=True, capture_output=True, text=True
            )
            for row in csv.DictReader(io.StringIO(done.stdout)):
                name = f"tg@{row['n_depth']}" if row["n_gen"] != "0" else f"pp{PROMPT}"
                best[name] = max(best.get(name, 0.0), float(row["avg_ts"]))
    return best


def main() -> None:
    """Compare what the command line names and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what tests.peers.models has written")
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--models", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print("model    format  test      kvgen  llama.cpp  ratio (min..max)")  # noqa: T201
    for name in arguments.models:
        steps = 24 if name in ("smol", "qwen", "gpt2") else 200
        for form in arguments.formats:
            stored, dtype, theirs = FORMATS[form]
            model = kvgen.load(
                arguments.folder / f"{name}-{stored}", backend="numba", dtype=dtype,
                threads=arguments.threads,
            )  # fmt: skip
            prefill_rate(model)  # warm-up
            rounds: list[tuple[dict[str, float], dict[str, float]]] = []
            for _ in range(arguments.rounds):
                ours = {f"tg@{depth}": decode_rate(model, depth, steps) for depth in DEPTHS}
                ours[f"pp{PROMPT}"] = prefill_rate(model)
                file = arguments.folder / f"{name}-{theirs}.gguf"
                rounds.append(
                    (ours, llama_rates(arguments.llama_bench, file, arguments.threads, steps))
                )
            for test in rounds[0][0]:
                us = [ours[test] for ours, _ in rounds]
                them = [llama[test] for _, llama in rounds]
                ratios = [one / other for one, other in zip(us, them, strict=True)]
                print(  # noqa: T201
                    f"{name:8} {form:6} {test:7} {statistics.median(us):8.1f} "
                    f"{statistics.median(them):10.1f}  {statistics.median(ratios):5.2f} "
                    f"({min(ratios):.2f}..{max(ratios):.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
