"""The folder of compiled kernels: one for each combination of what machine code depends on."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from kvgen.engine.fast import target
from kvgen.engine.machine import user_cache

_DAYS_KEPT = 30
_COMPILERS = ("numba", "llvmlite")
# Settings of Numba that machine code does not depend on.
_OTHER_SETTINGS = {"NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT", "NUMBA_NUM_THREADS"}


def kernel_folder() -> Path | None:
    """The folder of compiled kernels, which need not be writable; None where it cannot be made.

    Numba notices edits only in the file of a function, not in the files of what it calls, so the
    folder's name is a hash of everything that the machine code depends on. Raises ImportError where
    there is no compiler. Numba itself is not imported: that takes as long as the rest of a start.
    """
    settings = sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith("NUMBA_") and name not in _OTHER_SETTINGS
    )
    digest = hashlib.sha256(
        "\0".join([sys.version, target.CPU, target.FEATURES, *settings]).encode()
    )
    for package in _COMPILERS:
        digest.update(_version_of(package))
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    try:
        folder = user_cache() / "kernels" / digest.hexdigest()[:16]
        if not folder.exists():
            folder.mkdir(parents=True)
            _prune(folder.parent)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder


def _version_of(package: str) -> bytes:
    """What a package writes down about its version, read without importing the package."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ImportError(f"No module named {package!r}")
    return Path(found.origin).with_name("_version.py").read_bytes()


def _prune(kernels: Path) -> None:
    """Remove the folders of versions that have not been used for a while."""
    for folder in kernels.iterdir():
        if folder.stat().st_mtime < time.time() - _DAYS_KEPT * 24 * 3600:
            shutil.rmtree(folder, ignore_errors=True)


FOLDER = kernel_folder()
