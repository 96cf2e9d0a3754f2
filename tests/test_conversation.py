"""`kvgen chat`: a conversation whose positions stay in the KV cache, and that costs what is new."""

from __future__ import annotations

import json
import os
import pty
import select
import sys
from pathlib import Path

import pytest

import kvgen
from kvgen.choices import Backend
from kvgen.conversation import ContextFullError, Conversation
from kvgen.generate import generate
from kvgen.model import Model
from kvgen.piece import Piece
from kvgen.sampling import Sampler, SamplingOptions
from kvgen.session import Session, shared_prefix
from tests import tiny
from tests.chats import write_default_model
from tests.command import KVGEN, Run, assert_fails
from tests.command import kvgen as command
from tests.configs import LENGTH_DEPENDENT
from tests.token_files import tokenizer_json

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
QUESTIONS = ["What is it?", "Why?", "And the other one?", "Tell me more of that."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model with a chat template."""
    path = tmp_path_factory.mktemp("conversation") / "model"
    write_default_model(path, TEMPLATE)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return kvgen.load(folder, backend="numpy")


def tiny_model(folder: Path, name: str, backend: Backend) -> Model:
    """A tiny model with a tokenizer of single characters, and the template."""
    tiny.write_checkpoint(folder, name)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return kvgen.load(folder, backend=backend)


def greedy(model: Model) -> Sampler:
    return model.sampler(SamplingOptions(temperature=0.0))


def ask(conversation: Conversation, question: str, n: int = 6) -> list[Piece]:
    sampler = greedy(conversation.model)
    return list(conversation.ask(question, sampler=sampler, max_new_tokens=n))


def fresh_ids(conversation: Conversation, n: int = 6) -> list[int]:
    """New tokens of a run from an empty cache on the prompt of the last answer."""
    model = conversation.model
    session = Session(model.engine, model.config.max_context)
    steps = generate(
        session, conversation.prompt_ids, sampler=greedy(model), max_new_tokens=n,
        stop_ids=model.stop_ids,
    )  # fmt: skip
    return [step.token for step in steps]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(
    "name", ["llama_gqa", "gpt2", "mistral", "gemma3", "llama_dynamic", "phi3_longrope"]
)
def test_each_answer_equals_that_of_a_run_from_an_empty_cache(
    name: str, backend: Backend, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, name, backend)
    conversation = Conversation(model)
    for question in QUESTIONS:
        held = list(conversation.session.ids)
        pieces = ask(conversation, question)
        assert [piece.token for piece in pieces] == fresh_ids(conversation)
        ids, length = conversation.prompt_ids, len(conversation.prompt_ids)
        assert conversation.reused + conversation.processed == length
        # From position 100 on, rotary frequencies of these two depend on the length.
        if name not in LENGTH_DEPENDENT or length + len(pieces) <= 100:
            assert conversation.reused == min(shared_prefix(held, ids), length - 1)
            assert conversation.answer_processed == len(pieces) - 1
    assert len(conversation.prompt_ids) > 60


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_where_rotary_frequencies_change_everything_runs_again_and_is_counted(
    backend: Backend, tmp_path: Path
) -> None:
    conversation = Conversation(tiny_model(tmp_path, "phi3_longrope", backend))
    ask(conversation, "x" * 50)
    assert conversation.processed == len(conversation.prompt_ids) < 90
    pieces = ask(conversation, "y" * 50)  # beyond 100 positions: the other factors
    assert [piece.token for piece in pieces] == fresh_ids(conversation)
    assert (conversation.reused, conversation.processed) == (0, len(conversation.prompt_ids))
    ask(conversation, "z")
    assert conversation.reused > 100
    conversation.undo()
    conversation.undo()
    pieces = ask(conversation, "z")  # and back
    assert [piece.token for piece in pieces] == fresh_ids(conversation)
    assert (conversation.reused, conversation.processed) == (0, len(conversation.prompt_ids))


def test_without_the_cache_the_same_answers_run_all_positions_again(model: Model) -> None:
    on, off = Conversation(model), Conversation(model, reuse_cache=False)
    for question in QUESTIONS[:2]:
        pieces = ask(on, question)
        assert [p.token for p in pieces] == [p.token for p in ask(off, question)]
        length = len(off.prompt_ids)
        assert (off.reused, off.processed) == (0, length)
        assert off.answer_processed == sum(length + step for step in range(1, len(pieces)))
    assert on.turns == off.turns and on.reused > 0


def test_a_question_asked_again_after_undo_runs_its_last_position_only(model: Model) -> None:
    conversation = Conversation(model, system="Be brief.")
    first = ask(conversation, "Who?")
    assert conversation.undo() and conversation.turns == []
    again = ask(conversation, "Who?")
    assert [p.token for p in again] == [p.token for p in first]
    assert conversation.processed == 1
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    assert not conversation.undo()


def test_a_stopped_answer_is_kept_as_it_is(model: Model) -> None:
    conversation = Conversation(model)
    answer = conversation.ask("Who?", sampler=greedy(model), max_new_tokens=8)
    text = next(answer).text + next(answer).text
    answer.close()
    assert [turn["content"] for turn in conversation.turns] == ["Who?", text]
    ask(conversation, "And?")
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2
    unasked = conversation.ask("Nobody listens.", sampler=greedy(model))
    unasked.close()
    assert len(conversation.turns) == 4


def test_a_full_context_loses_nothing(model: Model) -> None:
    conversation = Conversation(model, context=40)
    ask(conversation, "Who?")
    turns, held = list(conversation.turns), list(conversation.session.ids)
    with pytest.raises(ContextFullError, match=r"ends at 40: /undo drops .* /reset all of them"):
        ask(conversation, "word " * 60)
    assert conversation.turns == turns and list(conversation.session.ids) == held
    pieces = ask(conversation, "So?", n=500)  # ends where the context does
    assert len(conversation.prompt_ids) + len(pieces) - 1 == 40
    assert pieces[-1].finish_reason == "length"


def test_without_template_a_text_is_continued() -> None:
    model = kvgen.load(backend="numpy")
    conversation = Conversation(model, template=False)
    (first, *_), n = ask(conversation, "Once upon a time"), 6
    assert first.token == fresh_ids(conversation, n)[0]
    answer = conversation.turns[-1]["content"]
    ask(conversation, "Then")
    assert conversation.prompt_ids == model.encode(f"Once upon a time{answer}\nThen")
    assert conversation.reused > 0


# --- the command ------------------------------------------------------------------------------


def chat(folder: Path, stdin: str, *flags: str) -> Run:
    """The command on a pipe, with greedy answers of six tokens."""
    arguments = ["-m", str(folder), "--greedy", "-n", "6", "--backend", "numpy", *flags]
    return command("chat", *arguments, stdin=stdin.encode())


def test_on_a_pipe_each_line_is_a_message(folder: Path, model: Model) -> None:
    run = chat(folder, "Who?\n\nAnd\\\nwhy?\n", "--json")
    conversation = Conversation(model)
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    for question, answer in zip(["Who?", "And\nwhy?"], answers, strict=True):
        assert answer["ids"] == [piece.token for piece in ask(conversation, question)]
        assert answer["text"] == conversation.turns[-1]["content"]
        assert answer["reused"] == conversation.reused
        assert answer["processed"] == conversation.processed
    notes = [line for line in run.stderr.decode().splitlines() if line.startswith("reused ")]
    assert len(notes) == 2 and notes[0].startswith("reused 0, processed ")
    quiet = chat(folder, "Who?\n", "-q")
    assert (quiet.returncode, quiet.stderr) == (0, b"")
    assert quiet.stdout.decode() == answers[0]["text"] + "\n"


def test_commands_change_the_conversation(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = ["One?", "Two?", "/undo", "/system Be brief.", f"/save {saved}", "/exit", "No"]
    run = chat(folder, "\n".join(lines))
    assert run.returncode == 0
    messages = json.loads(saved.read_text("utf-8"))
    assert [each["role"] for each in messages] == ["system", "user", "assistant"]
    assert [each["content"] for each in messages[:2]] == ["Be brief.", "One?"]
    assert run.stderr.decode().count("reused ") == 2  # nothing comes after /exit


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "/rest: there is no such command: /help lists them (Did you mean '/reset'?)"),
        ("/undo 2", "/undo stands alone: leave out '2'"),
        ("/exit now", "/exit stands alone: leave out 'now'"),
    ],
)
def test_a_command_that_cannot_be_obeyed_counts_as_a_failure(
    folder: Path, line: str, message: str
) -> None:
    run = chat(folder, f"One?\n{line}\nTwo?\n", "--json")
    assert run.returncode == 2 and message in run.stderr.decode().splitlines()
    assert [json.loads(each)["reused"] > 0 for each in run.stdout.splitlines()] == [False, True]


def test_another_model_goes_on_with_the_conversation(folder: Path, tmp_path: Path) -> None:
    other, saved = tmp_path / "other", tmp_path / "talk.json"
    tiny_model(other, "llama_gqa", "numpy")
    lines = ["One?", f"/model {other}", "/model nowhere/at/all", "Two?", f"/save {saved}"]
    run = chat(folder, "\n".join(lines))
    assert run.returncode == 3  # of the model that is nowhere
    assert len(json.loads(saved.read_text("utf-8"))) == 4
    assert "other goes on with the conversation" in run.stderr.decode()
    assert run.stderr.decode().count("reused 0,") == 2  # another model, another cache


def test_a_full_context_is_told_in_one_line_and_the_chat_goes_on(folder: Path) -> None:
    run = chat(folder, "Who?\n" + "word " * 60 + "\n/reset\nWho?\n", "-c", "40")
    said = run.stderr.decode()
    assert run.returncode == 2 and said.count("the context ends at 40: /undo") == 1
    first, second = run.stdout.decode().splitlines()
    assert first == second


def test_a_file_that_cannot_be_saved_is_an_exit_code_on_a_pipe(
    folder: Path, tmp_path: Path
) -> None:
    run = chat(folder, f"Who?\n/save {tmp_path / 'no' / 'talk.json'}\nWho?\n", "-q")
    assert run.returncode == 1 and len(run.stdout.splitlines()) >= 2  # both answers
    assert len(run.stderr.splitlines()) == 1


def test_a_model_without_template_is_refused_with_a_remedy() -> None:
    run = command("chat", stdin=b"Hi\n")
    assert_fails(run, 2, "has no chat template: use `kvgen generate` or --no-chat-template")
    assert command("chat", "--no-chat-template", "-n", "2", "-q", stdin=b"Hi\n").returncode == 0


def test_a_line_that_is_not_utf8_is_refused(folder: Path) -> None:
    arguments = ["-m", str(folder), "--backend", "numpy", "-q"]
    run = command("chat", *arguments, stdin=b"\xff\n")
    assert_fails(run, 2, "standard input: is not valid UTF-8")
    run = command("chat", *arguments, stdin="Hi\n".encode("utf-16"))
    assert_fails(run, 2, "is not valid UTF-8; it looks like UTF-16: save it as UTF-8")


def test_a_byte_order_mark_is_no_part_of_the_first_message(folder: Path) -> None:
    plain, marked = (chat(folder, mark + "Hi\n\ufeffHi\n", "--json") for mark in ("", "\ufeff"))
    counts = [
        [json.loads(line)["prompt_tokens"] for line in run.stdout.splitlines()]
        for run in (plain, marked)
    ]
    assert counts[0] == counts[1] and len(counts[0]) == 2


class Terminal:
    """The command on a terminal of its own, which is its controlling one."""

    def __init__(self, *arguments: str, columns: int = 80) -> None:
        self.pid, self.controller = pty.fork()
        if self.pid == 0:
            environment = os.environ | {
                "TERM": "xterm",
                "COLUMNS": str(columns),
                "PYTHONWARNINGS": "ignore",
            }
            os.execve(sys.executable, [*KVGEN, *arguments], environment)
        self.shown = b""

    def until(self, text: str, *, after: int = 0) -> int:
        """Read until the text has come; its end."""
        while text.encode() not in self.shown[after:]:
            assert select.select([self.controller], [], [], 30)[0], self.shown[-500:]
            part = os.read(self.controller, 4096)
            if b"\x1b[6n" in part:  # where the cursor is
                os.write(self.controller, b"\x1b[1;1R")
            self.shown += part
        return self.shown.index(text.encode(), after) + len(text.encode())

    def type(self, text: str) -> None:
        os.write(self.controller, text.encode())

    def end(self) -> int:
        """The exit code."""
        try:
            while part := os.read(self.controller, 4096):
                self.shown += part
        except OSError:  # the other end is closed
            pass
        os.close(self.controller)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_ctrl_c_stops_the_answer_and_twice_at_the_prompt_leaves(
    folder: Path, model: Model, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.json"
    endless = [f"--logit-bias={token}=false" for token in model.stop_ids]
    terminal = Terminal(
        "chat", "-m", str(folder), "--greedy", "-n", "1000", "--backend", "numpy", *endless
    )
    at = terminal.until(">>>")
    terminal.type("Once upon a time\r")
    at = terminal.until("\x1b[?2004l", after=at)  # the prompt has ended
    for _ in range(3):  # lines of the answer, whatever ends the prompt
        at = terminal.until("\n", after=at)
    terminal.type("\x03")
    at = terminal.until("stopped: the answer so far is kept", after=at)
    at = terminal.until(">>>", after=at)
    terminal.type(f"/save {saved}\r")
    at = terminal.until("messages", after=at)
    at = terminal.until(">>>", after=at)
    terminal.type("abc\x03\x03")
    assert terminal.end() == 130
    question, answer = json.loads(saved.read_text("utf-8"))
    assert question["content"] == "Once upon a time"
    assert 0 < len(model.encode(answer["content"])) < 1000


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_help_breaks_between_words_on_a_narrow_terminal(folder: Path) -> None:
    terminal = Terminal("chat", "-m", str(folder), "--backend", "numpy", columns=40)
    at = terminal.until(">>>")
    terminal.type("/help\r")
    at = terminal.until("write the messages to a\r\nfile, as JSON\r\n", after=at)
    at = terminal.until("sends it.\r\n", after=at)
    terminal.until(">>>", after=at)
    terminal.type("\x04")
    assert terminal.end() == 0
