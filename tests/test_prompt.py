"""The prompt as files and pipes bring it: with marks and line ends that editors add."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from kvgen.cli.prompt import PromptFlags, read_prompt
from kvgen.errors import UsageError
from tests.command import assert_fails, inside

BOM = b"\xef\xbb\xbf"
FILES = {
    b"The cat": "The cat",
    b"The cat\n": "The cat",
    b"The cat\r\n": "The cat",
    b"The cat\n\n": "The cat\n",
    b"The cat\r\n\r\n": "The cat\r\n",
    b"The cat\r": "The cat\r",
    b"The\r\ncat\rsat\r\n": "The\r\ncat\rsat",
    BOM + b"The cat\n": "The cat",
    BOM + BOM + b"The cat": "\ufeffThe cat",
    b"The" + BOM + b" cat": "The\ufeff cat",
    BOM: "",
    b"\r\n": "",
    b"": "",
}


def from_stdin(content: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return read_prompt(PromptFlags(None, None, "-"))


@pytest.mark.parametrize("content", FILES, ids=repr)
def test_what_an_editor_adds_is_no_part_of_the_prompt(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    assert read_prompt(PromptFlags(None, None, str(path))) == FILES[content]
    assert from_stdin(content, monkeypatch) == FILES[content]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("The cat".encode("utf-16"), "is not valid UTF-8; it looks like UTF-16: save it as UTF-8"),
        (b"\xfe\xff" + "The cat".encode("utf-16-be"), "it looks like UTF-16: save it as UTF-8"),
        ("The cat".encode("utf-32"), "it looks like UTF-32: save it as UTF-8"),
        (b"caf\xe9", "is not valid UTF-8$"),
    ],
)
def test_another_encoding_is_named(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"prompt\.txt: .*{message}"):
        read_prompt(PromptFlags(None, None, str(path)))
    with pytest.raises(UsageError, match=f"standard input: .*{message}"):
        from_stdin(content, monkeypatch)


@pytest.mark.parametrize("content", [b"The cat sat", BOM + b"The cat sat\r\n"], ids=repr)
def test_every_command_takes_the_same_prompt_from_a_file(content: bytes, tmp_path: Path) -> None:
    path, saved = tmp_path / "prompt.txt", tmp_path / "seen.json"
    path.write_bytes(content)
    run = inside("generate", "-f", str(path), "-n", "0", "--json", "--backend", "numpy")
    ids = json.loads(run.stdout)["prompt_ids"]
    assert (
        ids
        == json.loads(inside("generate", "The cat sat", "-n", "0", "--json").stdout)["prompt_ids"]
    )
    inside("inspect-attention", "-f", str(path), "-o", str(saved), "--backend", "numpy")
    assert len(json.loads(saved.read_text())["tokens"]) == len(ids)


def test_a_report_that_an_editor_has_saved_can_be_compared(tmp_path: Path) -> None:
    path, edited = tmp_path / "a.json", tmp_path / "b.json"
    inside("bench", "-p", "4", "-n", "1", "-r", "1", "--out", str(path), "--backend", "numpy")
    edited.write_bytes(BOM + path.read_bytes())
    run = inside("bench", "--compare", str(path), str(edited))
    assert run.returncode == 0 and b"1.000" in run.stdout, run.stderr


def test_a_prompt_file_in_another_encoding_fails_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("The cat".encode("utf-16"))
    assert_fails(inside("generate", "-f", str(path)), 2, "it looks like UTF-16: save it as UTF-8")
