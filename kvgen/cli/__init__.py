"""The command `kvgen`: its group, and the one place where errors become exit codes."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import kvgen
from kvgen.cli import signals
from kvgen.cli.command import SuggestingGroup
from kvgen.cli.output import note
from kvgen.errors import KvgenError, TerminatedError
from kvgen.text.patience import is_panic
from kvgen.visible import one_line

_INTERRUPTED = 130
_PIPE_CLOSED = 141
_LONGEST_LINE = 400  # characters of a message: longer ones lose their middle


@click.group(
    cls=SuggestingGroup,
    modules={
        "generate": "kvgen.cli.generate",
        "chat": "kvgen.cli.chat",
        "bench": "kvgen.cli.bench",
        "inspect-attention": "kvgen.cli.inspect_attention",
        "score": "kvgen.cli.score",
        "verify": "kvgen.cli.verify",
        "info": "kvgen.cli.info",
    },
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "KVGEN"},
    epilog="""\b
Exit codes: 0 done; 1 run-time failure; 2 wrong usage; 3 model not found;
4 checkpoint invalid or unsupported; 5 verification failed; 6 non-finite
logits; 130 interrupted; 141 the reader closed the pipe; 143 terminated.

\b
Examples:
  kvgen generate "Once upon a time"
  kvgen chat -m HuggingFaceTB/SmolLM2-135M-Instruct
  kvgen bench --no-cache
  kvgen inspect-attention "The cat sat on the mat"
  kvgen score story.txt --compare-dtypes f32,int8
  kvgen info HuggingFaceTB/SmolLM2-135M
""",
)
@click.version_option(kvgen.__version__, prog_name="kvgen")
def cli() -> None:
    """Run small decoder-only transformers, measure the KV cache, look into attention.

    Every command takes -m/--model: a Hugging Face checkpoint folder (config.json,
    model.safetensors, tokenizer.json) or a model's name on the Hub. The default is the model that
    ships with kvgen.
    """


def main() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    signals.install()
    if not os.environ.get("KVGEN_DEBUG"):
        _take_over_messages()
    code = run(sys.argv[1:])
    signals.ignore()  # everything is printed
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            # A closed pipe or a full disk is reported already; Python would repeat it and exit 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    gc.freeze()  # what is alive needs no visit by the collections at the end of a process
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; every failure becomes one line on stderr."""
    if "_KVGEN_COMPLETE" in os.environ:
        cli.main(list(arguments), prog_name="kvgen")
    try:
        with cli.make_context("kvgen", list(arguments)) as context:
            cli.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        context_ = getattr(error, "ctx", None)
        where = f" (see `{context_.command_path} --help`)" if context_ else ""
        return _fail(error.format_message() + where, error.exit_code)
    except KvgenError as error:
        return _fail(str(error), error.exit_code)
    except TerminatedError as request:
        return _fail("terminated", request.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", _INTERRUPTED)
    except MemoryError:
        return _fail("out of memory: try fewer tokens, a smaller model or --dtype bf16", 1)
    except OSError as error:
        if error.errno == errno.EPIPE:
            return _PIPE_CLOSED
        place = error.filename or "cannot write the output"
        return _fail(f"{place}: {error.strerror or error}", 1)
    except BaseException as error:
        # A panic of a library written in Rust (pyo3_runtime) does not derive from Exception.
        failed = isinstance(error, Exception) or is_panic(error)
        if not failed or os.environ.get("KVGEN_DEBUG"):
            raise
        return _fail(
            f"internal error: {type(error).__name__}: {error}; please report it "
            "(KVGEN_DEBUG=1 shows where)",
            1,
        )
    return 0


def _take_over_messages() -> None:
    """Print Python's own warnings and thread errors as notes: they may quote a file."""

    def lost(failure: Any) -> None:
        if signals.send_again(failure.exc_value):
            return
        if failure.exc_type is not SystemExit:  # the end of a thread
            note(f"internal error: {failure.exc_type.__name__}: {failure.exc_value}")

    def warn(message: Warning | str, *_: Any, **__: Any) -> None:
        note(f"warning: {message}")

    threading.excepthook = lost
    sys.unraisablehook = lost
    warnings.showwarning = warn


def _fail(message: str, code: int) -> int:
    try:
        click.echo("kvgen: " + one_line(message, most=_LONGEST_LINE), err=True)
    except OSError:  # stderr is closed too
        return code
    return code
