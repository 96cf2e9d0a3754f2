"""Makes the golden files with the reference implementation (extra `parity`).

    python -m tests.golden.make_golden

For every tiny model: the logits of 200 random ids. For the default model: logits at every tenth
of 200 positions, and the greedy continuation of one prompt.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from tests import tiny

FOLDER = Path(__file__).parent
STORYTELLER = FOLDER.parents[1] / "weights" / "storyteller"
OPENING = "Once upon a time there was a little girl who lived in the forest."
N_IDS = 200


def _load(folder: Path) -> transformers.PreTrainedModel:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def _logits(model: transformers.PreTrainedModel, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def _versions() -> str:
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def make_tiny() -> None:
    """One file per configuration of tests/tiny.py."""
    for name, config in tiny.CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = _load(tiny.write_checkpoint(Path(folder), config))
            ids = tiny.make_ids(N_IDS)
            logits = _logits(model, ids)
        np.savez_compressed(FOLDER / f"{name}.npz", ids=ids, logits=logits, versions=_versions())
        print(name, logits.shape, f"largest {np.abs(logits).max():.2f}")  # noqa: T201


def make_storyteller() -> None:
    """The default model: logits on fixed random ids, and one greedy text."""
    model = _load(STORYTELLER)
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORYTELLER)
    ids = [0, *tiny.make_ids(N_IDS - 1, vocab_size=model.config.vocab_size)]
    prompt = tokenizer(OPENING, return_tensors="pt")
    greedy = model.generate(
        **prompt, max_new_tokens=100, do_sample=False, temperature=None, top_p=None
    )[0]
    np.savez_compressed(
        FOLDER / "storyteller.npz",
        ids=ids,
        logits=_logits(model, ids)[::10],
        prompt_ids=prompt["input_ids"][0].numpy(),
        greedy_ids=greedy[prompt["input_ids"].shape[1] :].numpy(),
        greedy_text=tokenizer.decode(
            greedy[prompt["input_ids"].shape[1] :], skip_special_tokens=True
        ),
        versions=_versions(),
    )


if __name__ == "__main__":
    make_tiny()
    make_storyteller()
