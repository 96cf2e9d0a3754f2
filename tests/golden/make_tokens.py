"""Makes tests/golden/tokens.json with the reference implementation (extra `parity`).

    python -m tests.golden.make_tokens

Ids of awkward texts, and what they decode to, where a checkpoint brings vocab.json and merges.txt.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers

from tests.vocabularies import MERGES, TEXTS, write_merges

FILE = Path(__file__).parent / "tokens.json"


def make() -> dict[str, Any]:
    """Everything that the golden file holds."""
    content: dict[str, Any] = {"versions": f"transformers {transformers.__version__}"}
    for name, settings in MERGES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_merges(Path(folder), name)
            kind = getattr(transformers, settings["tokenizer_class"].removesuffix("Fast"))
            tokenizer = kind.from_pretrained(folder)
            encoded = [tokenizer(text)["input_ids"] for text in TEXTS]
            content[name] = {
                "ids": encoded,
                "texts": [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded],
            }
    return content


if __name__ == "__main__":
    FILE.write_text(json.dumps(make()) + "\n", encoding="utf-8")
