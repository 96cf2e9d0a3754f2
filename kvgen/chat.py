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

from kvgen.errors import CheckpointError, KvgenError, UsageError

# role ("system", "user", "assistant") and content, which is a text in all but a few templates.
Message = Mapping[str, Any]
_FILE = "chat_template.jinja"
_SAFE_JINJA = (3, 1, 6)  # templates could leave the sandbox of those before


def find_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The checkpoint's template: chat_template.jinja, else what tokenizer_config.json holds.

    Of several named templates the one called `default`. Raises CheckpointError where it is no text.
    """
    try:
        return (folder / _FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / _FILE}: cannot be read: {error}") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict)]
        template = {each.get("name"): each.get("template") for each in named}.get("default")
        if template is None:
            raise CheckpointError("tokenizer_config.json: no chat_template is called `default`")
    if template is not None and not isinstance(template, str):
        raise CheckpointError("tokenizer_config.json: chat_template should be a text")
    return template


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a template may name: bos_token, eos_token, ... of tokenizer_config.json."""
    contents = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in settings.items()
        if name.endswith("_token")
    }
    return {name: token for name, token in contents.items() if isinstance(token, str)}


def render(template: str, messages: Sequence[Message], *, tokens: Mapping[str, str]) -> str:
    """The text of a conversation, up to where the model's answer begins.

    `tokens` are the checkpoint's `special_tokens`. Raises UsageError where the template turns the
    messages down (some know no system message), CheckpointError where it is broken, and KvgenError
    where jinja2 is missing or too old.
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
