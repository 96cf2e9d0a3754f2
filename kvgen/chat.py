"""Chat templates: messages to the text that a checkpoint was trained to see.

A template is a Jinja program from the internet, so it runs in a sandbox, with the settings, filters
and functions that transformers gives it (utils/chat_template_utils.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from kvgen.errors import CheckpointError, KvgenError, UsageError

Message = Mapping[str, str]  # role ("system", "user", "assistant") and content
_FILE = "chat_template.jinja"


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
    where jinja2 is missing.
    """
    for message in messages:
        if not {"role", "content"} <= set(message):
            raise UsageError("a message of a chat needs a role and a content")
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise KvgenError("chat templates need jinja2: pip install 'kvgen[chat]'") from None

    class Generation(Extension):
        """`{% generation %}` marks what to train on; the text itself is kept."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

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
    environment.globals["raise_exception"] = turn_down
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **tokens,
        )
    except _TurnedDownError as refusal:
        raise UsageError(f"the model's chat template: {refusal}") from None
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"the chat template is broken: {error}") from None


class _TurnedDownError(Exception):
    """What a template says when it does not take the messages."""
