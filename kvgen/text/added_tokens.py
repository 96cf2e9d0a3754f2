"""Tokens that tokenizer.json does not tell alone: what a tokenizer's other files add to it.

transformers reads `added_tokens_decoder`, named tokens and extra special tokens of
tokenizer_config.json; where that has no `added_tokens_decoder`, special_tokens_map.json and
added_tokens.json as well. The rules here are those of its tokenization_utils_base.py
(`_from_pretrained`) and tokenization_utils_tokenizers.py (`TokenizersBackend.__init__`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from kvgen.checkpoint.files import read_json

ADDED = "added_tokens.json"
SPECIAL_MAP = "special_tokens_map.json"
_CONFIG = "tokenizer_config.json"
_LISTED, _EXTRA, _OLD_EXTRA = (
    "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens",
)  # fmt: skip
_SPECIFIC = "model_specific_special_tokens"
_NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_FLAGS = frozenset({"content", "lstrip", "rstrip", "normalized", "single_word", "special"})
# This class makes its named tokens anew at the end, without the flags that a file gives them.
_WITHOUT_FLAGS = "Qwen2Tokenizer"


def merge_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json together with the two files that older checkpoints keep beside it.

    Named tokens that only this model has stand together under one name, the content of
    added_tokens.json under another. Where the settings list their added tokens the two files are
    not read. Raises CheckpointError where one is broken.
    """
    merged = dict(settings)
    if merged.get(_OLD_EXTRA) and not merged.get(_EXTRA):
        merged[_EXTRA] = merged.pop(_OLD_EXTRA)
    specific = _take_specific(merged, str)  # objects are read as tokens only at the end
    if merged.get(_LISTED) is None:
        for name, value in read_json(folder / SPECIAL_MAP, required=False).items():
            if name == _EXTRA and isinstance(value, list):
                value = [*(merged.get(_EXTRA) or []), *map(_as_special, value)]
            merged[name] = value if name == _EXTRA else _as_special(value)
        merged[ADDED] = read_json(folder / ADDED, required=False)
    return merged | {_SPECIFIC: _take_specific(merged, (str, dict)) | specific}


def _take_specific(settings: dict[str, Any], kinds: Any) -> dict[str, Any]:
    """Move named tokens that only this model has, such as `image_token`, out of the settings."""
    names = [
        name
        for name, value in settings.items()
        if name.endswith("_token") and name not in _NAMED and isinstance(value, kinds)
    ]
    specific = {name: settings.pop(name) for name in names}
    extra = settings.get(_EXTRA)
    return specific | (settings.pop(_EXTRA) if isinstance(extra, dict) else {})


def _as_special(token: Any) -> Any:
    return token | {"special": True} if isinstance(token, dict) else token


def named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The contents of bos_token, eos_token and the like, by their names."""
    return {name: token.content for name, token in _named(settings).items()}


def add_listed(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Add the tokens that merged settings list to a tokenizer, or give them the listed flags.

    A new token gets the next free id, whatever the settings say; the result tells where that is
    another one. Raises ValueError where a token is not described as one.
    """
    listed = _listed(settings, tokenizer.get_added_tokens_decoder())
    names = {token.content for token in _named(settings).values()}
    for token in listed.values():
        token.special = token.special or token.content in names
    tokenizer.add_tokens([listed[number] for number in sorted(listed)])
    actual = {number: tokenizer.token_to_id(token.content) for number, token in listed.items()}
    return tuple(
        f"the token {listed[number].content!r} has the id {place}, although the tokenizer's "
        f"settings list it as {number}"
        for number, place in actual.items()
        if place not in (None, number)
    )


def add_named(
    tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], *, kind: str = ""
) -> None:
    """Add named and extra special tokens that are not among the added tokens yet.

    `kind` is the tokenizer's class in transformers.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = list(_named(settings).values())
    tokens = [*named, *_extra(settings)]
    if kind == _WITHOUT_FLAGS:
        known, tokens = set(), [AddedToken(token.content, special=True) for token in tokens]
    for token in named:
        token.special = True
    wanted = {repr(token): token for token in tokens if token.content not in known}
    tokenizer.add_tokens(list(wanted.values()))


def _listed(settings: Mapping[str, Any], own: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
    """Added tokens by the ids that the settings give them."""
    listed = settings.get(_LISTED)
    if listed is not None:
        if not isinstance(listed, dict) or not all(number.isdecimal() for number in listed):
            raise _wrong(_LISTED, "tokens by their ids", listed)
        return {int(number): _token(token, _LISTED) for number, token in listed.items()}
    # Objects of tokenizer_config.json are left out there: they are not read as tokens yet.
    extra = settings.get(_EXTRA)
    values = [settings.get(name) for name in _NAMED]
    values += extra if isinstance(extra, list) else []
    special = {
        _token(value, ADDED).content
        for value in values
        if isinstance(value, str) or (isinstance(value, dict) and "__type" not in value)
    }
    added = {}
    for content, number in settings.get(ADDED, {}).items():
        if type(number) is not int:
            raise ValueError(f"{ADDED}: the id of {content!r} should be a number")
        known = content in special
        added[number] = AddedToken(content, normalized=not known, special=known)
    return added | dict(own)


def _named(settings: Mapping[str, Any]) -> dict[str, AddedToken]:
    """bos_token and the like, then those that only this model has."""
    given = {name: settings[name] for name in _NAMED if settings.get(name) is not None}
    given |= settings.get(_SPECIFIC, {})
    return {name: _token(value, name) for name, value in given.items()}


def _extra(settings: Mapping[str, Any]) -> list[AddedToken]:
    """Special tokens without a name of their own."""
    extra = settings.get(_EXTRA) or settings.get(_OLD_EXTRA) or []
    if not isinstance(extra, list):
        raise _wrong(_EXTRA, "a list of tokens", extra)
    return [_token(value, _EXTRA) for value in extra]


def _token(value: Any, name: str) -> AddedToken:
    """A token that is written as its text, or as an object with `content` and flags."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {flag: given for flag, given in value.items() if flag in _FLAGS}
        if all(isinstance(given, bool) for flag, given in flags.items() if flag != "content"):
            return AddedToken(**flags)
    raise _wrong(name, "a text, or an object with `content` and flags", value)


def _wrong(name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"{_CONFIG}: {name} should be {wanted}, not {value!r}")
