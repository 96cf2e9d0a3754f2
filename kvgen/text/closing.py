"""A short way to the end of a text that has to match: how structured output is closed in time.

The way is found greedily and with JSON in mind; elsewhere the rules do no harm. Where a pattern has
to match, ends of an example text are tried (`kvgen.text.example_text`). llguidance's parser checks
every token of a way: so it can be missing or longer than it needs to be, but never wrong.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvgen.errors import UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

LONGEST_WAY = 512  # tokens; a longer one is not looked for

IdArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]
Words = Sequence[list[int]]  # tokens of texts that may be what a string lacks

_LETTERS = bytes([*range(0x41, 0x5B), *range(0x61, 0x7B)])
_DIGITS = b"0123456789"


@dataclass(frozen=True, slots=True)
class TokenKinds:
    """The tokenizer's ids by what their texts are made of; in lists the longest come first."""

    lengths: npt.NDArray[np.int32]  # [V] bytes
    first: npt.NDArray[np.int16]  # [V] the first byte; -1 for a token without text
    letters: BoolArray  # [V] texts of ASCII letters only
    digits: BoolArray  # [V]
    brackets: BoolArray  # [V] texts with some bracket of JSON
    at_sign: IdArray  # @
    opening: IdArray  # " and a letter
    brackets_close: IdArray  # as }]
    quote_closes: IdArray  # as "}
    quote_goes_on: IdArray  # as ", "
    empty_strings: IdArray  # as ""}
    separators: IdArray  # as , "


def token_kinds(tokens: Sequence[bytes]) -> TokenKinds:
    """What `way_to_end` chooses by."""
    lengths = np.fromiter(map(len, tokens), np.int32, len(tokens))
    filled = np.flatnonzero(lengths)
    text = np.frombuffer(b"".join(tokens), np.uint8)
    starts = (np.cumsum(lengths) - lengths)[filled]

    def made_of(some: bytes) -> BoolArray:
        among = np.isin(np.arange(256), list(some))
        every = np.zeros(len(tokens), bool)
        every[filled] = np.logical_and.reduceat(among[text], starts)
        return every

    def byte(place: int) -> npt.NDArray[np.int16]:
        """That byte of each token; -1 where it ends before."""
        values = np.full(len(tokens), -1, np.int16)
        there = lengths[filled] > place
        values[filled[there]] = text[starts[there] + place]
        return values

    by_length = np.argsort(-lengths, kind="stable")

    def ids(chosen: BoolArray) -> IdArray:
        return by_length[chosen[by_length]]

    signs = ids(made_of(b'":, }]') & (lengths > 0))

    def like(pattern: bytes) -> IdArray:
        return np.array([i for i in signs if re.fullmatch(pattern, tokens[i])], np.intp)

    first = byte(0)
    quote_closes = like(rb'"[}\]]*')
    # Where no } and no ] can follow ", the text goes on: only tokens of the two together say so.
    says = {tokens[i] for i in quote_closes} >= {b'"}', b'"]'}
    return TokenKinds(
        lengths=lengths,
        first=first,
        letters=made_of(_LETTERS),
        digits=made_of(_DIGITS),
        brackets=~made_of(bytes(set(range(256)) - set(b"{}[]"))) & (lengths > 0),
        at_sign=ids((first == ord("@")) & (lengths == 1)),
        opening=ids((first == ord('"')) & np.isin(byte(1), list(_LETTERS))),
        brackets_close=like(rb"[}\]]+"),
        quote_closes=quote_closes,
        quote_goes_on=like(rb'"[:,] ?(""?)?') if says else signs[:0],
        empty_strings=like(rb'""[}\]]*'),
        separators=like(rb'[:,] ?("|""[}\]]*)?| ("|""[}\]]*)?'),
    )


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A tokenizer's tokens for masks, and by their kinds."""

    library: LLTokenizer
    kinds: TokenKinds


class _Tokens:
    """What llguidance's wrapper of a tokenizer asks for."""

    def __init__(self, tokens: Sequence[bytes], special: Collection[int]) -> None:
        self.tokens = [*tokens, b"<end>"]
        self.special_token_ids = [*special, len(tokens)]
        self.eos_token_id = len(tokens)
        self.bos_token_id = None

    def __call__(self, _text: bytes | str) -> list[int]:
        """Asked for forced text only, which our grammars turn off (`kvgen.text.grammar`)."""
        return []


def build_table(tokens: Sequence[bytes], special: Collection[int]) -> TokenTable:
    """All tokens in llguidance's tree of bytes, and by kinds.

    It takes a second or two for 256,000 of them. Raises UsageError where llguidance is not
    installed.
    """
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        needed = "structured output needs llguidance: pip install 'kvgen[structured]'"
        raise UsageError(needed) from None
    return TokenTable(LLTokenizer(TokenizerWrapper(_Tokens(tokens, special))), token_kinds(tokens))


class Mask:
    """Which tokens may follow, as llguidance fills it in; one buffer for many states."""

    def __init__(self, n_tokens: int) -> None:
        from llguidance.numpy import allocate_token_bitmask

        self._n_tokens = n_tokens
        self._bits = allocate_token_bitmask(1, n_tokens + 1)

    def look(self, matcher: LLMatcher) -> tuple[BoolArray, bool]:
        """The tokenizer's ids that may follow [V], and whether the text may end."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(matcher, self._bits)
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        allowed = bits[: self._n_tokens + 1].view(np.bool_)
        return allowed[: self._n_tokens], bool(allowed[self._n_tokens])


def words_of(table: TokenTable, texts: Iterable[str]) -> Words:
    """Every end of the texts as tokens: any part of a text may be there already."""
    ends = {text[begin:] for text in texts for begin in range(len(text))}
    tokens = (table.library.greedy_tokenize(end) for end in sorted(ends, key=len))
    return [each for each in tokens if each]


def way_to_end(
    matcher: LLMatcher, kinds: TokenKinds, mask: Mask, *, words: Words, banned: IdArray, most: int
) -> list[int] | None:
    """At most so many tokens after which the text may end; None where none are found.

    `matcher` stays as it is. No token of `banned` is taken.
    """
    refused = np.zeros(kinds.lengths.size, np.bool_)
    refused[banned] = True
    usable = [word for word in words if not refused[word].any()]
    for choose in (_by_json, _by_json_with_brackets, _Rarest()):
        copy = matcher.deep_copy()
        way: list[int] = []
        while not copy.is_accepting() and not copy.is_stopped() and len(way) < most:
            allowed, _ = mask.look(copy)
            allowed[banned] = False
            ids = np.flatnonzero(allowed)
            if not ids.size:
                break
            is_open = _first(allowed, kinds.quote_closes) is None
            chosen = []
            if is_open or not way:
                chosen = _word_that_closes(copy, usable, kinds, mask, is_open=is_open)
            chosen = chosen or [choose(allowed, ids, kinds)]
            if not copy.consume_tokens(chosen):
                break
            way += chosen
        if copy.is_accepting() and len(way) <= most:
            return way
    return None


def _word_that_closes(
    matcher: LLMatcher, words: Words, kinds: TokenKinds, mask: Mask, *, is_open: bool
) -> list[int]:
    """The shortest word after which the text may end, or its open string; none where none is."""
    for word in words:
        if matcher.validate_tokens(word) == len(word):
            after = matcher.deep_copy()
            after.consume_tokens(word)
            if after.is_accepting():
                return word
            if is_open and _first(mask.look(after)[0], kinds.quote_closes) is not None:
                return word
    return []


def is_way(matcher: LLMatcher, way: Sequence[int], end: int) -> bool:
    """Whether the text may end after these tokens. `end` is llguidance's own end token."""
    if not way:
        return matcher.is_accepting()
    return matcher.validate_tokens([*way, end]) == len(way) + 1


def _by_json(
    allowed: BoolArray, ids: IdArray, kinds: TokenKinds, *, open_brackets: bool = False
) -> int:
    """What ends JSON soonest; opens a bracket only where nothing else may follow."""
    if _first(allowed, kinds.at_sign) is not None:  # in a string
        token = _closing_quote(allowed, kinds)
    else:
        token = _first(allowed, kinds.brackets_close)
        if token is None:
            token = _first(allowed, kinds.empty_strings)
        if token is None and _first(allowed, kinds.opening) is None:
            token = _closing_quote(allowed, kinds)
        if token is None:
            token = _first(allowed, kinds.separators)
    if token is not None:
        return token
    first = kinds.first[ids]
    if (first == first[0]).all():  # forced text, or a bracket
        plain = ids if open_brackets else ids[~kinds.brackets[ids]]
        return _longest(plain, kinds) if plain.size else _shortest(ids, kinds)
    if (letters := ids[kinds.letters[ids]]).size:  # such as null, or what a string lacks
        return _longest(letters, kinds)
    digits = ids[kinds.digits[ids]]
    return _shortest(digits if digits.size else ids, kinds)


def _by_json_with_brackets(allowed: BoolArray, ids: IdArray, kinds: TokenKinds) -> int:
    """As `_by_json`, but with brackets in forced text: often shorter."""
    return _by_json(allowed, ids, kinds, open_brackets=True)


class _Rarest:
    """The way out of a repetition: a byte that was taken least, and that fewest tokens have."""

    def __init__(self) -> None:
        self._n_taken = np.zeros(256, np.int64)

    def __call__(self, _allowed: BoolArray, ids: IdArray, kinds: TokenKinds) -> int:
        first = kinds.first[ids]
        there = np.unique(first)
        counts = np.bincount(first, minlength=256)
        byte = there[np.lexsort((counts[there], self._n_taken[there]))[0]]
        self._n_taken[byte] += 1
        return _longest(ids[first == byte], kinds)


def _closing_quote(allowed: BoolArray, kinds: TokenKinds) -> int | None:
    token = _first(allowed, kinds.quote_closes)
    if token is not None and kinds.lengths[token] == 1:
        goes_on = _first(allowed, kinds.quote_goes_on)
        return token if goes_on is None else goes_on
    return token


def _first(allowed: BoolArray, ids: IdArray) -> int | None:
    """The first allowed one: so the longest."""
    found = ids[allowed[ids]]
    return int(found[0]) if found.size else None


def _longest(ids: IdArray, kinds: TokenKinds) -> int:
    return int(ids[kinds.lengths[ids].argmax()])


def _shortest(ids: IdArray, kinds: TokenKinds) -> int:
    return int(ids[kinds.lengths[ids].argmin()])
