"""Chat templates: messages to the text that a checkpoint was trained to see.

A template is a Jinja program from the internet: it runs in a process with bounds
(kvgen.text.sandbox), and there in Jinja's sandbox (kvgen.text.template).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvgen.checkpoint.files import read_json, read_text
from kvgen.errors import CheckpointError, KvgenError, UsageError
from kvgen.text import sandbox

# role ("system", "user", "assistant") and content, which is a text in all but a few templates.
Message = Mapping[str, Any]
_FILE, _FOLDER = "chat_template.jinja", "additional_chat_templates"
_SETTINGS = "tokenizer_config.json"
_SAFE_JINJA = (3, 1, 6)  # templates could leave the sandbox of those before
# Real templates take a hundredth of a second and a few MiB.
_MOST_SECONDS, _MOST_BYTES = 10.0, 512 * 2**20


def has_template(folder: Path) -> bool:
    """Whether the checkpoint brings a chat template, be it usable or not."""
    try:
        return bool(_templates(folder))
    except CheckpointError:
        return False


def find_template(folder: Path) -> str | None:
    """The checkpoint's chat template; of several named ones that called `default`.

    chat_template.jinja and the files of additional_chat_templates/ come before what
    tokenizer_config.json holds. Raises CheckpointError where there is none that can be used.
    """
    templates = _templates(folder)
    if not templates:
        return None
    if "default" not in templates:
        names = ", ".join(sorted(map(str, templates)))
        raise CheckpointError(f"{folder}: no chat template is called `default`, only {names}")
    template = templates["default"]
    if isinstance(template, Path):
        try:
            return read_text(template)
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{template}: cannot be read: {error}") from None
    if not isinstance(template, str):
        raise CheckpointError(f"{folder / _SETTINGS}: chat_template should be a text")
    return template


def _templates(folder: Path) -> dict[Any, Any]:
    """Templates, or their files, by name, as in transformers (tokenization_utils_base.py)."""
    files = {path.stem: path for path in sorted((folder / _FOLDER).glob("*.jinja"))}
    if (folder / _FILE).exists():
        files["default"] = folder / _FILE
    if files:
        return files
    template = read_json(folder / _SETTINGS, required=False).get("chat_template")
    if template is None:
        return {}
    if isinstance(template, dict):
        return template
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict)]
        template = {each.get("name"): each.get("template") for each in named}
        return template or {"default": None}
    return {"default": template}


def render(template: str, messages: Sequence[Message], *, tokens: Mapping[str, str]) -> str:
    """The text of a conversation, up to where the model's answer begins.

    `tokens` are bos_token, eos_token and the like by name, which a template may use. Raises
    UsageError where the template turns the messages down (some know no system message),
    CheckpointError where it is broken or takes too long or too much memory, and KvgenError where
    jinja2 is missing or too old.
    """
    request = {
        "template": template,
        "messages": _plain(messages),
        "tokens": dict(tokens),
        "now": datetime.now().isoformat(),
    }
    _check_jinja()
    answer = sandbox.ask(request, seconds=_MOST_SECONDS, memory_bytes=_MOST_BYTES)
    if "refused" in answer:
        raise UsageError(f"the model's chat template: {answer['refused']}")
    if "broken" in answer:
        raise CheckpointError(f"the chat template is broken: {answer['broken']}")
    text: str = answer["text"]
    return text


def _check_jinja() -> None:
    """Raise KvgenError where the other process would find no jinja2, or one that is too old."""
    from importlib import metadata  # slow to import

    try:
        found = metadata.version("jinja2") if find_spec("jinja2") is not None else None
    except metadata.PackageNotFoundError:
        found = None
    if found is None:
        raise KvgenError("chat templates need jinja2: pip install 'jinja2>=3.1.6'")
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < _SAFE_JINJA:
        raise KvgenError("chat templates need a newer jinja2: pip install 'jinja2>=3.1.6'")


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A copy of the messages as JSON knows them: no methods in it but those of plain types.

    Raises UsageError where they are no conversation.
    """
    if not messages:
        raise UsageError("a chat needs a message")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise UsageError("a message of a chat needs a role and a content")
    try:
        copy: list[dict[str, Any]] = json.loads(json.dumps([dict(each) for each in messages]))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the messages of a chat must be plain text: {error}") from None
    return copy
