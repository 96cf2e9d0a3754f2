"""Models by their name on the Hugging Face Hub: the files kvgen needs, kept in the Hub's cache.

`huggingface_hub` does the work and reads its own variables: HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE. It is imported only when a name is not a folder.
"""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Callable
from pathlib import Path

from kvgen.checkpoint.families import find
from kvgen.checkpoint.files import read_json
from kvgen.checkpoint.folder import INDEX, WEIGHTS, missing_weights, shards_of_index
from kvgen.errors import CheckpointError, KvgenError, ModelNotFoundError, UsageError
from kvgen.visible import one_line

# `org/name`, or an old `name`: what the client's validate_repo_id (utils/_validators.py) lets pass.
_PART = r"\w(?:[\w.-]{0,94}\w)?"
_NAME = re.compile(rf"(?!.*(?:--|\.\.))(?:{_PART}/)?{_PART}(?<!\.git)", re.ASCII)
_WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_TEMPLATES = "additional_chat_templates/"
# What a tokenizer can be made from, the best first; each needs the files of its row.
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
_FULL = (errno.ENOSPC, errno.EDQUOT)


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    progress: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> Path:
    """The folder of a model: `name` itself where there is such a folder, else fetched by that name.

    Only what is missing in the cache is downloaded, with `progress` on a terminal's stderr; where
    the Hub cannot be reached a model that is there as a whole is used, and `on_note` hears of it.
    Raises ModelNotFoundError where there is neither a folder nor a model on the Hub, or where it
    may not be read; UsageError for a `revision` of a folder.
    """
    folder = Path(name)
    try:
        is_there = folder.exists()
    except OSError as error:  # a name that no folder can have
        raise ModelNotFoundError(f"{str(folder)[:80]}: {error.strerror}") from None
    if is_there:
        if revision is not None:
            raise UsageError(
                f"{folder} is a folder, and --revision needs a Hub model: leave it out"
            )
        return folder
    if isinstance(name, Path) or not _NAME.fullmatch(name):
        raise ModelNotFoundError(f"{folder}: there is no such model folder: check the name")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client's, of a system without links and the like
        return _Repository(name, revision).fetch(
            progress=progress, on_note=on_note or (lambda _: None)
        )


class _Repository:
    """One revision of a model on the Hub."""

    def __init__(self, name: str, revision: str | None) -> None:
        self.name = name
        self.revision = revision or "main"
        self.label = name if revision is None else f"{name} at {revision}"

    def fetch(self, *, progress: bool, on_note: Callable[[str], None]) -> Path:
        """The snapshot folder in the cache, with every file that kvgen needs."""
        import logging

        import huggingface_hub
        from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.utils.tqdm import disable_progress_bars

        # What goes wrong comes back as one line of ours.
        huggingface_hub.logging.set_verbosity(logging.CRITICAL)
        if not progress:
            disable_progress_bars()
        snapshot = self._snapshot()
        try:
            listed = huggingface_hub.HfApi().model_info(
                self.name, revision=self.revision, timeout=HF_HUB_ETAG_TIMEOUT
            )
        except Exception as error:  # the client's HTTP library, and so its errors, vary by release
            if snapshot is None or not _is_whole(snapshot) or not _is_out_of_reach(error):
                raise self._as_ours(error) from None
            if not isinstance(error, OfflineModeIsEnabled):
                on_note(f"{self.label}: the Hub cannot be reached; taken from the cache")
            return snapshot
        if snapshot is not None and snapshot.name != listed.sha:
            snapshot = None  # the revision has moved on
        files = {file.rfilename for file in listed.siblings or ()}
        names = [name for name in _WANTED if name in files]
        names += next((row for row in _TOKENIZERS if files.issuperset(row)), ())
        if WEIGHTS in files:
            names.append(WEIGHTS)
        elif INDEX in files:
            shards = shards_of_index(self._file(INDEX, snapshot))
            if absent := [shard for shard in shards if shard not in files]:
                raise CheckpointError(f"{self.label}: {absent[0]} is missing; {INDEX} names it")
            names += [INDEX, *shards]
        else:
            raise CheckpointError(missing_weights(self.name, files))
        if "config.json" not in files:
            raise CheckpointError(f"{self.label}: config.json is missing")
        if hidden := [name for name in names if one_line(name) != name]:
            # The client's progress bars would print it as it is.
            raise CheckpointError(f"{self.label}: {INDEX}: {hidden[0]!r} is no name for a file")
        find(read_json(self._file("config.json", snapshot)))  # before anything large is fetched
        for name in sorted(files):
            if name.startswith(_TEMPLATES) and name.endswith(".jinja"):
                self._file(name, snapshot)
        folders = {self._file(name, snapshot).parent for name in names}
        if len(folders) != 1:
            raise KvgenError(f"{self.label} has just changed on the Hub; run the command again")
        return folders.pop()

    def _snapshot(self) -> Path | None:
        """The folder in the cache that this revision was last known as, whole or not."""
        import huggingface_hub

        config = huggingface_hub.try_to_load_from_cache(
            self.name, "config.json", revision=self.revision
        )
        return Path(config).parent if isinstance(config, str) else None

    def _file(self, name: str, snapshot: Path | None) -> Path:
        """One file, from the snapshot or downloaded; a broken connection is taken up again."""
        import huggingface_hub

        if snapshot is not None and (snapshot / name).exists():
            return snapshot / name
        try:
            return Path(huggingface_hub.hf_hub_download(self.name, name, revision=self.revision))
        except Exception as error:
            raise self._as_ours(error) from None

    def _as_ours(self, error: Exception) -> KvgenError:
        """What the Hub's client reports, as one line that says what to do."""
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return ModelNotFoundError(
                f"{self.label}: is gated: accept its terms on the Hub and set HF_TOKEN"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelNotFoundError(f"{self.name}: has no revision {self.revision!r} on the Hub")
        if isinstance(error, errors.RepositoryNotFoundError):
            return ModelNotFoundError(
                f"{self.label}: there is no such folder, and no such model on the Hub "
                "(for a private one set HF_TOKEN)"
            )
        if status in (401, 403):
            return ModelNotFoundError(
                f"{self.label}: the Hub refuses the token ({status}): check HF_TOKEN"
            )
        if isinstance(error, errors.OfflineModeIsEnabled):
            return ModelNotFoundError(
                f"{self.label}: there is no such folder, and the Hub's cache does not hold all of "
                "the model: check the name, or unset HF_HUB_OFFLINE to download it"
            )
        if isinstance(error, OSError) and error.errno is not None:  # on this side of the connection
            if error.errno in _FULL:
                return KvgenError(f"{self.label}: the disk is full; what is downloaded is kept")
            return KvgenError(f"{self.label}: {error.filename or 'the cache'}: {error.strerror}")
        reason = _reason(error)
        return ModelNotFoundError(
            f"{self.label}: there is no such folder, and the Hub cannot be reached or does not "
            f"answer ({reason}): check the name and the connection"
        )


def _reason(error: Exception) -> str:
    """The first line of what an error says, without the number of an operating system's error."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"\[Errno -?[0-9]+\] ?", "", line)[:200].strip() or type(error).__name__


def _is_out_of_reach(error: Exception) -> bool:
    """Whether the Hub did not answer at all, or with a failure of its own."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status >= 500 or status == 429


def _is_whole(snapshot: Path) -> bool:
    """Whether all the weights are there; they are downloaded last."""
    try:
        names = [WEIGHTS] if (snapshot / WEIGHTS).exists() else shards_of_index(snapshot / INDEX)
    except CheckpointError:
        return False
    return all((snapshot / name).exists() for name in names)
