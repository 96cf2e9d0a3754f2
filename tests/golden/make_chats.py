"""Makes tests/golden/chats.json with the reference implementation (extra `parity`).

    python -m tests.golden.make_chats

What every template makes of every conversation, and each feature of the template language; where
the reference implementation raises, the name of its exception.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jinja2
import tokenizers
import transformers
from transformers.utils import chat_template_utils

from tests.chats import CONVERSATIONS, FEATURES, TEMPLATES, TOKENS, July26, Messages

FILE = Path(__file__).parent / "chats.json"


def render(template: str, messages: Messages, tokens: dict[str, str]) -> str | dict[str, str]:
    """The text of a conversation, or the name of what was raised instead of it."""
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, chat_template=template, **tokens
    )
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except Exception as error:
        return {"raises": type(error).__name__}


def make() -> dict[str, Any]:
    """Everything that the golden file holds."""
    with patch.object(chat_template_utils, "datetime", July26):
        return {
            "templates": {
                name: {
                    title: render(template, messages, TOKENS[name])
                    for title, messages in CONVERSATIONS.items()
                }
                for name, template in TEMPLATES.items()
            },
            "features": {
                title: render(template, CONVERSATIONS["several turns"], TOKENS["phi3"])
                for title, template in FEATURES.items()
            },
            "versions": f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}",
        }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
