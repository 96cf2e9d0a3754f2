"""`kvgen generate --prompt-cache FILE`: the options, what is refused, what a run makes of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.cli.options import bundle
from kvgen.cli.output import check_writable
from kvgen.errors import UsageError

if TYPE_CHECKING:
    from kvgen.model import Model
    from kvgen.session import Session


class PromptCacheFlags(NamedTuple):
    """Where to keep the KV cache of a run, if anywhere, and whether to read it alone."""

    prompt_cache: str | None
    prompt_cache_ro: bool

    def check(self, *, use_cache: bool) -> None:
        """Raise UsageError where the file cannot be used, before the model is loaded."""
        path = self.prompt_cache
        if path is None:
            if self.prompt_cache_ro:
                raise UsageError("--prompt-cache-ro says how to use --prompt-cache FILE: add it")
            return
        if not use_cache:
            raise UsageError("--prompt-cache and --no-cache exclude each other: leave one out")
        if self.prompt_cache_ro:
            return
        check_writable(path)
        folder = Path(path).resolve().parent
        if not os.access(folder, os.W_OK):
            raise UsageError(
                f"{path}: cannot be written as a whole, since its folder takes no new files: add "
                "--prompt-cache-ro to read it alone"
            )

    def open(
        self, model: Model, session: Session, prompt_ids: Sequence[int]
    ) -> PromptCacheFile | None:
        """Fill the session with what the file has of the prompt; None without a file.

        A missing file has nothing. Raises UsageError where it is missing and may only be read.
        """
        if self.prompt_cache is None:
            return None
        from kvgen import prompt_cache

        try:
            before = prompt_cache.load(self.prompt_cache, model, session, prompt_ids)
        except FileNotFoundError:
            if self.prompt_cache_ro:
                raise UsageError(
                    f"{self.prompt_cache}: there is no such file, and --prompt-cache-ro writes none"
                ) from None
            before = []
        return PromptCacheFile(self, model, session, before, len(prompt_ids))


class PromptCacheFile(NamedTuple):
    """The file of --prompt-cache in one run."""

    flags: PromptCacheFlags
    model: Model
    session: Session
    before: list[int]  # the ids in the file before the run
    n_prompt: int

    def update(self) -> None:
        """Write the file, unless it holds the prompt and ends otherwise, or may only be read.

        Another text behind the same prompt is no reason to write all of it again.
        """
        from kvgen import prompt_cache

        path, ids, n = self.flags.prompt_cache, list(self.session.ids), len(self.before)
        assert path is not None
        goes_on = len(ids) > n and ids[:n] == self.before
        has_prompt = self.before[: self.n_prompt] == ids[: self.n_prompt]
        if not self.flags.prompt_cache_ro and (goes_on or not has_prompt):
            prompt_cache.save(path, self.model, self.session)


prompt_cache_options = bundle(
    PromptCacheFlags,
    "prompt_cache_flags",
    click.option(
        "--prompt-cache",
        metavar="FILE",
        help="Keep the KV cache of the run in FILE. A later prompt that begins with the same "
        "tokens reuses their keys and values and runs only the rest. FILE then holds the later "
        "run, unless it held its whole prompt and ends otherwise.",
    ),
    click.option(
        "--prompt-cache-ro", is_flag=True, help="Read the FILE of --prompt-cache, write nothing."
    ),
)
