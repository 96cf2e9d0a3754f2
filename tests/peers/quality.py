"""How near an engine's numbers are to kvgen's own in float32, on a model with a tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from kvgen.checkpoint.folder import open_checkpoint
from kvgen.text.tokenizer import find_tokenizer
from tests.peers.engines import Contender, Reading, Work, parse_json
from tests.peers.samples import OURS, Quality

N_POSITIONS = 256  # of the text that ships with kvgen's benchmark


class Judge:
    """The text's ids, and float32's logits and greedy ids of them, made once for each model."""

    def __init__(self, folder: Path) -> None:
        """Logits go through files in the folder."""
        self._folder = folder
        self._known: dict[str, tuple[np.ndarray, tuple[int, ...]]] = {}

    def judge(self, contender: Contender, work: Work) -> Quality | None:
        """Hold an engine against float32; None where a model or an engine cannot tell."""
        checkpoint = work.file("f32")
        if not contender.can_show_logits or not (checkpoint / "tokenizer.json").exists():
            return None
        if contender.engine == OURS and work.format == "int4":  # which is our int8
            return None
        if work.model not in self._known:
            ours = (sys.executable, "-m", "tests.peers.ours", str(checkpoint))
            logits, greedy = self._ask(ours, work)
            self._known[work.model] = (_log_probabilities(logits), greedy)
        expected, ids = self._known[work.model]
        logits, greedy = self._ask(contender.commands[0], work)
        return Quality(
            model=work.model,
            format=work.format,
            engine=contender.engine,
            setting=contender.setting,
            nats_per_token=divergence(expected, logits),
            same_greedy=n_same(ids, greedy),
            n_greedy=len(ids),
        )

    def _ask(self, command: Sequence[str], work: Work) -> tuple[np.ndarray, tuple[int, ...]]:
        """Logits [T, V] and greedy ids of the text."""
        text, logits = self._folder / f"{work.model}.json", self._folder / "logits.npy"
        if not text.exists():
            tokenizer = find_tokenizer(open_checkpoint(work.file("f32")).folder)
            words = files("kvgen.bench").joinpath("text.txt").read_text("utf-8")
            text.write_text(json.dumps(tokenizer.encode(words)[:N_POSITIONS]))
        options = ("--new", "0", "--text", str(text), "--logits", str(logits))
        done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
        reading: Reading = parse_json(done.stdout)
        return np.load(logits), reading.greedy or ()


def divergence(expected: np.ndarray, logits: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence in nats from log probabilities [T, V] to logits [T, V].

    Of two tokens with expected probabilities 1/2 and logits that give 1/4 and 3/4:
    (ln 2 + ln 2/3) / 2 = 0.144.
    """
    of_each = np.exp(expected) * (expected - _log_probabilities(logits))
    return float(of_each.sum(axis=-1).mean())


def n_same(expected: Sequence[int], ids: Sequence[int]) -> int:
    """How many ids are the same until the first one that differs."""
    pairs = zip(expected, ids, strict=False)
    shorter = min(len(expected), len(ids))
    return next((n for n, (one, other) in enumerate(pairs) if one != other), shorter)


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
