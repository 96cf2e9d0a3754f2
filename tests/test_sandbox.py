"""Chat templates that would never end or take all memory: bounded, and told in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvgen.errors import CheckpointError, KvgenError, UsageError
from kvgen.loading import default_model
from kvgen.text import chat, sandbox
from kvgen.text.chat import render
from tests.chats import CONVERSATIONS, said
from tests.command import KVGEN

HELLO = CONVERSATIONS["one message"]
ENDLESS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory exactly")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are reached soon."""
    monkeypatch.setattr(chat, "_MOST_SECONDS", 1.5)
    monkeypatch.setattr(chat, "_MOST_BYTES", 64 * 2**20)


@LINUX
@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 3000000000 }}",
        "{{ 'a' * 10**18 }}",
        "{% set ns = namespace(s='a') %}{% for _ in range(64) %}{% set ns.s = ns.s ~ ns.s %}"
        "{% endfor %}",
        "{{ '{:>999999999}'.format('a') }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ [1] * 999999999 }}",
        "{{ (1,) * 999999999 }}",
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
        "{{ range(99999) | join('a' * 100000) }}",
        "{{ [1] | batch(999999999, 0) | list }}",
        "{{ range(99999) | list | tojson(indent=99999) }}",
    ],
    ids=lambda template: template[:40],
)
@pytest.mark.usefixtures("narrow")
def test_memory_is_bounded(template: str) -> None:
    with pytest.raises(CheckpointError, match=r"^the chat template takes more memory than 64 MiB$"):
        render(template, HELLO, tokens={})


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in range(999) %}{% set x = (7 + i) ** (7 ** 8) %}{% endfor %}",
    ],
    ids=lambda template: template[:40],
)
@pytest.mark.usefixtures("narrow")
def test_time_is_bounded(template: str) -> None:
    with pytest.raises(CheckpointError, match=r"^the chat template takes more than 1\.5 seconds$"):
        render(template, HELLO, tokens={})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ " + "[" * 50000 + "]" * 50000 + " }}", "recursion"),
        ("{{ 1" + " + 1" * 20000 + " }}", "recursion"),
        ("{{ 'a' * 20000000 }}", "its text has more than 16,777,216 characters"),
        ("{{ nothing\x1b]0;x\x07 }}", "unexpected char '\\\\x1b' at"),
    ],
    ids=lambda value: value[:20],
)
def test_other_excesses_are_told_in_one_line(template: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^the chat template is broken: .*{message}"):
        render(template, HELLO, tokens={})


def test_a_long_refusal_is_cut() -> None:
    with pytest.raises(UsageError) as raised:
        render("{{ raise_exception('no' * 10**6) }}", HELLO, tokens={})
    assert len(str(raised.value)) < 1100


def test_any_text_comes_through_unchanged() -> None:
    text = "\x00 \r\n \x1b \u2028 é 月 🐈\u200d⬛ \ud800 \ufeff"
    messages = [said("user", text)]
    assert render("{{ messages[0].content }}|", messages, tokens={}) == text + "|"


def test_the_other_process_finds_modules_where_this_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative PYTHONPATH would lead elsewhere now
    for name in ("json", "datetime", "jinja2"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    assert render("{{ 1 }}", HELLO, tokens={}) == "1"


def test_a_template_is_rendered_in_any_thread() -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(render("{{ 1 }}", HELLO, tokens={})))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["1"] * 4


@pytest.mark.parametrize("name", ["", "/no/such/python", "/bin/true", "/bin/echo"])
def test_where_no_interpreter_starts_it_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", name)
    with pytest.raises(
        KvgenError, match=r"^a chat template runs in a process of its own"
    ) as raised:
        render("{{ 1 }}", HELLO, tokens={})
    assert raised.value.exit_code == 1


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for end, message in (
        ("print('{', end='')", "is broken: its process ended with 0"),
        ("import os; sys.stdout.flush(); os.kill(os.getpid(), 9)", "takes more memory than"),
        ("import os; sys.stdout.flush(); os.kill(os.getpid(), 11)", "ended with -11"),
    ):
        script = f"import sys; print('ready'); {end}"
        monkeypatch.setattr(
            sandbox, "_command", lambda *_, code=script: [sys.executable, "-c", code]
        )
        with pytest.raises(CheckpointError, match=message):
            render("{{ 1 }}", HELLO, tokens={})


def test_memory_is_looked_at_where_the_system_does_not_bound_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_resident_bytes", lambda _: 2**40)
    with pytest.raises(CheckpointError, match="takes more memory than 512 MiB"):
        render(ENDLESS, HELLO, tokens={})


def _children(process_id: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process_id and fields[0] != "Z":
            found.append(int(place.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_both_processes(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    for file in default_model().iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").write_text(ENDLESS)
    process = subprocess.Popen(
        [*KVGEN, "generate", "hi", "--chat", "-m", str(tmp_path), "--backend", "numpy"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    while not (children := _children(process.pid)) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, sent)  # as Ctrl-C does
    text, message = process.communicate(timeout=60)
    assert (process.returncode, text) == (code, b"")
    assert message.count(b"\n") == 1 and b"Traceback" not in message
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)
