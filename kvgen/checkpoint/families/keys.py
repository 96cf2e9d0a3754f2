"""Keys: a config.json read key by key, and what becomes of the keys that nobody asked for."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kvgen.engine.config import Activation
from kvgen.errors import CheckpointError

T = TypeVar("T")
_SPEAKS_OF_ARITHMETIC = re.compile(
    "rope|rotary|scale|scaling|multiplier|norm|bias|window|attention|softcap|expert|quant|alibi"
    "|layer_types|residual|parallel",
    re.IGNORECASE,
)
# Training, or how the same numbers are computed: nothing at inference, whatever else is named.
_CHANGES_NOTHING = re.compile(
    "dropout|pdrop|flash_?att|_implementation$|^output_attentions$", re.IGNORECASE
)
# What every model of transformers obeys (masking_utils.py, modeling_utils.py), and what it must be.
_EVERY_MODEL = {"is_causal": True, "quantization_config": False, "per_layer_config": False}
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
_MISSING = object()


def _shown(value: object) -> str:
    """A value for a message: as it is written in Python, long ones cut short."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlist, short.maxdict, short.maxlevel = 8, 4, 3
    return short.repr(value)


class Keys:
    """A config.json that remembers which of its keys were understood.

    Every reading method takes the key's name and the family's default; without a default a missing
    key is a CheckpointError, and so is a value of the wrong kind. Null is a value: it is of the
    wrong kind except for `nested`, `strings`, `token_ids` and `or_none`.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        *,
        where: str = "config.json",
        inside: str = "",
        left_out: list[str] | None = None,
    ) -> None:
        self._raw = raw
        self.where = where
        self._inside = inside  # the objects around this one, as a beginning of its keys' names
        self.read: set[str] = set()  # keys that were asked for
        # Keys that the reference implementation passes over, those of nested objects among them.
        self.left_out = [] if left_out is None else left_out

    def __contains__(self, name: str) -> bool:
        """Whether the key is there, be it null."""
        return name in self._raw

    def has(self, name: str) -> bool:
        """Whether the key is there with a value; null counts as absent."""
        return self._raw.get(name) is not None

    def whole(self, name: str, default: Any = _MISSING, *, loose: bool = False) -> int:
        """A whole number, also a negative one.

        `loose`, where the reference does not look at the type: 64.0 is 64 there.
        """
        value = self._value(name, default)
        if loose and isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or abs(value) >= 2**53:
            raise self._wrong(name, value, "a whole number")
        return value

    def is_one_of(self, name: str, values: tuple[int | None, ...]) -> bool:
        """Whether the key has one of these values; true is not 1."""
        return any(self._raw.get(name) is value for value in values if value is None) or (
            type(self._raw.get(name)) is int and self._raw.get(name) in values
        )

    def count(self, name: str, default: Any = _MISSING, *, below: int = 2**24) -> int:
        """A positive whole number, small enough to be a size of something."""
        value = self._value(name, default)
        if type(value) is not int or not 0 < value < below:
            raise self._wrong(name, value, "a positive whole number")
        return value

    def count_of(self, first: str, second: str, default: int, *, below: int = 2**24) -> int:
        """The count under the first name, or under the second where the first is not there."""
        self.mark(second)
        return self.count(first if first in self else second, default, below=below)

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A number."""
        return self._float(name, self._value(name, default))

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def activation(self, name: str, default: Any = _MISSING) -> Activation:
        """An activation function, by any of the names that transformers gives it."""
        value = self._value(name, default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self._wrong(name, value, f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Token ids given as null, a number or a list."""
        value = self._value(name, [])
        if value is None:
            return ()
        ids = [value] if isinstance(value, int) else value
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise self._wrong(name, value, "a token id or a list of them")
        return tuple(ids)

    def nested(self, name: str) -> Keys | None:
        """The keys of a nested object, None where it is absent."""
        value = self._value(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return Keys(
            value,
            where=f"{self.where}: {name}",
            inside=f"{self._inside}{name}.",
            left_out=self.left_out,
        )

    def first_object(self, *names: str) -> Keys:
        """The first of these nested objects that holds anything, or an empty one."""
        for name in names:
            self.mark(name)
        return next(
            (found for name in names if self._raw.get(name) and (found := self.nested(name))),
            Keys({}, where=self.where),
        )

    def strings(
        self,
        name: str,
        *,
        count: int,
        choices: tuple[str, ...],
        older: Mapping[str, str] | None = None,
    ) -> list[str] | None:
        """A list of `count` words out of `choices` or of `older` names, None where it is absent."""
        value = self._value(name, None)
        if value is None:
            return None
        renamed = older or {}
        words = value if isinstance(value, list) else []
        words = [renamed.get(word, word) if isinstance(word, str) else word for word in words]
        if len(words) != count or not all(word in choices for word in words):
            raise self._wrong(name, value, f"{count} of {', '.join(choices)}")
        return words

    def numbers(self, name: str, default: Any = _MISSING) -> tuple[float, ...]:
        """A list of numbers."""
        value = self._value(name, default)
        if not isinstance(value, (list, tuple)):
            raise self._wrong(name, value, "a list of numbers")
        return tuple(self._float(name, number) for number in value)

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self._value(name, _MISSING)
        if not isinstance(value, list) or not all(type(number) is int for number in value):
            raise self._wrong(name, value, "a list of whole numbers")
        return tuple(value)

    def word(self, name: str, default: Any = _MISSING) -> str:
        """A word."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a word")
        return value

    def truth(self, name: str, default: bool) -> bool:
        """Whether the value counts as true: where the reference only asks `if value`."""
        return bool(self._value(name, default))

    def or_none(self, read: Callable[[str], T], name: str, default: T | None) -> T | None:
        """What `read` makes of the key: None where it is null, the default where it is absent."""
        if self.has(name):
            return read(name)
        self.mark(name)
        return None if name in self._raw else default

    def pattern(self, name: str) -> list[str]:
        """Words given as [[[word, word, ...], times], ...], written out."""
        value = self._value(name, _MISSING)
        try:
            # An empty list of words has to be gone through as often as any other.
            if sum(max(len(words), 1) * max(times, 0) for words, times in value) >= 2**24:
                raise ValueError
            return [str(word) for words, times in value for _ in range(times) for word in words]
        except (TypeError, ValueError):
            raise self._wrong(name, value, "a list of [words, times]") from None

    def twin(self, copy: str, original: str) -> None:
        """Count a key as understood where it only repeats another."""
        if self.has(copy) and self._raw.get(copy) == self._raw.get(original):
            self.mark(copy)

    def over(self, beneath: Keys) -> Keys:
        """These keys laid over others."""
        beneath.read.update(beneath._raw)
        return Keys(
            {**beneath._raw, **self._raw},
            where=self.where,
            inside=self._inside,
            left_out=self.left_out,
        )

    def mark(self, name: str) -> None:
        """Count the key as understood without reading it."""
        self.read.add(name)

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        """The error that says what this key should have been."""
        return self._wrong(name, self._raw.get(name), wanted)

    def leave_out(self, name: str) -> None:
        """Count the key as understood: the reference passes over it, and the user is told."""
        self.read.add(name)
        if self._raw.get(name):
            self.left_out.append(self._inside + name)

    def refuse_unread(
        self,
        *,
        reads: frozenset[str] = frozenset(),
        known: frozenset[str] = frozenset(),
        inert: frozenset[str] = frozenset(),
    ) -> None:
        """Raise CheckpointError for a key that may change the arithmetic and was not understood.

        `reads` are the keys that the family's reference implementation obeys: one of them that
        nothing asked for must be null, false, 0 or empty. `known` are keys of other models, which
        this one passes over: they are left out, and the user is told.
        """
        for name in self.unread():
            value = self._raw[name]
            if name in _EVERY_MODEL:
                if bool(value) == _EVERY_MODEL[name]:
                    continue
            elif not value:
                continue
            elif name not in reads:
                if name in inert or _CHANGES_NOTHING.search(name):
                    continue
                if not _SPEAKS_OF_ARITHMETIC.search(name):
                    continue
                if name in known:
                    self.leave_out(name)
                    continue
            raise self.not_understood(name)

    def refuse_all_unread(self, *, known: frozenset[str]) -> None:
        """The same inside an object that is all arithmetic, whatever the keys are called."""
        for name in self.unread():
            if name in known:
                self.leave_out(name)
            elif self._raw[name]:
                raise self.not_understood(name)

    def not_understood(self, name: str) -> CheckpointError:
        """The error for a key that kvgen does not implement."""
        return CheckpointError(
            f"{self.where}: {name} = {_shown(self._raw[name])} is not understood; "
            "kvgen does not guess what it changes"
        )

    def unread(self) -> list[str]:
        """Names of the keys that nothing asked for."""
        return [name for name in self._raw if name not in self.read]

    def _value(self, name: str, default: Any) -> Any:
        self.read.add(name)
        if name in self._raw:
            return self._raw[name]
        if default is _MISSING:
            raise CheckpointError(f"{self.where}: {name} is missing")
        return default

    def _float(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, value, "a number")
        # Arithmetic is float32: what it cannot hold is no use. NaN passes, to be refused by name.
        is_nan = isinstance(value, float) and math.isnan(value)
        if value and not is_nan and not 1e-30 < abs(value) < 1e30:
            raise self._wrong(name, value, "a number that float32 can hold")
        return float(value)

    def _wrong(self, name: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {name} should be {wanted}, not {_shown(value)}")
