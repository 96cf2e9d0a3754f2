"""Text to token ids and back, over the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from kvgen.errors import CheckpointError, UsageError


class Tokenizer:
    """A checkpoint's tokenizer.json, with what tokenizer_config.json adds to it."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Raises CheckpointError where the file cannot be used."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
            self.eos_id = self._special_id(settings.get("eos_token"))
            self._bos_id = self._special_id(settings.get("bos_token"))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{path}: is not a usable tokenizer: {error}") from None
        # Ids run from 0 to n_tokens - 1; the embedding may have more rows.
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.n_tokens = max(vocabulary.values(), default=-1) + 1
        if not self.n_tokens:
            raise CheckpointError(f"{path}: has no tokens")
        # Files saved in training may pad or cut; a prompt is neither padded nor cut.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._add_bos = settings.get("add_bos_token") is True
        self._byte_level = "ByteLevel" in repr(self._tokenizer.decoder)

    def encode(self, text: str) -> list[int]:
        """The text's ids, with the start token where tokenizer.json or its config adds one."""
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes of a command line that no text was made of
            raise UsageError("the prompt is not valid UTF-8") from None
        try:
            ids = list(self._tokenizer.encode(text).ids)
        except Exception as error:
            raise CheckpointError(f"the tokenizer cannot encode the prompt: {error}") from None
        if self._add_bos and self._bos_id is not None and ids[:1] != [self._bos_id]:
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
