"""Text to token ids and back, over the `tokenizers` library."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from kvgen.errors import CheckpointError, UsageError

FILE = "tokenizer.json"
_MERGES = ("vocab.json", "merges.txt")
_ADDED = "added_tokens.json"
# The classes that read these two files, and what <|endoftext|> is to each unless the settings say
# otherwise (transformers, tokenization_gpt2.py and its like).
_CLASSES = {
    "GPT2Tokenizer": ("bos_token", "eos_token", "unk_token"),
    "CodeGenTokenizer": ("bos_token", "eos_token", "unk_token"),
    "Qwen2Tokenizer": ("eos_token", "pad_token", "unk_token"),
}
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
        self._mark_special(settings)
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

    def ordinary_ids(self) -> list[int]:
        """Ids whose text gives that id again: no special tokens, no parts of characters."""
        ids = range(self.n_tokens)
        texts = self._tokenizer.decode_batch([[token] for token in ids], skip_special_tokens=True)
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [token for token, one in zip(ids, encoded, strict=True) if one.ids == [token]]

    def stream(self, prompt_ids: Sequence[int], *, stops: Sequence[str] = ()) -> TextStream:
        """A stream for the text that continues the prompt."""
        return TextStream(self._tokenizer, prompt_ids, stops=stops)

    def _special_id(self, token: Any) -> int | None:
        name = token.get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(name) if isinstance(name, str) else None

    def _mark_special(self, settings: Mapping[str, Any]) -> None:
        """Make the tokens that settings name special: they are never text, nor cut into pieces."""
        added = self._tokenizer.get_added_tokens_decoder()
        for key, token in settings.items():
            number = self._special_id(token) if key.endswith("_token") else None
            if number is not None and not (number in added and added[number].special):
                self._tokenizer.add_special_tokens([self.name(number)])


def open_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, None where it has none that kvgen can read.

    It comes from tokenizer.json, or from vocab.json and merges.txt, GPT-2's two files: these do not
    say how a text is cut into words, so the class that tokenizer_config.json names has to be a
    known one. Raises CheckpointError where a file is broken.
    """
    where = str(folder / FILE)
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    try:
        if (folder / FILE).exists():
            content = (folder / FILE).read_bytes()
            return Tokenizer(tokenizers.Tokenizer.from_buffer(content), settings)
        if kind in _CLASSES and all((folder / name).exists() for name in _MERGES):
            where = f"{folder}: {' with '.join(_MERGES)}"
            settings = dict.fromkeys(_CLASSES[kind], "<|endoftext|>") | dict(settings)
            return Tokenizer(_from_merges(folder, settings, kind), settings)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{where}: is not a usable tokenizer: {error}") from None
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
    model = BPE.from_file(*(str(folder / name) for name in _MERGES))
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
    listed = settings.get("added_tokens_decoder") or {}
    if not listed and (folder / _ADDED).exists():  # where older checkpoints list them
        added = json.loads((folder / _ADDED).read_text(encoding="utf-8"))
        listed = {number: {"content": content} for content, number in added.items()}
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
        ids = list(prompt_ids)
        self._said = self._decode(ids)  # the text that is out
        # The prompt may end within a character, with one to three of its bytes.
        ends = [len(ids) - n_open for n_open in range(min(4, len(ids) + 1))]
        whole = (end for end in ends if not self._decode(ids[:end]).endswith("\ufffd"))
        end = next(whole, len(ids))
        self._before = ids[:end]  # what decoding has to know of the past
        self._undecoded = ids[end:]  # tokens that do not make whole characters yet
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token settles, often empty."""
        self._undecoded.append(token)
        text = self._decode([*self._before, *self._undecoded])
        if text == self._said or text.endswith("\ufffd"):
            return ""
        fresh = self._fresh(text)
        self._before, self._undecoded = self._undecoded, []
        self._said = self._decode(self._before)
        return self._settle(fresh)

    def finish(self) -> str:
        """What is left at the end; bytes that never became a character come out as U+FFFD."""
        rest = self._settle(self._fresh(self._decode([*self._before, *self._undecoded])))
        rest += "" if self.stopped else self._held
        self._before, self._undecoded, self._said, self._held = [], [], "", ""
        return rest

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _fresh(self, text: str) -> str:
        """What the undecoded tokens add, where `text` is that of the tokens before and of them."""
        for said in (self._said, self._decode(self._before)):  # all that is out, or whole of it
            if text.startswith(said):
                return text[len(said) :]
        # A byte too many turns the characters before it into bytes again, but they are out.
        return self._decode(self._undecoded)

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
