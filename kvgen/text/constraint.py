"""Constraint: text that has to match a JSON schema, a regular expression or a Lark grammar.

The library llguidance (extra `structured`) says after each token which tokens may follow. It works
on the bytes that tokens stand for; special tokens stand for none. Its own end token is one id
behind ours: it says that the text may end here, which the model says by any of its stop ids.
Where few tokens are left, only those are taken after which the text can still end in time
(`kvgen.text.closing`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from kvgen.errors import CheckpointError, KvgenError, UsageError
from kvgen.text.closing import (
    LONGEST_WAY,
    BoolArray,
    Mask,
    TokenTable,
    Words,
    is_way,
    way_to_end,
    words_of,
)
from kvgen.text.grammar import as_lark, example_texts, reason_of
from kvgen.text.patience import within

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from kvgen.text.tokenizer import Tokenizer

ConstraintKind = Literal["json-schema", "regex", "grammar"]
CONSTRAINT_NAMES: Mapping[ConstraintKind, str] = {
    "json-schema": "JSON schema", "regex": "regular expression", "grammar": "grammar",
}  # fmt: skip
_BUILD_SECONDS = 20.0
_BUILD_STACK_BYTES = 512 * 2**20  # references are followed by recursion: 20,000 take some 100 MiB
_MOST_ITEMS = 20_000  # of a row of the parser: 1000 optional properties make 4000
_N_SAMPLED = 64
_MOST_SKIPPED = 8  # tokens of a known way that another token may have the text of
_MOST_TRIED = 64  # tokens to go on by from an end of the text
_FEW_LEFT = 16  # tokens: an end is looked for at every one

FloatArray = npt.NDArray[np.float32]


class Constraint:
    """A compiled grammar for one tokenizer; never changes, so that any number of runs may use it.

    Made by `make_constraint`.
    """

    def __init__(
        self,
        kind: ConstraintKind,
        matcher: LLMatcher,
        table: TokenTable,
        words: Words,
        where: str,
    ) -> None:
        self.kind = kind
        self.where = where  # the file or option, for messages
        self.table = table
        self.words = words
        self.n_tokens = table.kinds.lengths.size
        self._matcher = matcher

    @property
    def name(self) -> str:
        """JSON schema, regular expression, or grammar."""
        return CONSTRAINT_NAMES[self.kind]

    def start(self, stop_ids: Collection[int], banned: Collection[int] = ()) -> ConstraintRun:
        """The state of one run, at its beginning; it never takes a `banned` id by itself."""
        return ConstraintRun(self, self._matcher.deep_copy(), stop_ids, banned)

    def n_shortest(self) -> int | None:
        """The tokens of the shortest text that is known; None where none is."""
        run, most, shortest = self.start(()), LONGEST_WAY, None
        while most >= 0 and (way := run.way_to_end(most)) is not None:
            shortest = len(way)
            most = shortest - 1
        return shortest


class ConstraintRun:
    """How far one generation has come in its grammar.

    `seconds` is the time it has taken; `complete` says that nothing can follow, `whole` that the
    text so far matches, and `closed_early` that some token was taken for it to end in time.
    """

    def __init__(
        self,
        constraint: Constraint,
        matcher: LLMatcher,
        stop_ids: Collection[int],
        banned: Collection[int],
    ) -> None:
        began = time.perf_counter()
        self._constraint = constraint
        self._matcher = matcher
        self._mask = Mask(constraint.n_tokens)
        self._stop_ids = frozenset(stop_ids)
        self._stops = self._known(self._stop_ids)
        self._ends = self._known(self._stop_ids.difference(banned))
        self._banned = self._known(self._stop_ids.union(banned))  # ids that close no text
        self._n_taken = 0
        self._way: list[int] | None = None  # from here to an end in time, where one is known
        self._looked = False  # for such a way
        self.complete = False
        self.closed_early = False
        self.whole = matcher.is_accepting()
        self._allowed, _ = self._look()
        self.seconds = time.perf_counter() - began

    def mask(self, logits: FloatArray) -> FloatArray:
        """The logits [V] with -inf for tokens that may not follow, cut to the tokenizer's ids.

        Raises UsageError where no token can begin the text, KvgenError where none can go on.
        """
        began = time.perf_counter()
        if self._n_taken == 0 and len(logits) < self._allowed.size:
            beyond = np.arange(len(logits), self._allowed.size)  # what the model has no logits for
            self._banned = np.concatenate([self._banned, beyond])
            self._ends = self._ends[self._ends < len(logits)]
        allowed = self._allowed[: len(logits)]
        error = self._matcher.get_error()
        if error.startswith("NoExtension") or not (error or allowed.any()):
            raise self._failure("allows no token of this model", "")
        if error:
            raise self._failure("cannot go on", reason_of(error))
        masked = np.where(allowed, logits[: len(allowed)], np.float32(-np.inf))
        self.seconds += time.perf_counter() - began
        return masked

    def take(self, token: int, n_left: int | None = None) -> int:
        """Go on by the token that was chosen; a stop id ends the text. Gives the token taken.

        `n_left` more tokens may follow it (None: any number). Where the text could not end within
        them, though it can after another token, that one is taken. Raises KvgenError for a token
        that the mask does not allow.
        """
        began = time.perf_counter()
        if token not in self._stop_ids:
            after = self._after(token)
            if n_left is not None and self._looks_ahead(n_left):
                token, after = self._in_time(token, after, n_left)
        if token in self._stop_ids:
            self.complete = True
        else:
            self._matcher = after
            self._n_taken += 1
            self.whole = self._matcher.is_accepting()
            self.complete = self._matcher.is_stopped()
        if not self.complete:
            self._allowed, goes_on = self._look()
            self.complete = self.whole and not goes_on
        self.seconds += time.perf_counter() - began
        return token

    def way_to_end(self, most: int) -> list[int] | None:
        """At most so many tokens to an end of the text; None where none are found."""
        return self._search(self._matcher, most)

    def _looks_ahead(self, n_left: int) -> bool:
        """Whether to look for the end. Where there was none, not at every token."""
        if self._way is not None:
            return True
        if n_left > LONGEST_WAY:
            return False
        first, self._looked = not self._looked, True
        return first or n_left <= _FEW_LEFT or n_left & (n_left - 1) == 0

    def _in_time(self, token: int, after: LLMatcher, n_left: int) -> tuple[int, LLMatcher]:
        """The token, or the one to take in its place for the text to end in time; and the state."""
        way = self._way_from(after, token, n_left)
        if way is None:
            closing = self._way if self._way is not None else self.way_to_end(n_left + 1)
            if closing == []:  # the text may end here
                closing = self._ends[:1].tolist() or self._way_onward(n_left)
            if closing:
                if closing[0] != token:
                    self.closed_early = True
                (token, *way) = closing
                after = after if token in self._stop_ids else self._after(token)
        self._way = way
        return token, after

    def _way_onward(self, n_left: int) -> list[int] | None:
        """From an end of the text to another one, in a run that may take no token that ends it."""
        allowed = np.setdiff1d(np.flatnonzero(self._allowed), self._banned)
        for token in allowed[:_MOST_TRIED].tolist():
            way = self._search(self._after(token), n_left)
            if way is not None:
                return [token, *way]
        return None

    def _way_from(self, after: LLMatcher, token: int, n_left: int) -> list[int] | None:
        """From behind a token to the end; the known way is tried first."""
        known = self._way
        if known is not None:
            begin = int(known[:1] == [token])
            for skipped in range(begin, min(begin + _MOST_SKIPPED, len(known)) + 1):
                rest = known[skipped:]
                if len(rest) <= n_left and is_way(after, rest, self._constraint.n_tokens):
                    return rest
        return self._search(after, n_left)

    def _known(self, ids: Collection[int]) -> npt.NDArray[np.intp]:
        return np.array(sorted(i for i in ids if i < self._constraint.n_tokens), np.intp)

    def _search(self, matcher: LLMatcher, most: int) -> list[int] | None:
        kinds, words = self._constraint.table.kinds, self._constraint.words
        return way_to_end(matcher, kinds, self._mask, words=words, banned=self._banned, most=most)

    def _after(self, token: int) -> LLMatcher:
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(token):
            self._n_taken += 1
            raise self._failure("cannot go on", "the token is not allowed")
        return matcher

    def _look(self) -> tuple[BoolArray, bool]:
        """Which of the tokenizer's ids may follow, and whether text is among them."""
        allowed, may_end = self._mask.look(self._matcher)
        allowed[self._stops] = False
        goes_on = bool(allowed.any())
        allowed[self._stops] = may_end
        return allowed, goes_on

    def _failure(self, what: str, reason: str) -> KvgenError:
        count = self._n_taken
        place = f"after {count} token{'s' if count > 1 else ''}" if count else "at the beginning"
        text = f"{self._constraint.where}: {what} {place}" + (f": {reason}" if reason else "")
        return KvgenError(text) if count else UsageError(text)


def make_constraint(
    tokenizer: Tokenizer,
    *,
    json_schema: str | bool | Mapping[str, Any] | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    where: str = "",
) -> Constraint:
    """A constraint from one of the three: a schema (or its JSON text), a pattern, Lark's syntax.

    `where` says where it comes from, for messages. Raises UsageError where none or several are
    given, where it is wrong or too large, or where llguidance is not installed; CheckpointError
    where the tokenizer's texts are not the bytes of its tokens in a row.
    """
    given: dict[ConstraintKind, Any] = {
        "json-schema": json_schema, "regex": regex, "grammar": grammar,
    }  # fmt: skip
    kinds = [kind for kind, source in given.items() if source is not None]
    if len(kinds) != 1:
        raise UsageError("a constraint is one of json_schema, regex and grammar")
    (kind,) = kinds
    where = where or CONSTRAINT_NAMES[kind]
    table = tokenizer.table
    _check_bytes(tokenizer)
    lark = as_lark(kind, given[kind], where)
    matcher = _build(table, lark, where)
    if matcher.is_error():
        raise UsageError(f"{where}: {reason_of(matcher.get_error())}")
    words = words_of(table, example_texts(kind, given[kind]))
    return Constraint(kind, matcher, table, words, where=where)


def _build(table: TokenTable, lark: str, where: str) -> LLMatcher:
    """The matcher, built in a thread that has room for deep recursion and that time bounds."""
    from llguidance import LLMatcher, LLParserLimits

    library = table.library
    limits = LLParserLimits(max_items_in_row=_MOST_ITEMS, verbose_errors=False)
    before = threading.stack_size(_BUILD_STACK_BYTES)
    try:
        return within(_BUILD_SECONDS, lambda: LLMatcher(library, lark, log_level=0, limits=limits))
    except TimeoutError:
        raise UsageError(
            f"{where}: is not understood after {_BUILD_SECONDS:.0f} seconds: make it simpler"
        ) from None
    except Exception as error:  # a panic, or no room for the thread
        raise UsageError(f"{where}: cannot be used: {error}") from None
    finally:
        threading.stack_size(before)


def _check_bytes(tokenizer: Tokenizer) -> None:
    """Raise CheckpointError where tokens in a row are decoded to other text than their bytes.

    As with WordPiece, whose decoder puts spaces between words.
    """
    step = max(1, tokenizer.n_tokens // _N_SAMPLED)
    pieces = [(token, tokenizer.token_bytes(token)) for token in range(0, tokenizer.n_tokens, step)]
    plain = [
        (token, text) for token, text in pieces
        if text.isascii() and token not in tokenizer.special_ids
    ]  # fmt: skip
    expected = b"".join(text for _, text in plain).decode()
    if tokenizer.decode([token for token, _ in plain]).strip() != expected.strip():
        raise CheckpointError(
            f"structured output does not work with this tokenizer ({tokenizer.kind}): its texts "
            "are not its tokens in a row"
        )
