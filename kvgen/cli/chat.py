"""`kvgen chat`: a conversation in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import click

from kvgen.cli.chat_input import is_interactive, piped_messages, typed_messages
from kvgen.cli.command import did_you_mean
from kvgen.cli.options import ModelFlags, cache_option, load_model, model_options
from kvgen.cli.output import Prose, in_lines, note, stderr_is_terminal, write_text
from kvgen.cli.progress import counting
from kvgen.cli.prompt import argument_text
from kvgen.cli.sampling_options import SamplingFlags, choose_sampling, sampling_options
from kvgen.errors import KvgenError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvgen.conversation import Conversation, Turn
    from kvgen.model import Model
    from kvgen.piece import Piece
    from kvgen.sampling import Sampler

_HELP = """\
/help          this list
/reset         forget all questions and answers; the system message stays
/undo          forget the last question and its answer
/save FILE     write the messages to a file, as JSON
/system TEXT   set the system message; without TEXT there is none
/model NAME    load another model; the conversation stays
/exit          leave, as Ctrl-D does
Alt-Enter, or a backslash at the end of a line, begins a new line. Ctrl-C stops
an answer, and at the prompt it clears the line. A space before / sends it."""


class _Settings(NamedTuple):
    """The options that hold for every model of a conversation."""

    model_flags: ModelFlags
    sampling_flags: SamplingFlags
    max_new_tokens: int | None
    context: int | None
    use_cache: bool
    template: bool
    as_json: bool
    quiet: bool
    verbose: bool


@click.command(
    epilog="""\b
After each answer a line on stderr says how many tokens of the conversation
were reused from the KV cache, and how many were processed before the answer
and for it. --no-cache shows what the same conversation costs without reuse.

\b
Commands, at the beginning of a line: /help, /reset, /undo, /save FILE,
/system TEXT, /model NAME, /exit.

\b
Examples:
  kvgen chat -m HuggingFaceTB/SmolLM2-135M-Instruct
  kvgen chat -m HuggingFaceTB/SmolLM2-135M-Instruct --system "Be brief." -s 1
  printf 'Hello!\\nAnd you?\\n' | kvgen chat -m FOLDER --greedy --no-cache
  kvgen chat --no-chat-template
""",
)
@model_options
@click.option(
    "-n",
    "--max-tokens",
    "--max-new-tokens",
    "max_new_tokens",
    type=click.IntRange(min=1),
    help="End an answer after this many tokens. [default: 512, or as many as fit the context]",
)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=1),
    help="The longest conversation, in tokens: the KV cache gets room for it. [default: the "
    "model's context, at most 32768]",
)
@sampling_options(default="what the checkpoint recommends, else greedy")
@click.option("--system", metavar="TEXT", help="The system message.")
@click.option(
    "--chat-template/--no-chat-template",
    "template",
    default=True,
    help="--no-chat-template: continue the text of all messages as it is, each question on a new "
    "line; for models that were not trained to chat.",
)
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print each answer as a line of JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No counts, notes or progress.")
@click.option("-v", "--verbose", is_flag=True, help="Print more about the model and the sampling.")
def chat(
    model_flags: ModelFlags,
    max_new_tokens: int | None,
    context: int | None,
    sampling_flags: SamplingFlags,
    system: str | None,
    template: bool,
    use_cache: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Talk with an instruct model.

    On a terminal lines can be edited; from a pipe each line is a message, and the first failure
    becomes the exit code at the end. Answers go to stdout. The conversation stays in the KV cache:
    only what is new is run through the model.
    """
    settings = _Settings(
        model_flags, sampling_flags, max_new_tokens, context, use_cache, template, as_json, quiet,
        verbose,
    )  # fmt: skip
    system = argument_text(system, "--system") if system else None
    interactive = is_interactive()
    _Chat(settings, system, interactive=interactive).run(
        typed_messages() if interactive else piped_messages()
    )


class _Chat:
    """A conversation and the commands that change it."""

    def __init__(self, settings: _Settings, system: str | None, *, interactive: bool) -> None:
        self.settings = settings
        self.interactive = interactive
        self.running = True
        self.conversation, self.sampler = self._load(settings.model_flags, system, [])
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": self._help, "/reset": self._reset, "/undo": self._undo, "/save": self._save,
            "/system": self._system, "/model": self._model, "/exit": self._exit,
        }  # fmt: skip

    def run(self, messages: Iterator[str]) -> None:
        """Answer each message, until there are none or /exit comes; on a pipe failures count."""
        failure = 0
        for message in messages:
            try:
                if message.startswith("/"):
                    self._obey(message)
                elif message.strip():
                    self._answer(message.removeprefix(" ") if message[:2] == " /" else message)
            except KvgenError as error:
                note(str(error))
                failure = failure or error.exit_code
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                note("interrupted")
            if not self.running:
                break
        if failure and not self.interactive:
            raise click.exceptions.Exit(failure)

    def _load(
        self, flags: ModelFlags, system: str | None, turns: list[Turn]
    ) -> tuple[Conversation, Sampler]:
        """A conversation with these messages and the named model, and how it chooses tokens."""
        from kvgen.conversation import Conversation

        settings = self.settings
        quiet = settings.quiet
        model = load_model(flags, quiet=quiet, verbose=settings.verbose)
        _check_template(model, settings)
        given = settings.sampling_flags
        sampling = choose_sampling(model.recommendation.sampling, given, quiet=quiet)
        sampler = model.sampler(sampling, seed=given.seed)
        if settings.verbose:
            note(f"sampling: {sampling.describe()}")
        conversation = Conversation(
            model, context=settings.context, reuse_cache=settings.use_cache,
            template=settings.template, system=system, turns=turns,
        )  # fmt: skip
        if not quiet:
            if sampling.temperature > 0:
                note(f"sampled {sampling.describe()} · seed {sampler.seed}")
            if self.interactive:
                note(f"{model.name} · context {conversation.capacity:,} tokens · /help: commands")
        return conversation, sampler

    def _answer(self, question: str) -> None:
        conversation, settings = self.conversation, self.settings
        prose = Prose()
        pieces: list[Piece] = []
        answer = conversation.ask(
            question, sampler=self.sampler, max_new_tokens=settings.max_new_tokens
        )
        with closing(answer):  # which keeps the answer so far
            try:
                total = conversation.n_waiting
                with counting("prompt", total, quiet=settings.quiet) as advance:
                    conversation.session.on_progress = advance
                    pieces.extend(each for each in [next(answer, None)] if each is not None)
                conversation.session.on_progress = None
                if pieces and not settings.as_json:
                    prose.write(pieces[0].text)
                for piece in answer:
                    pieces.append(piece)
                    if not settings.as_json:
                        prose.write(piece.text)
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                kept = "the answer so far is kept" if pieces else "the question is not kept"
                prose.end()
                write_text("\n")
                note(f"stopped: {kept}")
            else:
                prose.end()
                write_text(_as_json(conversation, pieces) if settings.as_json else "\n")
            finally:
                conversation.session.on_progress = None
        if not settings.quiet:
            self._tell(pieces)

    def _tell(self, pieces: list[Piece]) -> None:
        """Say what the answer took, and why it ended where the model did not end it."""
        conversation = self.conversation
        if pieces and pieces[-1].finish_reason == "length":
            if len(conversation.prompt_ids) + len(pieces) > conversation.capacity:
                note(
                    f"the context of {conversation.capacity:,} tokens is full: /undo drops the "
                    "last question and answer, /reset all of them"
                )
            else:
                note(f"stopped after {len(pieces):,} tokens: -n asks for more")
        seconds = sum(piece.seconds for piece in pieces[1:])
        speed = f" · {(len(pieces) - 1) / seconds:.1f} tok/s" if seconds else ""
        note(
            f"reused {conversation.reused:,}, processed {conversation.processed:,} tokens; answer: "
            f"{len(pieces):,} tokens, {conversation.answer_processed:,} processed{speed}"
        )

    def _obey(self, line: str) -> None:
        word, _, rest = (part.strip() for part in line.partition(" "))
        command = self.commands.get(word)
        if command is None:
            near = did_you_mean(word, self.commands)
            raise UsageError(f"{word}: there is no such command: /help lists them{near}")
        if rest and word in ("/help", "/reset", "/undo", "/exit"):
            raise UsageError(f"{word} stands alone: leave out {rest!r}")
        command(rest)

    def _help(self, _: str) -> None:
        for line in _HELP.splitlines():
            click.echo(in_lines(line) if stderr_is_terminal() else line, err=True)

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self._say("all questions and answers are forgotten")

    def _undo(self, _: str) -> None:
        dropped = self.conversation.undo()
        self._say("the last question and answer are forgotten" if dropped else "nothing to undo")

    def _save(self, path: str) -> None:
        from kvgen.atomic_write import write_file

        if not path:
            raise UsageError("/save needs the name of a file")
        messages = self.conversation.messages
        content = json.dumps(messages, ensure_ascii=False, indent=2) + "\n"
        write_file(path, content.encode("utf-8", "replace"))
        self._say(f"{path}: {len(messages)} messages")

    def _system(self, text: str) -> None:
        self.conversation.system = text or None
        self._say("the system message is set" if text else "there is no system message now")

    def _model(self, name: str) -> None:
        if not name:
            raise UsageError("/model needs the name of a model, or a folder")
        flags = self.settings.model_flags._replace(name=name, revision=None)
        old = self.conversation
        self.conversation, self.sampler = self._load(flags, old.system, old.turns)
        self._say(f"{self.conversation.model.name} goes on with the conversation")

    def _exit(self, _: str) -> None:
        self.running = False

    def _say(self, text: str) -> None:
        if not self.settings.quiet:
            note(text)


def _check_template(model: Model, settings: _Settings) -> None:
    """Raise UsageError where messages cannot become a text for this model."""
    model.require_tokenizer()
    if settings.template and not model.has_chat_template:
        raise UsageError(
            f"{model.name}: has no chat template: use `kvgen generate` or --no-chat-template, or "
            "an instruct model, such as -m HuggingFaceTB/SmolLM2-135M-Instruct"
        )


def _as_json(conversation: Conversation, pieces: list[Piece]) -> str:
    answer = {
        "text": conversation.turns[-1]["content"] if pieces else "",
        "ids": [piece.token for piece in pieces],
        "finish_reason": pieces[-1].finish_reason if pieces else None,
        "prompt_tokens": len(conversation.prompt_ids),
        "reused": conversation.reused,
        "processed": conversation.processed,
        "answer_processed": conversation.answer_processed,
        "seconds": sum(piece.seconds for piece in pieces),
    }
    return json.dumps(answer) + "\n"
