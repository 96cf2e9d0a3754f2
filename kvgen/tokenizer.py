"""Text to token ids and back, over the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream
from tokenizers.models import BPE

from kvgen.errors import CheckpointError, UsageError

FILE = "tokenizer.json"
_KNOWN_CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer")
# How Qwen's tokenizer cuts a text before merging (transformers, tokenization_qwen2.py).
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """A checkpoint's tokenizer, with what tokenizer_config.json adds to it.

    Made by `open_tokenizer`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
        """Raises ValueError where there are no tokens."""
        self._tokenizer = tokenizer
        self.eos_id = self._special_id(settings.get("eos_token"))
        self._bos_id = self._special_id(settings.get("bos_token"))
        # Ids run from 0 to n_tokens - 1; the embedding may have more rows.
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.n_tokens = max(vocabulary.values(), default=-1) + 1
        if not self.n_tokens:
            raise ValueError("it has no tokens")
        # Files saved in training may pad or cut; a prompt is neither padded nor cut.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._add_bos = settings.get("add_bos_token") is True
        self._byte_level = "ByteLevel" in repr(self._tokenizer.decoder)

    @property
    def kind(self) -> str:
        """The algorithm, as tokenizer.json calls it: BPE, Unigram, ..."""
        return type(self._tokenizer.model).__name__

    def name(self, token: int) -> str:
        """The token's own spelling in the vocabulary, such as `<|endoftext|>`."""
        return self._tokenizer.id_to_token(token) or ""

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """The text's ids, with the start token where tokenizer.json or its config adds one.

        Without `special_tokens` none is added: the text of a chat template brings its own.
        """
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes of a command line that no text was made of
            raise UsageError("the prompt is not valid UTF-8") from None
        try:
            ids = list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)
        except Exception as error:
            raise CheckpointError(f"the tokenizer cannot encode the prompt: {error}") from None
        if (
            special_tokens
            and self._add_bos
            and self._bos_id is not None
            and ids[:1] != [self._bos_id]
        ):
            ids.insert(0, self._bos_id)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for, which need not be whole characters.

        A special token stands for its own name, an id without a token for nothing.
        """
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level and all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):  # SentencePiece's byte fallback
            return bytes([int(match[1], 16)])
        return piece.replace("\u2581", " ").encode()

    def stream(self, prompt_ids: Sequence[int], *, stops: Sequence[str] = ()) -> TextStream:
        """A stream for the text that continues the prompt."""
        return TextStream(self._tokenizer, prompt_ids, stops=stops)

    def _special_id(self, token: Any) -> int | None:
        name = token.get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(name) if isinstance(name, str) else None


def open_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, None where it has none that kvgen can read.

    It comes from tokenizer.json, or from vocab.json and merges.txt, GPT-2's two files: these do not
    say how a text is cut into words, so the class that tokenizer_config.json names has to be a
    known one. Raises CheckpointError where a file is broken.
    """
    path = folder / FILE
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    try:
        if path.exists():
            return Tokenizer(tokenizers.Tokenizer.from_buffer(path.read_bytes()), settings)
        path = folder / "vocab.json"
        if kind in _KNOWN_CLASSES and path.exists() and (folder / "merges.txt").exists():
            return Tokenizer(_from_merges(folder, settings, kind), settings)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: is not a usable tokenizer: {error}") from None
    return None


def missing_tokenizer(folder: Path) -> str:
    """What to say of a folder without a tokenizer that can be used."""
    others = ("tokenizer.model", "vocab.json")
    found = next((name for name in others if (folder / name).exists()), None)
    instead = ""
    if found is not None:
        instead = (
            f' (found {found}; to convert: python -c "from transformers import AutoTokenizer as '
            f"T; T.from_pretrained('{folder}').save_pretrained('{folder}')\")"
        )
    return f"{folder}: {FILE} is missing{instead}"


def _from_merges(folder: Path, settings: Mapping[str, Any], kind: str) -> tokenizers.Tokenizer:
    """A byte-level BPE with the word rules of that class and the tokens that settings add."""
    model = BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = tokenizers.Tokenizer(model)
    prefix = settings.get("add_prefix_space") is True
    if kind == "Qwen2Tokenizer":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_QWEN2_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    listed = settings.get("added_tokens_decoder", {})
    for number, token in sorted((int(number), token) for number, token in listed.items()):
        tokenizer.add_tokens([tokenizers.AddedToken(**token)])
        if tokenizer.token_to_id(token["content"]) != number:
            raise ValueError(f"{token['content']!r} should get the id {number}")
    return tokenizer


class TextStream:
    """New tokens in, whole characters out; ends before the first stop text.

    Text that may be the beginning of a stop text is held back until that is settled.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, prompt_ids: Sequence[int], *, stops: Sequence[str]
    ) -> None:
        if not all(stops):
            raise UsageError("a stop text must not be empty")
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(ids=list(prompt_ids), skip_special_tokens=True)
        self._stops = tuple(stops)
        self._undecoded: list[int] = []  # tokens that do not make whole characters yet
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token settles, often empty."""
        self._undecoded.append(token)
        try:
            text = self._decoder.step(self._tokenizer, token)
        except Exception:  # the library gives up where bytes turn out to be no character after all
            text = self._tokenizer.decode(self._undecoded, skip_special_tokens=True)
            self._decoder = DecodeStream(ids=[token], skip_special_tokens=True)
        if text is None:
            return ""
        self._undecoded.clear()
        return self._settle(text)

    def finish(self) -> str:
        """What is left at the end; bytes that never became a character come out as U+FFFD."""
        rest = self._settle(self._tokenizer.decode(self._undecoded, skip_special_tokens=True))
        rest += "" if self.stopped else self._held
        self._undecoded.clear()
        self._held = ""
        return rest

    def _settle(self, text: str) -> str:
        text = self._held + text
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        longest = max(
            (
                n
                for stop in self._stops
                for n in range(1, min(len(stop), len(text)) + 1)
                if text.endswith(stop[:n])
            ),
            default=0,
        )
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: each of the 256 bytes as one character (encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


_BYTE_OF = _byte_alphabet()
