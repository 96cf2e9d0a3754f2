"""What can go wrong, in words a user can act on, each kind with its exit code."""

from __future__ import annotations

from typing import ClassVar

from kvgen.visible import one_line


class KvgenError(Exception):
    """A failure that the user can understand and mend; its text is one line."""

    exit_code: ClassVar[int] = 1

    def __init__(self, text: str) -> None:
        """Keep the text on one line, whatever names of a file's making are in it."""
        super().__init__(one_line(text))


class NoCompilerError(KvgenError):
    """Kernels would have to be compiled, and nothing here can."""


class UsageError(KvgenError):
    """What was asked for does not fit: a flag, a prompt, a length."""

    exit_code = 2


class ModelNotFoundError(KvgenError):
    """There is no model at the place that was named."""

    exit_code = 3


class CheckpointError(KvgenError):
    """The model's files are broken, incomplete, or of a kind that kvgen does not understand."""

    exit_code = 4


class VerificationError(KvgenError):
    """Cached and uncached results differ by more than rounding explains."""

    exit_code = 5


class NonFiniteError(KvgenError):
    """The model produced NaN or infinity where a number was expected."""

    exit_code = 6


class TerminatedError(BaseException):
    """The process was asked to end (SIGTERM); as with Ctrl-C, nobody catches it by chance."""

    exit_code: ClassVar[int] = 143
