"""Chat templates: the text that a model was trained to see, from programs nobody here has read."""

from __future__ import annotations

import io
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import kvgen
from kvgen.errors import CheckpointError, KvgenError, UsageError
from kvgen.model import Model
from kvgen.sampling import SamplingOptions
from kvgen.text import chat
from kvgen.text import template as program
from kvgen.text.chat import find_template, has_template, render
from tests import tiny
from tests.chats import (
    CONVERSATIONS,
    FEATURES,
    TEMPLATES,
    TOKENS,
    July26,
    Messages,
    said,
    write_default_model,
)
from tests.command import assert_fails, inside
from tests.token_files import tokenizer_json

GOLDEN = json.loads((Path(__file__).parent / "golden" / "chats.json").read_text("utf-8"))
HELLO = CONVERSATIONS["one message"]
TURNS = CONVERSATIONS["several turns"]


@pytest.fixture(autouse=True)
def a_clock_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "datetime", July26)


def assert_renders(
    expected: str | dict[str, str], template: str, messages: Messages, tokens: dict[str, str]
) -> None:
    """The expected text; where the reference implementation raises, so does kvgen."""
    if isinstance(expected, str):
        assert render(template, messages, tokens=tokens) == expected
        return
    kind = UsageError if expected["raises"] == "TemplateError" else CheckpointError
    with pytest.raises(kind) as raised:
        render(template, messages, tokens=tokens)
    assert raised.type is kind


# --- against the reference implementation -----------------------------------------------------


def answer_here(request: dict[str, Any], **_: float) -> dict[str, Any]:
    """What the other process would answer, by its own function in this one."""
    content = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        answer: dict[str, Any] = json.loads(program._answer().decode("utf-8", "surrogatepass"))
    return answer


@pytest.mark.parametrize("title", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_equal_the_reference_implementation(
    name: str, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if CONVERSATIONS[title] is not HELLO:  # one of each template in a process of its own
        monkeypatch.setattr(chat.sandbox, "ask", answer_here)
    expected = GOLDEN["templates"][name][title]
    assert_renders(expected, TEMPLATES[name], CONVERSATIONS[title], TOKENS[name])


@pytest.mark.parametrize("title", FEATURES)
def test_the_template_language_equals_the_reference_implementation(title: str) -> None:
    assert_renders(GOLDEN["features"][title], FEATURES[title], TURNS, TOKENS["phi3"])


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_the_golden_file_is_what_transformers_makes_now() -> None:
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    from tests.golden.make_chats import make

    assert make() | {"versions": GOLDEN["versions"]} == GOLDEN


def test_the_date_is_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "datetime", datetime)
    before = datetime.now()
    now = render("{{ strftime_now('%Y-%m-%dT%H:%M:%S.%f') }}", HELLO, tokens={})
    assert before <= datetime.fromisoformat(now) <= datetime.now()


# --- programs that want more than a text ------------------------------------------------------

ESCAPES = {
    "{{ ''.__class__.__mro__ }}": "access to attribute '__class__' of 'str' object is unsafe",
    "{{ messages.__class__.__base__.__subclasses__() }}": "attribute '__class__' of 'list'",
    "{{ raise_exception.__globals__['json'] }}": "attribute '__globals__' of 'function'",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}": "attribute '__init__' of 'type'",
    "{{ '{0.__class__.__mro__}'.format(1) }}": "attribute '__class__' of 'int' object is unsafe",
    "{{ ('{0.__class__.__mro__}' | attr('format'))(1) }}": "attribute '__class__' of 'int'",
    "{% set ns = namespace(__class__=1) %}{{ ns.__class__.mro() }}": "'__class__' of 'Namespace'",
    "{% set ns = namespace(__call__=strftime_now) %}{{ ns('%d') }}": "object is not callable",
    "{{ messages.append(1) }}": "access to attribute 'append' of 'list' object is unsafe",
    "{{ messages[0].update(content='x') }}": "access to attribute 'update' of 'dict' object",
    "{{ messages[0].pop('role') }}": "access to attribute 'pop' of 'dict' object is unsafe",
    "{{ dict.update(messages[0], content='x') }}": "has no attribute 'update'",
    "{{ dict.__class__.__mro__ }}": "attribute '__class__' of '_Dict' object is unsafe",
    "{% set messages.x = 1 %}": "cannot assign attribute on non-namespace object",
    "{% include '/etc/passwd' %}": "no loader for this environment",
    "{% import 'os' as os %}": "no loader for this environment",
    "{% for i in range(10**9) %}{% endfor %}": "Range too big",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}": "maximum recursion depth",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "recursion",
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30: "too many statically nested blocks",
    "{{ 1 // 0 }}": "zero",
    "{{ strftime_now(3) }}": "must be str",
    "{{ undefined_function() }}": "'undefined_function' is undefined",
}  # fmt: skip


@pytest.mark.parametrize("template", ESCAPES, ids=lambda template: template[:50])
def test_a_program_that_leaves_its_place_is_refused(template: str) -> None:
    messages = [said("user", "Hello!")]
    with pytest.raises(CheckpointError, match="the chat template is broken: ") as raised:
        render(template, messages, tokens={})
    assert ESCAPES[template] in str(raised.value) and "\n" not in str(raised.value)
    assert messages == [said("user", "Hello!")]


def test_what_is_unsafe_prints_as_nothing() -> None:
    template = "[{{ ''.__class__ }}{{ messages.__len__ }}{{ '' | attr('__class__') }}]"
    assert render(template, HELLO, tokens={}) == "[]"


def test_a_template_sees_plain_values_only() -> None:
    class Note(str):
        def burn(self) -> str:
            raise AssertionError("a method of the caller's object ran")

    messages = [said("user", Note("Hello!"), more=[Note("x")])]
    assert render("{{ messages[0].content }}", messages, tokens={}) == "Hello!"
    for template in ("{{ messages[0].content.burn() }}", "{{ messages[0].more[0].burn() }}"):
        with pytest.raises(CheckpointError, match="has no attribute 'burn'"):
            render(template, messages, tokens={})


def test_a_refusal_is_told_in_the_words_of_the_template() -> None:
    with pytest.raises(UsageError, match=r"^the model's chat template: No system message, please$"):
        render("{{ raise_exception('No system\n message, please') }}", HELLO, tokens={})


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ messages", "{% nonsense %}", "{{ 1 | nonsense }}"]
)
def test_broken_syntax_is_told_in_one_line(template: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template is broken: ") as raised:
        render("one\n" + template, HELLO, tokens={})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "a chat needs a message"),
        ([{}], "needs a role and a content"),
        ([{"role": "user"}], "needs a role and a content"),
        ([*HELLO, "role and content"], "needs a role and a content"),
        ([3], "needs a role and a content"),
        ([said("user", object())], "must be plain text: Object of type object is not JSON"),
        ([said("user", b"Hello!")], "must be plain text: Object of type bytes is not JSON"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render("{{ messages[0].content }}", messages, tokens={})


# --- where a template comes from --------------------------------------------------------------


def with_settings(folder: Path, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_files_come_before_the_settings(tmp_path: Path) -> None:
    assert find_template(tmp_path) is None and not has_template(tmp_path)
    assert find_template(with_settings(tmp_path, chat_template="from the settings")) == (
        "from the settings"
    )
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("for documents")
    with pytest.raises(CheckpointError, match="no chat template is called `default`, only rag"):
        find_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("from the file: 月\n", encoding="utf-8")
    assert find_template(tmp_path) == "from the file: 月\n" and has_template(tmp_path)


@pytest.mark.parametrize(
    "named",
    [
        [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}],
        {"tool_use": "t", "default": "d"},
    ],
)
def test_of_several_templates_the_default_one_is_taken(named: object, tmp_path: Path) -> None:
    assert find_template(with_settings(tmp_path, chat_template=named)) == "d"


BROKEN_TEMPLATES: list[tuple[object, str]] = [
    ([{"name": "tool_use", "template": "t"}], "no chat template is called `default`, only tool_"),
    ({"rag": "x", "tools": "y"}, "no chat template is called `default`, only rag, tools"),
    ([], "chat_template should be a text"),
    (["x"], "chat_template should be a text"),
    ([{"name": "default", "template": 3}], "chat_template should be a text"),
    ({"default": ["d"]}, "chat_template should be a text"),
    (3, "chat_template should be a text"),
]


@pytest.mark.parametrize(("template", "message"), BROKEN_TEMPLATES)
def test_a_template_that_cannot_be_used_stops_only_a_chat(
    template: object, message: str, tmp_path: Path
) -> None:
    folder = tiny_chat(tmp_path, chat_template=template)
    with pytest.raises(CheckpointError, match=message):
        find_template(folder)
    run_all_but_chat(folder, message)


def test_a_file_that_is_no_text_stops_only_a_chat(tmp_path: Path) -> None:
    folder = tiny_chat(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: cannot be read: 'utf-8'"):
        find_template(folder)
    run_all_but_chat(folder, "chat_template.jinja: cannot be read")


def tiny_chat(folder: Path, **settings: Any) -> Path:
    """A tiny model with a tokenizer."""
    tiny.write_checkpoint(folder, "qwen2")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    return with_settings(folder, **settings)


def run_all_but_chat(folder: Path, message: str) -> None:
    """Every command runs, and a chat ends with this message."""
    model = ["-m", str(folder), "--backend", "numpy"]
    assert inside("generate", "ab", *model, "-n", "2", "-q").returncode == 0
    assert inside("info", "-m", str(folder)).returncode == 0
    assert inside("verify", *model, "-p", "9", "-q").returncode == 0
    assert_fails(inside("generate", "ab", "--chat", *model), 4, message)


def test_a_template_may_name_the_special_tokens(tmp_path: Path) -> None:
    """Those of special_tokens_map.json too, and those that only this model has."""
    settings = {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "pad_token": None,
        "add_bos_token": True,
        "image_token": "<image>",
        "chat_template": "{{ bos_token }}{{ image_token }}{{ eos_token }}{{ pad_token }}",
    }
    folder = tiny_chat(tmp_path, **settings)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<end>"}')
    model = kvgen.load(folder, backend="numpy")
    assert model.render_chat(HELLO) == "<s><image><end>"


# --- the library that renders -----------------------------------------------------------------


def test_a_missing_jinja_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(KvgenError, match=r"need jinja2: pip install 'jinja2>=3.1.6'$") as raised:
        render("a", HELLO, tokens={})
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(("version", "fits"), [("3.1.5", False), ("3.1.6", True), ("3.2rc1", True)])
def test_a_jinja_with_a_leaky_sandbox_is_refused(
    version: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    if fits:
        assert render("a", HELLO, tokens={}) == "a"
        return
    with pytest.raises(KvgenError, match=r"a newer jinja2: pip install 'jinja2>=3.1.6'$"):
        render("a", HELLO, tokens={})


# --- as users have it -------------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content | trim }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model with a chat template."""
    path = tmp_path_factory.mktemp("chat") / "model"
    write_default_model(path, TEMPLATE)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return kvgen.load(folder, backend="numpy")


def generate(*arguments: str) -> list[str]:
    """A command line for two greedy tokens on the numpy backend."""
    return ["generate", *arguments, "-n", "2", "--greedy", "--backend", "numpy"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--chat"], "<|endoftext|>user: Hi\nassistant:"),
        (["--chat", "--system", "Be 月."], "<|endoftext|>system: Be 月.\nuser: Hi\nassistant:"),
        (["--system", ""], "<|endoftext|>system: \nuser: Hi\nassistant:"),
    ],
    ids=["chat", "chat and system", "system"],
)
def test_a_chat_is_encoded_with_the_one_start_token_of_its_template(
    flags: list[str], text: str, folder: Path, model: Model
) -> None:
    run = inside(*generate(" Hi\n", *flags, "-m", str(folder), "--json"))
    assert run.returncode == 0 and run.stderr == b"", run.stderr
    ids = json.loads(run.stdout)["prompt_ids"]
    assert ids == model.encode(text, special_tokens=False)
    assert ids.count(0) == 1 and ids[0] == 0


def test_a_chat_continues_as_its_text_does(folder: Path, model: Model) -> None:
    ids = model.encode(model.render_chat([said("user", "Hi")]), special_tokens=False)
    pieces = model.generate(ids, max_new_tokens=2, sampling=SamplingOptions())
    run = inside(*generate("Hi", "--chat", "-m", str(folder), "-q"))
    assert run.stdout.decode() == "".join(piece.text for piece in pieces) != ""


def test_echo_prints_the_text_that_the_template_made(folder: Path) -> None:
    run = inside(*generate("Hi", "--system", "Be brief.", "--echo", "-q", "-m", str(folder)))
    assert run.stdout.startswith(b"<|endoftext|>system: Be brief.\nuser: Hi\nassistant:")


NOTE = b"this model has a chat template: --chat uses it, --raw ends this note\n"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--echo"], True), (["--raw"], False), (["--chat"], False), (["-q"], False)],
    ids=["neither", "raw", "chat", "quiet"],
)
def test_a_template_that_is_not_used_is_pointed_out(
    flags: list[str], expected: bool, folder: Path
) -> None:
    run = inside(*generate("Hi", *flags, "-m", str(folder)))
    assert run.returncode == 0 and (NOTE in run.stderr) == expected


def test_a_raw_prompt_is_not_changed_by_a_template(folder: Path) -> None:
    ids = [
        json.loads(inside(*generate("Hi", *flags, "--json")).stdout)["prompt_ids"]
        for flags in (["-m", str(folder)], ["--raw", "-m", str(folder)], [])
    ]
    assert ids[0] == ids[1] == ids[2]


def test_attention_is_inspected_in_a_chat(folder: Path, model: Model) -> None:
    base = ["inspect-attention", "Hi", "-m", str(folder), "--backend", "numpy", "-l", "2"]
    run = inside(*base, "-H", "1", "--chat")
    ids = model.encode("<|endoftext|>user: Hi\nassistant:", special_tokens=False)
    assert run.returncode == 0 and run.stderr == b"", run.stderr
    text = run.stdout.decode()
    assert f"· {len(ids)} tokens" in text and "⏎" in text
    assert NOTE in inside(*base).stderr
    assert_fails(inside(*base, "--raw", "--system", "x"), 2, "--system needs the chat template")


@pytest.mark.parametrize("command", ["generate", "inspect-attention"])
def test_a_system_message_without_a_chat_is_refused_before_a_model_is_looked_for(
    command: str,
) -> None:
    run = inside(command, "Hi", "--raw", "--system", "x", "-m", "no/such/model")
    assert_fails(run, 2, "--system needs the chat template: leave out --raw")


def test_a_system_message_that_is_not_utf8_is_refused(folder: Path) -> None:
    text = b"\xff".decode(errors="surrogateescape")
    run = inside(*generate("Hi", "--system", text, "-m", str(folder)))
    assert_fails(run, 2, "--system: is not valid UTF-8")


def test_a_chat_without_a_template_is_refused() -> None:
    for flags in (["--chat"], ["--system", "x"]):
        assert_fails(inside(*generate("Hi", *flags)), 4, "has no chat template: leave out --chat")


@pytest.mark.parametrize(
    ("template", "code", "message"),
    [
        ("{{ raise_exception('No, thanks') }}", 2, "the model's chat template: No, thanks"),
        ("{% for %}", 4, "the chat template is broken: "),
        ("{{ messages.append(1) }}", 4, "attribute 'append' of 'list' object is unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", 4, "Range too big"),
        ("\n{{ nothing.at.all }}", 4, "'nothing' is undefined"),
    ],
)
def test_a_template_that_fails_is_told_in_one_line(
    template: str, code: int, message: str, folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        if file.suffix != ".jinja":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").write_text(template)
    assert_fails(inside(*generate("Hi", "--chat", "-m", str(tmp_path))), code, message)
    assert inside(*generate("Hi", "--raw", "-q", "-m", str(tmp_path))).returncode == 0


def test_a_missing_jinja_has_the_exit_code_of_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert_fails(inside(*generate("Hi", "--chat", "-m", str(folder))), 1, "need jinja2: pip")
    assert inside(*generate("Hi", "--raw", "-m", str(folder))).returncode == 0


def test_a_chat_may_take_several_turns(model: Model) -> None:
    text = model.render_chat(TURNS)
    assert text == (
        "<|endoftext|>user: What is a cache?\nassistant: A place for what is asked again.\n"
        "user: And a KV cache?\nassistant:"
    )
