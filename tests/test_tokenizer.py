"""Text to ids and back: whole characters, stop texts, start tokens, broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from kvgen.errors import CheckpointError, UsageError
from kvgen.model import default_model
from kvgen.tokenizer import Tokenizer, open_tokenizer

FILE = default_model() / "tokenizer.json"
TEXTS = ["The cat sat.", " two  spaces\n\ttab", "naïve café — 月の光 🐈‍⬛ ok", "", "\x00\x1b[2J"]


def opened(path: Path, settings: dict[str, Any]) -> Tokenizer:
    tokenizer = open_tokenizer(path.parent, settings)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return opened(FILE, {"eos_token": "<|endoftext|>"})


def changed(tmp_path: Path, change: dict[str, Any]) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(FILE.read_text(encoding="utf-8")) | change))
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_token_bytes_join_to_the_text(text: str, tokenizer: Tokenizer) -> None:
    start, *ids = tokenizer.encode(text)
    assert tokenizer.token_bytes(start) == b"<|endoftext|>"
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_an_unknown_id_stands_for_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(99_999) == b""


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_yields_whole_characters_that_join_to_the_text(
    text: str, tokenizer: Tokenizer
) -> None:
    stream = tokenizer.stream(tokenizer.encode("A start."))
    pieces = [stream.push(token) for token in tokenizer.encode(text)[1:]]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.finish() == text


def test_a_character_cut_off_at_the_end_comes_out_as_a_replacement(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream([])
    *most, _ = tokenizer.encode("a月")[1:]
    assert "".join(map(stream.push, most)) + stream.finish() == "a\ufffd"


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ((), "The cat sat on the mat."),
        (("sat",), "The cat "),
        (("t sat o",), "The ca"),  # straddles tokens
        (("mat.", "on"), "The cat sat "),
        (("mat!",), "The cat sat on the mat."),  # held back, then released
        (("T",), ""),
    ],
)
def test_a_stream_ends_before_a_stop_text(
    stops: tuple[str, ...], expected: str, tokenizer: Tokenizer
) -> None:
    stream = tokenizer.stream([], stops=stops)
    text = ""
    for token in tokenizer.encode("The cat sat on the mat.")[1:]:
        text += stream.push(token)
        if stream.stopped:
            break
    assert text + stream.finish() == expected
    assert stream.stopped == (expected != "The cat sat on the mat.")


def test_an_empty_stop_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="must not be empty"):
        tokenizer.stream([], stops=("a", ""))


def test_text_that_is_not_utf8_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="not valid UTF-8"):
        tokenizer.encode(b"\xff".decode(errors="surrogateescape"))


def test_padding_and_truncation_of_a_training_run_are_dropped(tmp_path: Path) -> None:
    path = changed(
        tmp_path,
        {
            "truncation": {
                "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
            },
            "padding": {
                "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
            },
        },
    )  # fmt: skip
    plain = opened(FILE, {}).encode("The cat sat on the mat again")
    assert opened(path, {}).encode("The cat sat on the mat again") == plain


@pytest.mark.parametrize("eos", ["<|endoftext|>", {"content": "<|endoftext|>", "lstrip": False}])
def test_the_end_token_is_found_in_either_form(eos: object) -> None:
    assert opened(FILE, {"eos_token": eos}).eos_id == 0
    assert opened(FILE, {}).eos_id is None


def test_a_start_token_is_added_once(tmp_path: Path) -> None:
    settings = {"bos_token": "<|endoftext|>", "add_bos_token": True}
    bare = changed(tmp_path, {"post_processor": None})
    assert opened(bare, {}).encode("cat")[:1] != [0]
    assert opened(bare, settings).encode("cat")[:1] == [0]
    assert opened(FILE, settings).encode("cat") == opened(FILE, {}).encode("cat")


def byte_fallback(tmp_path: Path) -> Tokenizer:
    """A SentencePiece kind of tokenizer: unknown characters are spelled as tokens of one byte."""
    pieces = ["<unk>", "▁", "a", "b", "▁a", "▁b", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True
        )
    )
    library.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    library.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    return opened(tmp_path / "tokenizer.json", {})


def test_tokens_of_one_byte_stream_as_characters(tmp_path: Path) -> None:
    tokenizer = byte_fallback(tmp_path)
    ids = tokenizer.encode("a 月 b 🐈 a")
    assert b"".join(map(tokenizer.token_bytes, ids)) == " a 月 b 🐈 a".encode()
    stream = tokenizer.stream([])
    assert "".join(map(stream.push, ids)) + stream.finish() == "a 月 b 🐈 a"


def test_stray_bytes_never_stop_a_stream(tmp_path: Path) -> None:
    tokenizer = byte_fallback(tmp_path)
    cat = tokenizer.encode("🐈")[1:]
    random = np.random.RandomState(0)
    for prompt in ([], tokenizer.encode("a 🐈")):
        for _ in range(300):
            stream = tokenizer.stream(prompt)
            ids = [*cat, *random.randint(1, 262, 12).tolist(), 4, 5]
            text = "".join(map(stream.push, ids)) + stream.finish()
            assert text.endswith(("a b", "ab")), text


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": 3}'])
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: is not a usable tokenizer"):
        opened(path, {})
