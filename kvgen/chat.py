"""Chat templates: messages to the text that a checkpoint was trained to see.

A template is a Jinja program from the internet, so it runs in a sandbox, with the settings, filters
and functions that transformers gives it (utils/chat_template_utils.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from kvgen.checkpoint import read_json
from kvgen.errors import CheckpointError, KvgenError, UsageError

# role ("system", "user", "assistant") and content, which is a text in all but a few templates.
Message = Mapping[str, Any]
_FILE, _FOLDER = "chat_template.jinja", "additional_chat_templates"
_SETTINGS = "tokenizer_config.json"
_SAFE_JINJA = (3, 1, 6)  # templates could leave the sandbox of those before


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
            return template.read_text(encoding="utf-8")
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
    CheckpointError where it is broken, and KvgenError where jinja2 is missing or too old.
    """
    conversation = _plain(messages)
    try:
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        version = tuple(map(int, re.findall(r"\d+", metadata.version("jinja2"))[:3]))
    except ImportError:
        raise KvgenError("chat templates need jinja2: pip install 'kvgen[chat]'") from None
    if version < _SAFE_JINJA:
        raise KvgenError("chat templates need a newer jinja2: pip install 'kvgen[chat]'")

    class Generation(Extension):
        """`{% generation %}` marks what to train on; the text itself is kept."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(inside, lineno=line)

    def turn_down(reason: str) -> NoReturn:
        raise _TurnedDownError(reason)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["dict"] = _Dict()
    environment.globals["raise_exception"] = turn_down
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(template).render(
            messages=conversation,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **tokens,
        )
    except _TurnedDownError as refusal:
        raise UsageError(f"the model's chat template: {_line(refusal)}") from None
    except Exception as error:  # a program from elsewhere may raise anything
        raise CheckpointError(f"the chat template is broken: {_line(error)}") from None


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Dict:
    """What a template knows as `dict`: the type's own methods would change any dictionary."""

    fromkeys = staticmethod(dict.fromkeys)

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)


class _TurnedDownError(Exception):
    """What a template says when it does not take the messages."""
