"""Constraint: text that has to match a JSON schema, a regular expression or a Lark grammar.

The library llguidance (extra `structured`) says after each token which tokens may follow. It works
on the bytes that tokens stand for; special tokens stand for none. Its own end token is one id
behind ours: it says that the text may end here, which the model says by any of its stop ids.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from kvgen.errors import CheckpointError, KvgenError, UsageError
from kvgen.text.grammar import as_lark, reason_of
from kvgen.text.patience import within

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from kvgen.text.tokenizer import Tokenizer

ConstraintKind = Literal["json-schema", "regex", "grammar"]
CONSTRAINT_NAMES: Mapping[ConstraintKind, str] = {
    "json-schema": "JSON schema", "regex": "regular expression", "grammar": "grammar",
}  # fmt: skip
_BUILD_SECONDS = 20.0
_BUILD_STACK_BYTES = 512 * 2**20  # references are followed by recursion: 20,000 take some 100 MiB
_MOST_ITEMS = 20_000  # of a row of the parser: 1000 optional properties make 4000
_N_SAMPLED = 64

FloatArray = npt.NDArray[np.float32]


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


def build_table(tokens: Sequence[bytes], special: Collection[int]) -> LLTokenizer:
    """All tokens in llguidance's tree of bytes; takes a second or two for 256,000 of them.

    Raises UsageError where llguidance is not installed.
    """
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise UsageError(
            "structured output needs llguidance: pip install 'kvgen[structured]'"
        ) from None
    return LLTokenizer(TokenizerWrapper(_Tokens(tokens, special)))


class Constraint:
    """A compiled grammar for one tokenizer; never changes, so that any number of runs may use it.

    Made by `make_constraint`.
    """

    def __init__(self, kind: ConstraintKind, matcher: LLMatcher, *, where: str, n: int) -> None:
        self.kind = kind
        self.where = where  # the file or option, for messages
        self.n_tokens = n
        self._matcher = matcher

    @property
    def name(self) -> str:
        """JSON schema, regular expression, or grammar."""
        return CONSTRAINT_NAMES[self.kind]

    def start(self, stop_ids: Collection[int]) -> ConstraintRun:
        """The state of one run, at its beginning."""
        return ConstraintRun(self, self._matcher.deep_copy(), stop_ids)


class ConstraintRun:
    """How far one generation has come in its grammar.

    `seconds` is the time that masks have taken; `complete` says that nothing can follow, `whole`
    that the text so far matches, though more may follow.
    """

    def __init__(
        self, constraint: Constraint, matcher: LLMatcher, stop_ids: Collection[int]
    ) -> None:
        from llguidance.numpy import allocate_token_bitmask

        began = time.perf_counter()
        self._constraint = constraint
        self._matcher = matcher
        self._bits = allocate_token_bitmask(1, constraint.n_tokens + 1)
        self._stops = np.array(sorted(i for i in stop_ids if i < constraint.n_tokens), np.intp)
        self._stop_ids = frozenset(stop_ids)
        self._n_taken = 0
        self.complete = False
        self.whole = matcher.is_accepting()
        self._allowed, _ = self._look()
        self.seconds = time.perf_counter() - began

    def mask(self, logits: FloatArray) -> FloatArray:
        """The logits [V] with -inf for tokens that may not follow, cut to the tokenizer's ids.

        Raises UsageError where no token can begin the text, KvgenError where none can go on.
        """
        began = time.perf_counter()
        allowed = self._allowed[: len(logits)]
        error = self._matcher.get_error()
        if error.startswith("NoExtension") or not (error or allowed.any()):
            raise self._failure("allows no token of this model", "")
        if error:
            raise self._failure("cannot go on", reason_of(error))
        masked = np.where(allowed, logits[: len(allowed)], np.float32(-np.inf))
        self.seconds += time.perf_counter() - began
        return masked

    def take(self, token: int) -> None:
        """Go on by the token that was chosen; a stop id ends the text.

        Raises KvgenError for a token that the mask does not allow.
        """
        began = time.perf_counter()
        if token in self._stop_ids:
            self.complete = True
            return
        self._n_taken += 1
        if not self._matcher.consume_token(token):
            raise self._failure("cannot go on", "the token is not allowed")
        self.whole = self._matcher.is_accepting()
        self.complete = self._matcher.is_stopped()
        if not self.complete:
            self._allowed, goes_on = self._look()
            self.complete = self.whole and not goes_on
        self.seconds += time.perf_counter() - began

    def _look(self) -> tuple[npt.NDArray[np.bool_], bool]:
        """Which of the tokenizer's ids may follow, and whether text is among them."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits)
        n = self._constraint.n_tokens
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: n + 1].view(np.bool_)
        allowed = bits[:n]
        allowed[self._stops] = False
        goes_on = bool(allowed.any())
        allowed[self._stops] = bits[n]
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
    return Constraint(kind, matcher, where=where, n=tokenizer.n_tokens)


def _build(table: LLTokenizer, lark: str, where: str) -> LLMatcher:
    """The matcher, built in a thread that has room for deep recursion and that time bounds."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_items_in_row=_MOST_ITEMS, verbose_errors=False)
    before = threading.stack_size(_BUILD_STACK_BYTES)
    try:
        return within(_BUILD_SECONDS, lambda: LLMatcher(table, lark, log_level=0, limits=limits))
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
