"""The prompt: its options, its sources, and its ids."""

from __future__ import annotations

import codecs
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.cli.options import bundle
from kvgen.cli.output import note
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.model import Model


class PromptFlags(NamedTuple):
    """Where the prompt comes from, and whether it is a message of a chat."""

    prompt: str | None
    prompt_option: str | None
    prompt_file: str | None = None
    chat: bool | None = None
    system: str | None = None


prompt_options = bundle(
    PromptFlags,
    "prompt_flags",
    click.argument("prompt", required=False),
    click.option(
        "-p", "--prompt", "prompt_option", metavar="TEXT", help="PROMPT, given as an option."
    ),
    click.option(
        "-f",
        "--file",
        "prompt_file",
        metavar="FILE",
        help="Read the prompt from a file, - for stdin; a byte order mark and one final line end "
        "are dropped.",
    ),
    click.option(
        "--chat/--raw",
        "chat",
        default=None,
        help="Put the prompt as a user's message into the checkpoint's chat template, or take it "
        "as it is. [default: --raw, and --chat with --system]",
    ),
    click.option("--system", metavar="TEXT", help="The chat's system message."),
)


class Prompt(NamedTuple):
    """The text and ids that the model gets."""

    text: str
    ids: list[int]


def read_prompt(flags: PromptFlags) -> str:
    """The prompt from its one source; a pipe on stdin counts where no other is given.

    Raises UsageError where it was given twice, is missing, cannot be read, or is not UTF-8, and
    where its flags contradict each other.
    """
    if flags.system is not None and flags.chat is False:
        raise UsageError("--system needs the chat template: leave out --raw")
    text = given_prompt(flags)
    if text is None and _stdin_is_fed():
        text = _read_stdin()
    if text is None:
        raise UsageError("no prompt: give it as PROMPT, with -p, with -f FILE, or through a pipe")
    return text


def given_prompt(flags: PromptFlags) -> str | None:
    """The prompt that the command line names, if it does. Raises UsageError as `read_prompt`."""
    given = [each for each in flags[:3] if each is not None]
    if len(given) > 1:
        raise UsageError("give the prompt once: as PROMPT or by one option")
    if not given:
        return None
    if given == ["-"]:
        return _read_stdin()
    if flags.prompt_file is not None:
        try:
            content = Path(flags.prompt_file).read_bytes()
        except OSError as error:
            raise UsageError(f"{flags.prompt_file}: cannot be read: {error.strerror}") from None
        return _text_of_file(content, flags.prompt_file)
    return argument_text(given[0], "the prompt")


def argument_text(text: str, where: str) -> str:
    """A text of the command line, whose bytes are UTF-8 whatever the locale; errors: `decoded`."""
    return text if text.isascii() else decoded(os.fsencode(text), where)


def _read_stdin() -> str:
    if sys.stdin is None:
        raise UsageError("there is no standard input to read the prompt from")
    return _text_of_file(sys.stdin.buffer.read(), "standard input")


def _text_of_file(content: bytes, where: str) -> str:
    """A file's text without a byte order mark and one final line end, which editors add.

    Raises UsageError where it is not UTF-8.
    """
    text = decoded(content.removeprefix(codecs.BOM_UTF8), where)
    return re.sub(r"\r?\n\Z", "", text)


def decoded(content: bytes, where: str) -> str:
    """Bytes of UTF-8 as text. Raises UsageError, which names what they look like, for others."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        kind = "UTF-32" if content.startswith(codecs.BOM_UTF32_LE) else "UTF-16"
        advice = f"; it looks like {kind}: save it as UTF-8" if wide else ""
        raise UsageError(f"{where}: is not valid UTF-8{advice}") from None


def _stdin_is_fed() -> bool:
    """Whether stdin is a pipe or a file; a terminal or /dev/null holds no prompt."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # a stand-in without a file behind it
        return True
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def encode_prompt(model: Model, text: str, flags: PromptFlags, *, quiet: bool = False) -> Prompt:
    """The prompt's ids: of the text as it is, or as a message in the model's chat template."""
    if flags.chat or flags.system is not None:
        system = []
        if flags.system is not None:
            system = [{"role": "system", "content": argument_text(flags.system, "--system")}]
        text = model.render_chat([*system, {"role": "user", "content": text}])
        return Prompt(text, model.encode(text, special_tokens=False))
    if flags.chat is None and model.has_chat_template and not quiet:
        note("this model has a chat template: --chat uses it, --raw ends this note")
    return Prompt(text, model.encode(text))
