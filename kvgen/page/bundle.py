"""The page's sources as one HTML file: style, data and modules in their places."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

from kvgen.errors import KvgenError
from kvgen.page.content import Content

_IMPORT = re.compile(r'^import (?P<names>\{[^}]*\}) from "(?P<path>\.[^"]+)";\n', re.M)
_EXPORT = re.compile(
    r"^export (?P<rest>(?:async )?(?:function|class|const|let) (?P<name>\w+))", re.M
)


def page(
    content: Content,
    *,
    title: str,
    summary: str,
    skeleton: str = "index.html",
    styles: Sequence[str] = ("style.css",),
    entry: str = "main.js",
) -> str:
    """One HTML file that needs nothing else. `summary` is a text for readers without scripts.

    `skeleton`, `styles` and `entry`, the module that starts the page, are files of `web/`.
    """
    blocks = "\n".join(
        f'<script type="application/octet-stream" id="{html.escape(name)}">{text}</script>'
        for name, text in content.blocks.items()
    )
    facts = f'<script type="application/json" id="facts">{_json(content.facts)}</script>'
    parts = {
        "<!-- title -->": html.escape(title),
        "/* style */": "\n".join(map(source, styles)),
        "<!-- summary -->": f'<pre class="summary">{html.escape(summary)}</pre>',
        "<!-- data -->": f"{facts}\n{blocks}",
        "/* script */": script(entry),
    }
    pattern = "|".join(map(re.escape, parts))
    return re.sub(pattern, lambda match: parts[match[0]], source(skeleton))


def source(path: str) -> str:
    """The text of a file of `web/`."""
    place = files("kvgen.page") / "web"
    for part in PurePosixPath(path).parts:
        place = place / part
    return place.read_text(encoding="utf-8")


@cache
def script(entry: str = "main.js") -> str:
    """A module and all that it needs as one script.

    Each module is a function that gives what it exports, behind the modules that it imports.
    """
    done: dict[str, str] = {}

    def add(path: str) -> None:
        if path in done:
            return
        text = source(path)
        done[path] = ""  # being read: modules may not import each other in a circle
        for match in _IMPORT.finditer(text):
            add(_joined(path, match["path"]))
        code = _IMPORT.sub(
            lambda match: f"const {match['names']} = {_variable(_joined(path, match['path']))};\n",
            text,
        )
        exported = ", ".join(match["name"] for match in _EXPORT.finditer(code))
        code = _EXPORT.sub(lambda match: match["rest"], code).strip()
        del done[path]
        done[path] = (
            f"// {path}\nconst {_variable(path)} = (() => {{\n{code}\nreturn {{ {exported} }};\n"
            "})();\n"
        )

    add(entry)
    return "\n".join(done.values())


def _variable(path: str) -> str:
    return re.sub(r"\W", "_", path.removesuffix(".js"))


def _joined(importer: str, path: str) -> str:
    parts = list(PurePosixPath(importer).parent.parts)
    for part in PurePosixPath(path).parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _json(facts: object) -> str:
    """JSON that no HTML parser can leave early, whatever a token is.

    Raises KvgenError for numbers that are not finite.
    """
    try:
        text = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise KvgenError(
            "this recording has numbers that are not finite, which a page cannot show: record again"
        ) from None
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
