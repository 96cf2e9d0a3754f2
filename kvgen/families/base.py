"""What a family declares: how to read its config.json, and under which names its tensors lie."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from kvgen.config import Activation, ModelConfig
from kvgen.errors import CheckpointError

T = TypeVar("T")
# Rows of the stored tensor, and which of them belong to the slot.
Take = Callable[[ModelConfig], tuple[int, "slice | npt.NDArray[np.intp]"]]


class Source(NamedTuple):
    """Where one canonical slot lies in a checkpoint.

    `{layer}` and `{head}` in the name stand for their numbers.
    """

    name: str  # without prefix and without `.weight`
    bias: bool = False
    transposed: bool = False  # stored (in, out), as GPT-2's Conv1D
    take: Take | None = None  # where a tensor holds several slots, or rows in another order
    plus_one: bool = False  # a norm that is stored as what is added to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One naming scheme. The core never sees it: only `Keys` goes in, only data comes out."""

    model_type: str
    config: Callable[[Keys], ModelConfig]
    sources: Callable[[Keys], Mapping[str, Source]]  # slot -> place; slots as in kvgen.params
    inert: frozenset[str] = frozenset()  # keys that sound like arithmetic and are not, here
    text_key: str | None = None  # where config.json describes the text model
    ignored: tuple[str, ...] = ()  # beginnings of tensors that the text model does not use
    tokenizer: str = ""  # the class that transformers takes where the settings name none


# Keys that change nothing at inference although their names speak of arithmetic.
_INERT = frozenset({"attention_dropout", "output_attentions", "residual_dropout"})
_SPEAKS_OF_ARITHMETIC = re.compile(
    "rope|rotary|scale|scaling|multiplier|norm|bias|window|attention|softcap|expert|quant|alibi"
    "|layer_types|residual|parallel",
    re.IGNORECASE,
)
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


class Keys:
    """A config.json that remembers which of its keys were understood.

    Every reading method takes the key's name and the family's default; without a default a missing
    key is a CheckpointError, and so is a value of the wrong kind.
    """

    def __init__(self, raw: Mapping[str, Any], *, where: str = "config.json") -> None:
        self._raw = raw
        self.where = where
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the key is there with a value; null counts as absent."""
        return self._raw.get(name) is not None

    def count(self, name: str, default: Any = _MISSING) -> int:
        """A positive whole number, small enough to be a size of something."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**24:
            raise self._wrong(name, value, "a positive whole number")
        return value

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
        return Keys(value, where=f"{self.where}: {name}")

    def strings(self, name: str, *, count: int, choices: tuple[str, ...]) -> list[str] | None:
        """A list of `count` words out of `choices`, None where it is absent."""
        value = self._value(name, None)
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(word in choices for word in value)
        ):
            raise self._wrong(name, value, f"{count} of {', '.join(choices)}")
        return value

    def numbers(self, name: str, default: Any = _MISSING) -> tuple[float, ...]:
        """A list of numbers."""
        value = self._value(name, default)
        if not isinstance(value, (list, tuple)):
            raise self._wrong(name, value, "a list of numbers")
        return tuple(self._float(name, number) for number in value)

    def word(self, name: str, default: Any = _MISSING) -> str:
        """A word."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a word")
        return value

    def or_none(self, read: Callable[[str], T], name: str, default: T | None) -> T | None:
        """What `read` makes of the key: None where it is null, the default where it is absent."""
        if self.has(name):
            return read(name)
        self.mark(name)
        return None if name in self._raw else default

    def pattern(self, name: str, default: Any) -> list[str]:
        """Words given as [[[word, word, ...], times], ...], written out."""
        value = self._value(name, default)
        try:
            if sum(len(words) * times for words, times in value) >= 2**24:
                raise ValueError
            return [str(word) for words, times in value for _ in range(times) for word in words]
        except (TypeError, ValueError):
            raise self._wrong(name, value, "a list of [words, times]") from None

    def same(self, one: str, other: str) -> bool:
        """Whether two keys are both there and say the same."""
        return self.has(one) and self._raw.get(one) == self._raw.get(other)

    def twin(self, copy: str, original: str) -> None:
        """Count a key as understood where it only repeats another."""
        if self.same(copy, original):
            self.mark(copy)

    def mark(self, name: str) -> None:
        """Count the key as understood without reading it."""
        self._read.add(name)

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        """The error that says what this key should have been."""
        return self._wrong(name, self._raw.get(name), wanted)

    def refuse_unread(self, *, inert: frozenset[str] = frozenset(), every: bool = False) -> None:
        """Raise CheckpointError for a key that may change the arithmetic and was not understood.

        With `every`, the name need not speak of arithmetic (inside an object that is all
        arithmetic).
        """
        for name in self.unread():
            value = self._raw[name]
            all_full = isinstance(value, list) and all(kind == "full_attention" for kind in value)
            harmless = not value or (name == "layer_types" and all_full)
            speaks = every or _SPEAKS_OF_ARITHMETIC.search(name)
            if speaks and not harmless and name not in _INERT and name not in inert:
                raise CheckpointError(
                    f"{self.where}: {name} = {value!r} is not understood; "
                    "kvgen does not guess what it changes"
                )

    def unread(self) -> list[str]:
        """Names of the keys that nothing asked for."""
        return [name for name in self._raw if name not in self._read]

    def _value(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._raw.get(name)
        if value is None:
            if default is _MISSING:
                raise CheckpointError(f"{self.where}: {name} is missing")
            return default
        return value

    def _float(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, value, "a number")
        # Arithmetic is float32: what it cannot hold is no use. NaN passes, to be refused by name.
        is_nan = isinstance(value, float) and math.isnan(value)
        if value and not is_nan and not 1e-30 < abs(value) < 1e30:
            raise self._wrong(name, value, "a number that float32 can hold")
        return float(value)

    def _wrong(self, name: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {name} should be {wanted}, not {value!r}")
