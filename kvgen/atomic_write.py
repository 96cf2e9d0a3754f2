"""Writing a file as a whole: whoever reads it finds the old content or the new, never a part."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from kvgen.errors import KvgenError


def write_atomically(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write beside the file, then move into its place; an interruption leaves the old content.

    A link is kept and its target replaced, and an existing file keeps its rights. A device, a pipe,
    or a file in a folder that takes no new ones is written as it is. With `sync` the new content is
    on the disk before it takes the place of the old. Raises OSError.
    """
    target = path.resolve()
    if target.exists() and not (target.is_file() and os.access(target.parent, os.W_OK)):
        target.write_bytes(content)
        return
    rights = stat.S_IMODE(target.stat().st_mode) if target.exists() else _rights_of_a_new_file()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".kvgen-", delete=False) as part:
        try:
            part.write(content)
            part.flush()
            if sync:
                os.fsync(part.fileno())
            Path(part.name).chmod(rights)
            Path(part.name).replace(target)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def write_file(path: str | Path, content: bytes, *, sync: bool = False) -> None:
    """The same for a result. Raises KvgenError, which says why it cannot be written."""
    try:
        write_atomically(Path(path), content, sync=sync)
    except OSError as error:
        raise KvgenError(f"{path}: cannot be written: {error.strerror}") from None


def _rights_of_a_new_file() -> int:
    """What `open` would give it; a temporary file is private."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
