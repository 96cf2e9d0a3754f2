"""Where the time of a decode step goes: microseconds of each stage, working and waiting.

    python -m tests.peers.cycles weights/storyteller --threads 2 --depth 16

Every barrier writes the clock of the CPU when a thread reaches it and when it goes on. A stage is
what lies between two barriers; the medians over steps are summed over the layers.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import kvgen
from kvgen.engine.fast.engine import FastEngine
from kvgen.engine.fast.layout import BEGAN, ENDED, TIMELINE, TIMES
from kvgen.session import Session

STAGES = ("norm, q k v", "rope, attention", "join, output", "norm, up, gate", "down")


def timelines(engine: FastEngine, depth: int, steps: int) -> tuple[np.ndarray, float]:
    """Seconds [steps, threads, barriers, 2] of reaching and passing, and seconds of a step."""
    ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, depth).tolist()
    session = Session(engine, depth + steps)
    logits = session.feed(ids)
    shared, times = engine._team._state.shared, np.zeros((engine.threads, TIMES), np.int64)
    rows, seconds, rates = [], [], []
    shared[TIMELINE] = times.ctypes.data
    for _ in range(steps):
        times[:, 0] = 0
        began = time.perf_counter()
        logits = session.feed([int(logits.argmax())])
        seconds.append(time.perf_counter() - began)
        n = int(times[0, 0])
        if (times[:, 0] == n).all():  # else a thread has left the team
            rows.append(times[:, 1 : n + 1].reshape(engine.threads, -1, 2).copy())
            rates.append((shared[ENDED] - shared[BEGAN]) / seconds[-1])
    shared[TIMELINE] = 0
    return np.array(rows) / np.median(rates), float(np.median(seconds))


def main() -> None:
    """Measure the model that the command line names and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--steps", type=int, default=64)
    arguments = parser.parse_args()
    model = kvgen.load(
        arguments.folder, backend="numba", dtype=arguments.dtype, threads=arguments.threads
    )
    engine = model.engine
    assert isinstance(engine, FastEngine)
    marks, seconds = timelines(engine, arguments.depth, arguments.steps)
    n_layers = engine.config.n_layers
    reached, passed = marks[..., 0], marks[..., 1]
    working, waiting = reached[:, :, 1:] - passed[:, :, :-1], passed - reached
    per_layer = (reached.shape[2] - 1) // n_layers
    print(f"a step takes {seconds * 1e6:.0f} us")  # noqa: T201
    for stage in range(per_layer):
        # The first stage of all has no barrier before it.
        chosen = [layer * per_layer + stage - 1 for layer in range(n_layers)]
        chosen = [each for each in chosen if each >= 0]
        work = np.median(working[:, :, chosen], axis=0).sum(axis=1)
        wait = np.median(waiting[:, :, [each + 1 for each in chosen]], axis=0).sum(axis=1)
        name = STAGES[stage] if per_layer == len(STAGES) else f"stage {stage}"
        line = "  ".join(f"{a * 1e6:6.1f} +{b * 1e6:5.1f}" for a, b in zip(work, wait, strict=True))
        print(f"{name:16} {line}  (of {len(chosen)} layers; each thread: working + waiting)")  # noqa: T201
    last = np.median(working[:, :, -1], axis=0)
    print(f"{'norm, head':16} " + "  ".join(f"{a * 1e6:6.1f}" for a in last))  # noqa: T201


if __name__ == "__main__":
    main()
