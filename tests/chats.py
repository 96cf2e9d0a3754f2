"""Chat templates and conversations for them, and the day on which they are rendered.

The templates in tests/templates/ are built as those of the models that they are named after are:
the same tests, loops, filters and white space, around other words.
"""

from __future__ import annotations

from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from kvgen.loading import default_model

Messages = list[dict[str, Any]]

_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = {path.stem: path.read_text("utf-8") for path in sorted(_FOLDER.glob("*.jinja"))}
TOKENS = {
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "qwen2.5": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "llama3.2": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "gemma3": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "phi3": {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
}


class July26(datetime):
    """A clock that stands still, for templates that ask for the date."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> July26:
        return cls(2024, 7, 26, 15, 4, tzinfo=tz)


def said(role: str, content: object, **more: object) -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": content, **more}


def calls(*names: str) -> list[dict[str, Any]]:
    """Calls of functions as a message of the assistant holds them."""
    return [
        {"type": "function", "function": {"name": name, "arguments": {"city": "Malmö", "days": 2}}}
        for name in names
    ]


_TURNS = [
    said("user", "What is a cache?"),
    said("assistant", "A place for what is asked again."),
    said("user", "And a KV cache?"),
]
CONVERSATIONS: dict[str, Messages] = {
    "one message": [said("user", "Hello!")],
    "a system message": [said("system", "Answer in one word."), said("user", "Hello!")],
    "several turns": _TURNS,
    "a system message and several turns": [said("system", "Be brief."), *_TURNS],
    "all kinds of characters": [
        said("system", "naïve — 月の光 🐈\u200d⬛ e\u0301 \u202eabc"),
        said("user", "<b>&amp;</b> 'single' \"double\" \\n {{ 7 * 7 }} {% if %} {# #} <|im_end|>"),
    ],
    "white space at the ends": [
        said("system", " \n padded\t\n"),
        said("user", "\n\n  before\n  between  \n\nafter \r\n"),
        said("assistant", "  yes\n"),
        said("user", "\t"),
    ],
    "an empty message": [said("system", ""), said("user", "")],
    "thoughts within an answer": [
        said("user", "2 + 2?"),
        said("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
        said("user", "Sure?"),
        said("assistant", "<think>\nAgain.\n</think>\n\nYes."),
    ],
    "thoughts beside an answer": [
        said("user", "2 + 2?"),
        said("assistant", "4", reasoning_content="\nTwo and two.\n"),
    ],
    "a call and its result": [
        said("user", "How warm is it?"),
        said("assistant", "", tool_calls=calls("weather")),
        said("tool", '{"celsius": 19.5}'),
    ],
    "several calls": [
        said("user", "How warm is it?"),
        said("assistant", "Let me see.", tool_calls=calls("place", "weather")),
        said("tool", "Malmö"),
        said("tool", "<tool_response>19.5 °C</tool_response>"),
        said("assistant", "19.5 degrees."),
        said("user", "<tool_response>no question</tool_response>"),
    ],
    "content in parts": [
        said("system", [{"type": "text", "text": "Describe."}]),
        said("user", [{"type": "image"}, {"type": "text", "text": " What is this? "}]),
    ],
    "no turns taken": [said("user", "One."), said("user", "Two.")],
    "the assistant first": [said("assistant", "Welcome."), said("user", "Hello!")],
}

# Each a line of the language, rendered with the conversation "several turns".
FEATURES = {
    "a generation block": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}",
    "a generation block that trims": "{% for m in messages %} a {%- generation -%} {{ m.role }} "
    "{%- endgeneration -%} b {% endfor %}",
    "a generation block keeps its names": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}"
    "{% endgeneration %}{{ x }}",
    "break": "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "tojson": "{{ {'é': '<月> & \\'it\\'', 'n': [1, 2.5, none, true]} | tojson }}",
    "tojson with indent": "{{ {'b': ['月'], 'a': {}} | tojson(indent=2) }}",
    "tojson in ASCII": "{{ '月 🐈' | tojson(ensure_ascii=true) }}",
    "tojson sorted and tight": "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, "
    "separators=(',', ':')) }}",
    "tojson of the messages": "{{ messages | tojson(indent=4) }}",
    "the date": "{{ strftime_now('%d %b %Y %H:%M') }}",
    "white space around blocks": "  {% if true %}  \n  a\n    {% endif %}\n\n  b  {# c #}  \n"
    "{{ 1 }}\n",
    "one last line end": "a\n\n",
    "a namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}",
    "a dictionary": "{% set d = dict(a=1, **{'b': 2}) %}{{ d }}{{ dict([['c', 3]]).c }}"
    "{{ dict.fromkeys(['x', 'x']) | list }}",
    "a macro": "{% macro turn(m, end='!') %}{{ m.role | upper }}: {{ m.content }}{{ end }}"
    "{% endmacro %}{{ turn(messages[0]) }}{{ turn(messages[-1], end='?') }}",
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | "
    "join(' / ') }} {{ messages | rejectattr('role', 'in', ['user']) | list | length }} "
    "{{ ' x ' | trim ~ '|' ~ (messages[0] | items | list | length) }}",
    "methods": "{{ messages[0].content.split(' ')[-1].strip('?').title() }}"
    "{{ messages[0].get('name', 'nobody') }}{{ messages[0].items() | list }}"
    "{{ '%s-%d' % ('a', 3) }}{{ '{:>4}'.format(7) }}",
    "tests": "{{ messages is iterable }}{{ messages[0] is mapping }}{{ tools is none }}"
    "{{ documents is defined }}{{ enable_thinking is defined }}{{ add_generation_prompt }}",
    "names that nobody knows": "[{{ nothing }}{{ messages[0].nothing }}]",
    "loops": "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.last }}"
    "{{ (loop.previtem or m).role }}{{ loop.nextitem is defined }};{% endfor %}"
    "{{ messages[::-1][0].role }}",
    "special tokens": "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}",
    "a refusal": "{{ raise_exception('Not today') }}",
    "an attribute of what nobody knows": "{{ nothing.more }}",
    "a sum of text and number": "{{ 'a' + 1 }}",
    "broken syntax": "{% for m in messages %}{{ m.content }",
}


def write_default_model(folder: Path, template: str) -> None:
    """The default model with a chat template, in a new folder."""
    folder.mkdir()
    for file in default_model().iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").write_text(template)
