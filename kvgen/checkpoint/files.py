"""Files of a model folder, opened only where they are files, and read only up to a bound."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from kvgen.errors import CheckpointError

# Bytes of a file that is read as a whole: several times the largest tokenizer.json there is.
LONGEST = 200_000_000
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # not on Windows
_BINARY = getattr(os, "O_BINARY", 0)  # on Windows only


def open_file(path: Path) -> BinaryIO:
    """A file to read from, by whatever links lead to it.

    Raises CheckpointError where it is a folder, a pipe, a socket or a device, which may have
    nothing to read for ever, and OSError where it cannot be opened.
    """
    _require_file(path, path.stat().st_mode)
    # Another thing may take the file's place meanwhile: opening it must not wait.
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK | _BINARY)
    try:
        _require_file(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path) -> bytes:
    """All bytes of a file. Raises as `open_file`, and CheckpointError beyond `LONGEST` bytes."""
    with open_file(path) as file:
        # A file that the system makes up as it is read may give its size as 0.
        size = os.fstat(file.fileno()).st_size
        content = file.read(LONGEST + 1) if size <= LONGEST else b""
    if max(size, len(content)) > LONGEST:
        raise CheckpointError(f"{path}: is larger than {LONGEST:,} bytes, which no such file is")
    return content


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, its lines ended as `open` ends them. Raises as `read_file`."""
    return io.StringIO(read_file(path).decode(), newline=None).read()


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """A JSON object; {} where the file is missing and need not be there.

    Raises CheckpointError where it is missing otherwise, or cannot be read.
    """
    try:
        content = json.loads(read_file(path).decode())
    except FileNotFoundError:
        if not required:
            return {}
        raise CheckpointError(f"{path.parent}: {path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: should hold a JSON object")
    return content


def _require_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for holds, name in _KINDS if holds(mode)), "a device")
        raise CheckpointError(f"{path}: is not a file but {kind}")
