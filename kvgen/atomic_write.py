"""Writing a file as a whole: whoever reads it finds the old content or the new, never a part."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

from kvgen.errors import KvgenError

_PREFIX, _SUFFIX = ".kvgen-", ".part"  # of a file that will take the place of another


def write_atomically(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write beside the file, then move into its place; an interruption leaves the old content.

    A process that is killed leaves its unfinished file, `.kvgen-*.part`; the next write into the
    same folder removes it. A link is kept and its target replaced, and an existing file keeps its
    rights. A device, a pipe, or a file in a folder that takes no new ones is written as it is. With
    `sync` the new content is on the disk before it takes the place of the old. Raises OSError.
    """
    target = path.resolve()
    if target.exists() and not (target.is_file() and os.access(target.parent, os.W_OK)):
        target.write_bytes(content)
        return
    rights = stat.S_IMODE(target.stat().st_mode) if target.exists() else _rights_of_a_new_file()
    _remove_left_parts(target.parent)
    while not _replace(target, content, rights=rights, sync=sync):
        pass


def write_file(path: str | Path, content: bytes, *, sync: bool = False) -> None:
    """The same for a result. Raises KvgenError, which says why it cannot be written."""
    try:
        write_atomically(Path(path), content, sync=sync)
    except OSError as error:
        raise KvgenError(f"{path}: cannot be written: {error.strerror}") from None


def _replace(target: Path, content: bytes, *, rights: int, sync: bool) -> bool:
    """Write a new file with a lock, which says that its process lives, and move it to `target`.

    False where another process removed the new file before it was locked. Raises OSError.
    """
    part = target.parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
    try:
        with open(part, "xb", opener=_open_private) as file:  # Path.open has no opener
            with suppress(OSError):  # a file system without locks
                _lock(file, wait=True)
            if not part.exists():
                return False
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
            part.chmod(rights)
            part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return True


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _remove_left_parts(folder: Path) -> None:
    """Remove the unfinished files of processes that were killed: nobody holds their locks."""
    for left in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError), left.open("r+b") as file:
            if _lock(file, wait=False):
                left.unlink()


def _lock(file: IO[bytes], *, wait: bool) -> bool:
    """Take the lock of an open file, which closing it gives back.

    False where the platform has no such locks. Raises OSError where another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    return True


def _rights_of_a_new_file() -> int:
    """What `open` would give it; an unfinished file is private."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
