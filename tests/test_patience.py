"""Foreign code that does not come back."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import tokenizers
from tokenizers import pre_tokenizers
from tokenizers.models import WordLevel

from kvgen.errors import CheckpointError
from kvgen.text.patience import PanicError, panics_muted, within
from kvgen.text.tokenizer import Tokenizer, open_tokenizer
from tests import tiny
from tests.command import assert_fails, kvgen
from tests.token_files import tokenizer_json


class PanicException(BaseException):
    """What a Rust library raises when it panics: no Exception, and its name is not ours."""


def raise_it(error: BaseException) -> None:
    raise error


def test_work_in_time_gives_what_it_gives() -> None:
    assert within(60, lambda: [1, 2]) == [1, 2]
    assert within(60, lambda: None) is None


def test_work_that_takes_too_long_is_left_to_itself() -> None:
    enough = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, lambda: enough.wait(60))
    enough.set()


def test_what_work_raises_is_an_exception() -> None:
    with pytest.raises(KeyError, match="x"):
        within(60, lambda: raise_it(KeyError("x")))
    with pytest.raises(PanicError, match="a panic"):
        within(60, lambda: raise_it(PanicException("a panic")))


@pytest.fixture
def slow(tmp_path: Path) -> Tokenizer:
    """A tokenizer whose pattern tries every way to cut a run of `a`."""
    tokenizer = tokenizers.Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str())))
    opened = open_tokenizer(tmp_path, {})
    assert opened is not None
    return opened


def test_a_tokenizer_that_takes_too_long_is_named(
    slow: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slow.encode("a") == [0]
    monkeypatch.setattr("kvgen.text.tokenizer._patience", lambda _: 0.1)
    with pytest.raises(CheckpointError, match="is not done with the prompt after 0 seconds: a pat"):
        slow.encode(("a" * 20 + "b") * 60)


def test_a_tokenizer_that_gives_up_is_named(slow: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match="cannot encode the prompt: "):
        slow.encode("a" * 60 + "b")


@pytest.mark.parametrize(
    "content",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AQAAAA=="}},
        {
            "model": {
                "type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
                "continuing_subword_prefix": "long",
            }
        },
    ],
)  # fmt: skip
def test_a_tokenizer_that_its_library_cannot_stand_is_named(
    content: dict[str, object], tmp_path: Path
) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model} | content))
    with pytest.raises(CheckpointError, match="tokenizer"):
        opened = open_tokenizer(tmp_path, {})
        assert opened is not None
        opened.encode("an ab")


def test_a_signal_is_not_taken_for_a_panic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("kvgen.text.tokenizer.read_file", lambda _: raise_it(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        open_tokenizer(tmp_path, {})


def test_only_our_line_tells_of_a_panic(tmp_path: Path) -> None:
    """TemplateProcessing with a token that nobody knows: the library panics, and prints so."""
    folder = tiny.write_checkpoint(tmp_path, "qwen2")
    content = tokenizer_json()
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<nobody>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert_fails(kvgen("generate", "ab", "-m", str(folder), "--backend", "numpy"), 4, "tokenizer")


def test_what_others_write_meanwhile_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with panics_muted():
        os.write(2, b"a warning\n")
    with pytest.raises(PanicError), panics_muted():
        os.write(2, b"thread panicked at lib.rs\n")
        raise PanicError("lost")
    assert capfd.readouterr().err == "a warning\n"
