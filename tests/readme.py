"""The README's commands and their output: `python -m tests.readme` writes what they print now.

A block that begins with `$ kvgen ...` holds one command and all that it prints. A line `kvgen ...
NAME.png` is the command that draws `tests/pictures/NAME.png`; of `kvgen ... NAME.html` a browser
draws that picture.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.browser import chromium, opened

README = Path(__file__).parents[1] / "README.md"
QUESTIONS = README.parent / "kvgen" / "attention" / "README.md"
PICTURES = README.parent / "tests" / "pictures"
_PICTURE = re.compile(r"^kvgen .* (?P<name>\w+)\.(?:png|html)$", re.M)
_PLACE = "#l=6&h=2&q=22&k=18"  # layer, head, query and key of the page's picture
_BLOCK = re.compile(r"^```console\n\$ (?P<command>kvgen .*)\n(?P<output>(?:.*\n)*?)```$", re.M)


class Block(NamedTuple):
    """One command of the README and the output printed below it."""

    command: str
    output: str


def blocks() -> list[Block]:
    """Every block of the README and of the fifteen questions, in order."""
    texts = (file.read_text(encoding="utf-8") for file in (README, QUESTIONS))
    return [
        Block(match["command"], match["output"])
        for text in texts
        for match in _BLOCK.finditer(text)
    ]


def pictures() -> dict[str, str]:
    """The README's commands that draw a picture, by the picture's file name."""
    found = _PICTURE.finditer(README.read_text(encoding="utf-8"))
    return {f"{match['name']}.png": match[0] for match in found}


def draw(name: str, command: str) -> None:
    """Draw one picture: by its command, or a browser's of the page that it writes."""
    if command.endswith(".png"):
        run(command.replace(name, str(PICTURES / name)))
        return
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        file = Path(folder) / f"{Path(name).stem}.html"
        run(command.replace(file.name, str(file)))
        with opened(browser, file, address=_PLACE) as page:
            page.screenshot(path=PICTURES / name, full_page=True)


def run(command: str) -> str:
    """What a user sees in the terminal: stdout, then stderr."""
    arguments = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "kvgen", *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=True,
        timeout=300,
        env=os.environ | {"COLUMNS": "100"},
        cwd=README.parent,
    )
    between = "" if done.stdout.endswith("\n") or not done.stdout else "\n"
    return done.stdout + between + done.stderr


def masked(output: str, command: str) -> str:
    """The output with what differs from run to run taken out: durations, rates, rounding, CPU."""
    # A CPU's name may take a second line; a busy or slow machine is told how long it will take.
    output = re.sub(r"(threads?) · .*(\n(?!prompt).*)?(?=\nprompt: )", r"\1", output)
    if " bench" in command:
        return _masked_bench(output)
    lines = []
    for line in output.splitlines():
        if re.match(r"load|prefill +\d|decode +\d|cache +o", line):
            line = re.sub(r" +", " ", re.sub(r"[\d.,]+( m?s\b)?", "#", line))
        lines.append(re.sub(r"\d(\.\d)?e[-+]\d\d", "#", line).rstrip())
    return "\n".join(lines)


def _masked_bench(output: str) -> str:
    """The words of a benchmark: its lines move with the width of the figures in them."""
    lines = []
    # A note of a busy machine takes two lines where they are short.
    output = re.sub(r"^the machine was busy: .*?\bvary\n", "", output, flags=re.M | re.S)
    for line in output.splitlines():
        # Notes of a slow machine, and a curve.
        noise = r".*(make it shorter|chosen to take)|[ \d.]*( m?s)? [│└]"
        if re.match(noise, line):
            continue
        if re.match(r"pp\d+ |tg\d+ |without the KV cache", line):
            line = re.sub(r"(?<= )[\d.,]+(?! tokens)", "#", line)
        lines.append(line)
    words = " ".join(" ".join(lines).split())
    words = re.sub(r"[▁▂▃▄▅▆▇█][·▁▂▃▄▅▆▇█]+", "strip", words)
    words = re.sub(r" \(\d+ with another K\)| · another K: [^·]* hides V", "", words)
    words = re.sub(r"logarithmic, up to [\d.]+", "logarithmic, up to #", words)
    words = re.sub(r"(keeping Q [^;]*); .*?(?= storyteller)", r"\1", words)
    return re.sub(r"\d(\.\d)?e[-+]\d\d", "#", words)


def update() -> None:
    """Write into both files what their commands print now, and draw the pictures."""
    for name, command in pictures().items():
        draw(name, command)

    def renewed(match: re.Match[str]) -> str:
        return f"```console\n$ {match['command']}\n{run(match['command'])}```"

    for file in (README, QUESTIONS):
        file.write_text(_BLOCK.sub(renewed, file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    update()
