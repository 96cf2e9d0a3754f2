"""Mutated files: a model loads and runs, or is refused in one line; nothing else."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

import kvgen
from kvgen.errors import KvgenError
from kvgen.model import default_model
from tests import tiny
from tests.configs import CONFIGS

CASES = 150
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 1.5, -0.5, 1e300, 10**40, float("nan"), float("inf"), "",
    "silu", "full_attention", [], [1], [None], {}, {"a": 1}, ["sliding_attention"] * 4,
    [[["global"], 3]], 1e-40, 2**31, "\ud800",
]  # fmt: skip


def mutated_config(dice: random.Random, config: dict[str, Any]) -> bytes:
    """One to three keys, also of nested objects, removed or given odd values."""
    config = copy.deepcopy(config)
    for _ in range(dice.randint(1, 3)):
        objects = [config, *(value for value in config.values() if isinstance(value, dict))]
        target = dice.choice(objects)
        key = dice.choice([*target, "sliding_window", "rope_scaling", "layer_types", "head_dim"])
        if dice.random() < 0.2:
            target.pop(key, None)
        else:
            target[key] = dice.choice(VALUES)
    return json.dumps(config).encode()


def mutated_bytes(dice: random.Random, content: bytes, *, within: int) -> bytes:
    """Some bytes near the beginning changed, removed or inserted."""
    changed = bytearray(content)
    for _ in range(dice.randint(1, 8)):
        place, kind = dice.randrange(min(len(changed), within)), dice.random()
        if kind < 0.6:
            changed[place] = dice.randrange(256)
        elif kind < 0.8:
            del changed[place : place + dice.randint(1, 9)]
        else:
            changed[place:place] = dice.randbytes(dice.randint(1, 9))
    return bytes(changed)


def use(folder: Path, *, backend: Any) -> None:
    """Load and run, where every failure must be one that a user can read."""
    try:
        model = kvgen.load(folder, backend=backend)
        model.logits([1, 2, 3])
        list(model.generate([1, 2], max_new_tokens=2, seed=1))
        if model.tokenizer is not None:
            model.encode("The cat sat.")
    except KvgenError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("file", ["config", "header", "tokenizer", "generation_config"])
def test_mutated_files_are_run_or_refused(file: str, tmp_path: Path) -> None:
    dice = random.Random(file)
    tokenizer = (default_model() / "tokenizer.json").read_bytes()
    folders = {name: tiny.write_checkpoint(tmp_path / name, name) for name in CONFIGS}
    for _ in range(CASES):
        name = dice.choice(list(CONFIGS))
        folder = folders[name]
        target = folder / f"{file}.json"
        if file == "header":
            target = folder / "model.safetensors"
        before = target.read_bytes() if target.exists() else None
        if file == "config":
            target.write_bytes(mutated_config(dice, CONFIGS[name]))
        elif file == "header":
            assert before is not None
            length = 8 + int.from_bytes(before[:8], "little")
            target.write_bytes(mutated_bytes(dice, before, within=length))
        elif file == "tokenizer":
            target.write_bytes(mutated_bytes(dice, tokenizer, within=3000))
        else:
            keys = ["temperature", "top_k", "top_p", "min_p", "eos_token_id"]
            content = {dice.choice(keys): dice.choice(VALUES) for _ in range(2)}
            target.write_text(json.dumps(content | {"do_sample": True}))
        use(folder, backend=dice.choice(["numpy", "numba"]))
        if before is not None:
            target.write_bytes(before)
