"""Text to token ids and back, over the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from kvgen.checkpoint.files import open_file, read_file, read_json
from kvgen.errors import CheckpointError, UsageError
from kvgen.text.added_tokens import add_listed, add_named, merge_settings, named_tokens
from kvgen.text.patience import is_panic, panics_muted, within
from kvgen.text.stream import TextStream

FILE = "tokenizer.json"
_MERGES = ("vocab.json", "merges.txt")
# Classes of transformers that make their own word rules, and what <|endoftext|> is to each unless
# the settings say otherwise (tokenization_gpt2.py and its like).
_END = "<|endoftext|>"
_OWN_RULES = {
    "GPT2Tokenizer": ("bos_token", "eos_token", "unk_token"),
    "CodeGenTokenizer": ("bos_token", "eos_token", "unk_token"),
    "Qwen2Tokenizer": ("eos_token", "pad_token", "unk_token"),
    "GPTNeoXTokenizer": ("bos_token", "eos_token", "unk_token"),
    "CohereTokenizer": (),
}
_FROM_MERGES = ("GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer")  # known word rules
# How Qwen's tokenizer cuts a text before merging (transformers, tokenization_qwen2.py).
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """A checkpoint's tokenizer, with what its other files add to tokenizer.json.

    Made by `open_tokenizer`.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        settings: Mapping[str, Any],
        *,
        kind: str = "",
        settings_only: bool = False,
    ) -> None:
        """`settings` as `merge_settings` gives them; `kind` is the class in transformers.

        With `settings_only` there is no tokenizer.json: the settings alone say whether texts begin
        and end with special tokens. Raises ValueError where there are no tokens, and where
        settings describe one wrongly.
        """
        self._tokenizer = tokenizer
        self.named = named_tokens(settings)  # bos_token, eos_token, ...: their texts
        self.notes = add_listed(tokenizer, settings)
        known_bos_id = self._id(self.named.get("bos_token"))
        add_named(tokenizer, settings, kind=kind)
        # Beside a tokenizer.json, a start token that only its name makes known has no embedding.
        self._bos_id = self._id(self.named.get("bos_token")) if settings_only else known_bos_id
        self.eos_id = self._id(self.named.get("eos_token"))
        # Ids run from 0 to n_tokens - 1; the embedding may have more rows.
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.n_tokens = max(vocabulary.values(), default=-1) + 1
        if not self.n_tokens:
            raise ValueError("it has no tokens")
        # Files saved in training may pad or cut; a prompt is neither padded nor cut.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = settings.get("split_special_tokens") is True
        self._add_bos = settings.get("add_bos_token") is True
        self._settings_only = settings_only
        self._add_eos = settings_only and settings.get("add_eos_token") is True
        self._byte_level = "ByteLevel" in repr(tokenizer.decoder)
        added = tokenizer.get_added_tokens_decoder()
        self._special = {number: each.content for number, each in added.items() if each.special}

    @property
    def kind(self) -> str:
        """The algorithm, as tokenizer.json calls it: BPE, Unigram, ..."""
        return type(self._tokenizer.model).__name__

    def name(self, token: int) -> str:
        """The token's own spelling in the vocabulary, such as `<|endoftext|>`."""
        return self._tokenizer.id_to_token(token) or ""

    @property
    def special_ids(self) -> Collection[int]:
        """Ids that are no text: `decode` leaves them out."""
        return self._special.keys()

    @cached_property
    def table(self) -> Any:
        """The tokens' bytes as `kvgen.text.constraint` looks them up, made once."""
        from kvgen.text.closing import build_table

        return build_table([self.token_bytes(i) for i in range(self.n_tokens)], self.special_ids)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """The text's ids, with the start token where tokenizer.json or its config adds one.

        Without `special_tokens` none is added: the text of a chat template brings its own.
        """
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes of a command line that no text was made of
            raise UsageError("the prompt is not valid UTF-8") from None
        seconds = _patience(text)
        try:
            with panics_muted():
                ids = within(seconds, lambda: self._encode(text, special_tokens))
        except TimeoutError:
            raise CheckpointError(
                f"the tokenizer is not done with the prompt after {seconds:.0f} seconds: a pattern "
                f"of {FILE} is too slow for it"
            ) from None
        except Exception as error:
            raise CheckpointError(f"the tokenizer cannot encode the prompt: {error}") from None
        if (
            special_tokens
            and self._add_bos
            and self._bos_id is not None
            and (self._settings_only or ids[:1] != [self._bos_id])
        ):
            ids.insert(0, self._bos_id)
        if special_tokens and self._add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def _encode(self, text: str, special_tokens: bool) -> list[int]:
        # Of the library's calls this one lets other threads go on meanwhile.
        encoded = self._tokenizer.encode_batch([text], add_special_tokens=special_tokens)
        return list(encoded[0].ids)

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

    def single_id(self, text: str) -> int:
        """The id of the one token that stands for this text. Raises UsageError where none does."""
        wanted, ids = text.encode(), self.encode(text, special_tokens=False)
        if len(ids) == 1 and self.token_bytes(ids[0]) == wanted:
            return ids[0]
        for token in range(self.n_tokens):
            if self.token_bytes(token) == wanted:
                return token
        parts = ", ".join(repr(self.token_bytes(part).decode(errors="replace")) for part in ids)
        raise UsageError(f"{text!r} is not one token, but {len(ids)} ({parts}): name one token")

    def ordinary_ids(self) -> list[int]:
        """Ids whose text gives that id again: no special tokens, no parts of characters."""
        ids = range(self.n_tokens)
        texts = self._tokenizer.decode_batch([[token] for token in ids], skip_special_tokens=True)
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [token for token, one in zip(ids, encoded, strict=True) if one.ids == [token]]

    def stream(self, prompt_ids: Sequence[int], *, stops: Sequence[str] = ()) -> TextStream:
        """A stream for the text that continues the prompt.

        A stop text may name special tokens, such as `<|eot_id|>`, though they are no text.
        """
        return TextStream(self.decode, prompt_ids, stops=stops, special=self._special)

    def _id(self, name: str | None) -> int | None:
        return None if name is None else self._tokenizer.token_to_id(name)


def _patience(text: str) -> float:
    """Seconds to wait for the ids of a text: some hundred times what a usual tokenizer takes."""
    return 20 + len(text) / 10_000


def open_tokenizer(
    folder: Path, settings: Mapping[str, Any], *, usual_class: str = ""
) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, None where it has none that kvgen can read.

    It comes from tokenizer.json, or from vocab.json and merges.txt, GPT-2's two files: these do not
    say how a text is cut into words, so the class that tokenizer_config.json names has to be a
    known one. `usual_class` is the one that transformers takes where no class is named. Raises
    CheckpointError where a file is broken.
    """
    where = str(folder / FILE)
    kind = str(settings.get("tokenizer_class") or usual_class).removesuffix("Fast")
    settings = merge_settings(folder, settings)
    try:
        with panics_muted():
            if (folder / FILE).exists():
                tokenizer = tokenizers.Tokenizer.from_buffer(read_file(folder / FILE))
                return _finish(tokenizer, settings, kind)
            if kind in _FROM_MERGES and all((folder / name).exists() for name in _MERGES):
                where = f"{folder}: {' with '.join(_MERGES)}"
                return _open_merges(folder, settings, kind)
    except CheckpointError:
        raise
    except BaseException as error:  # the library raises nothing narrower
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise CheckpointError(f"{where}: is not a usable tokenizer: {error}") from None
    return None


def _rules(rules: Any) -> list[Any]:
    """A pre-tokenizer, or the parts of a sequence of them, which the library does not count."""
    if not isinstance(rules, pre_tokenizers.Sequence):
        return [rules]
    parts: list[Any] = []
    with suppress(IndexError):
        while True:
            parts.append(rules[len(parts)])
    return parts


def find_tokenizer(folder: Path, *, usual_class: str = "") -> Tokenizer | None:
    """`open_tokenizer` with the folder's own tokenizer_config.json."""
    settings = read_json(folder / "tokenizer_config.json", required=False)
    return open_tokenizer(folder, settings, usual_class=usual_class)


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


def _open_merges(folder: Path, settings: dict[str, Any], kind: str) -> Tokenizer:
    """A byte-level BPE with the word rules of that class."""
    for name in _MERGES:  # the library opens whatever is there
        open_file(folder / name).close()
    model = BPE.from_file(*(str(folder / name) for name in _MERGES))
    tokenizer = tokenizers.Tokenizer(model)
    if kind == "Qwen2Tokenizer":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_QWEN2_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, settings, kind, settings_only=True)


def _finish(
    tokenizer: tokenizers.Tokenizer,
    settings: dict[str, Any],
    kind: str,
    *,
    settings_only: bool = False,
) -> Tokenizer:
    """With what a class of that kind does whatever file it was read from."""
    _set_prefix_space(tokenizer, settings.get("add_prefix_space"), kind)
    if tokenizer.token_to_id(_END) is not None:
        settings = dict.fromkeys(_OWN_RULES.get(kind, ()), _END) | settings
    return Tokenizer(tokenizer, settings, kind=kind, settings_only=settings_only)


def _set_prefix_space(tokenizer: tokenizers.Tokenizer, wanted: Any, kind: str) -> None:
    """Begin every text with a space, or not, where the settings of such a class say so.

    The classes that make their own word rules obey `add_prefix_space`, whatever tokenizer.json
    says; the general class leaves it aside.
    """
    if not isinstance(wanted, bool):
        return
    rules = tokenizer.pre_tokenizer
    if kind in _OWN_RULES:
        for rule in _rules(rules):
            if isinstance(rule, pre_tokenizers.ByteLevel):
                rule.add_prefix_space = wanted
    elif kind == "LlamaTokenizer" and not wanted and "ByteLevel" not in repr(rules):
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: each of the 256 bytes as one character (encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


_BYTE_OF = _byte_alphabet()
