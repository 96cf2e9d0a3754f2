"""`kvgen generate --prompt-cache FILE`: the option, what is refused, and what a run makes of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.cli.output import check_writable
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.session import Session

prompt_cache_option = click.option(
    "--prompt-cache",
    metavar="FILE",
    help="Keep the KV cache of the run in FILE. A later prompt that begins with the same tokens "
    "reuses their keys and values and runs only the rest. Written after the run where it holds "
    "more positions than FILE.",
)


def check_prompt_cache(path: str | None, *, use_cache: bool) -> None:
    """Raise UsageError where a file cannot be used, before the model is loaded."""
    if path is None:
        return
    if not use_cache:
        raise UsageError("--prompt-cache and --no-cache exclude each other: leave one out")
    check_writable(path)
    folder = Path(path).resolve().parent
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: cannot be written as a whole: its folder takes no new files")


class PromptCacheFile(NamedTuple):
    """The file of --prompt-cache in one run."""

    path: str
    model: Model
    session: Session
    n_before: int  # positions in the file before the run

    def update(self) -> None:
        """Write the file where the session holds more positions than it."""
        from kvgen import prompt_cache

        if len(self.session.ids) > self.n_before:
            prompt_cache.save(self.path, self.model, self.session)


def open_prompt_cache(
    path: str | None, model: Model, session: Session, prompt_ids: Sequence[int]
) -> PromptCacheFile | None:
    """Fill the session with what the file has of the prompt; a missing file has nothing."""
    if path is None:
        return None
    from kvgen import prompt_cache

    try:
        n_before = prompt_cache.load(path, model, session, prompt_ids)
    except FileNotFoundError:
        n_before = 0
    return PromptCacheFile(path, model, session, n_before)
