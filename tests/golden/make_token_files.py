"""Makes tests/golden/token_files.json with the reference implementation (extra `parity`).

    python -m tests.golden.make_token_files

Ids of texts with added tokens, and what they decode to, where several files tell of them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers

from tests.token_files import CASES, TEXTS, write_files

FILE = Path(__file__).parent / "token_files.json"


def make() -> dict[str, Any]:
    """Everything that the golden file holds."""
    content: dict[str, Any] = {"versions": f"transformers {transformers.__version__}"}
    for name, files in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = transformers.AutoTokenizer.from_pretrained(write_files(Path(folder), files))
        encoded = [tokenizer(text)["input_ids"] for text in TEXTS]
        content[name] = {
            "ids": encoded,
            "texts": [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded],
            "eos": tokenizer.eos_token_id,
            "tokens": len(tokenizer),
        }
    return content


if __name__ == "__main__":
    FILE.write_text(json.dumps(make()) + "\n", encoding="utf-8")
