"""Makes the golden files with the reference implementation (extra `parity`).

    python -m tests.golden.make_golden [NAME ...]

For every tiny model: the logits of 200 random ids. Where RoPE depends on the length of the
sequence: the last logits at some lengths, and greedy continuations of some prompts, all without the
cache, because with it transformers keeps keys of older frequencies. For the default model: logits
at every tenth of 200 positions, and the greedy continuations of five openings.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers

from tests import tiny
from tests.configs import CONFIGS, CROSSING_LENGTHS, LENGTH_DEPENDENT
from tests.test_train import train

FOLDER = Path(__file__).parent
STORYTELLER = FOLDER.parents[1] / "weights" / "storyteller"
N_IDS = 200


def _load(folder: Path) -> transformers.PreTrainedModel:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def _logits(model: transformers.PreTrainedModel, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def _crossing(folder: Path, ids: list[int]) -> dict[str, np.ndarray]:
    """What depends on the length: a fresh model each time, as rotary frequencies are its state."""
    logits, greedy = [], []
    for length in CROSSING_LENGTHS:
        logits.append(_logits(_load(folder), ids[:length])[-1])
        model = _load(folder)
        model.generation_config.eos_token_id = None
        tokens = model.generate(
            torch.tensor([ids[:length]]),
            attention_mask=torch.ones(1, length, dtype=torch.long),  # id 0 is no padding here
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=0,
            use_cache=False,
        )
        greedy.append(tokens[0, length:].numpy())
    return {"crossing_logits": np.stack(logits), "crossing_greedy_ids": np.stack(greedy)}


def _versions() -> str:
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def _shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the reference implementation saves."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        reference = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_config(reference)
        model.save_pretrained(folder)
        with safetensors.safe_open(Path(folder) / "model.safetensors", framework="np") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118


def make_tiny(names: list[str]) -> None:
    """One file per configuration of tests/configs.py."""
    for name in names:
        config = CONFIGS[name]
        shapes = _shapes(config)
        with tempfile.TemporaryDirectory() as folder:
            tensors = tiny.make_tensors(name, shapes)
            path = tiny.write_checkpoint(Path(folder), name, tensors)
            model = _load(path)
            ids = tiny.make_ids(N_IDS)
            by_length = {}
            if name in LENGTH_DEPENDENT:
                by_length = {"logits_40": _logits(model, ids[:40])} | _crossing(path, ids)
            logits = _logits(model, ids)
            model.generation_config.eos_token_id = None
            greedy = model.generate(
                torch.tensor([ids[:12]]), max_new_tokens=64, do_sample=False, pad_token_id=0
            )
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            shapes=json.dumps(shapes),
            ids=ids,
            logits=logits,
            greedy_ids=greedy[0, 12:].numpy(),
            versions=_versions(),
            **by_length,
        )
        print(name, logits.shape, f"largest {np.abs(logits).max():.2f}", flush=True)  # noqa: T201


def make_storyteller() -> None:
    """The default model: logits on fixed random ids, and five greedy texts of 200 tokens."""
    model = _load(STORYTELLER)
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORYTELLER)
    ids = [0, *tiny.make_ids(N_IDS - 1, vocab_size=model.config.vocab_size)]
    prompts = [tokenizer(opening)["input_ids"] for opening in train.OPENINGS]
    greedy = np.zeros((len(prompts), N_IDS), int)  # a text that ends is filled up with the end, 0
    for row, prompt in zip(greedy, prompts, strict=True):
        tokens = model.generate(
            torch.tensor([prompt]), max_new_tokens=N_IDS, do_sample=False, pad_token_id=0
        )[0, len(prompt) :]
        row[: len(tokens)] = tokens
    np.savez_compressed(
        FOLDER / "storyteller.npz",
        ids=ids,
        logits=_logits(model, ids)[::10],
        openings=train.OPENINGS,
        greedy_ids=greedy,
        greedy_texts=[tokenizer.decode(row, skip_special_tokens=True) for row in greedy],
        versions=_versions(),
    )


if __name__ == "__main__":
    make_tiny(sys.argv[1:] or list(CONFIGS))
    if not sys.argv[1:]:
        make_storyteller()
