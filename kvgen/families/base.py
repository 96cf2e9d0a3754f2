"""What a family declares: how to read its config.json, and under which names its tensors lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvgen.config import Activation, ModelConfig, RopeConfig
from kvgen.errors import CheckpointError


def split_width(d_model: int, n_heads: int) -> int:
    """The head size where a config gives none. Raises CheckpointError where heads do not divide."""
    if d_model % n_heads:
        raise CheckpointError(f"config.json: {n_heads} heads do not divide a width of {d_model}")
    return d_model // n_heads


class Source(NamedTuple):
    """Where one canonical slot lies in a checkpoint; `{layer}` in the name is a layer's number."""

    name: str  # without prefix and without `.weight`
    bias: bool = False
    transposed: bool = False  # stored (in, out), as GPT-2's Conv1D
    block: tuple[int, int] = (0, 1)  # (i, n): the i-th of n equal blocks of output rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One naming scheme. The core never sees it: only `Keys` goes in, only data comes out."""

    model_type: str
    config: Callable[[Keys], ModelConfig]
    sources: Callable[[Keys], Mapping[str, Source]]  # slot -> place; slots as in kvgen.params
    inert: frozenset[str] = frozenset()  # keys that sound like arithmetic and are not, here


# Keys that change nothing at inference although their names speak of arithmetic.
_INERT = frozenset({"attention_dropout", "output_attentions"})
_SPEAKS_OF_ARITHMETIC = re.compile(
    "rope|rotary|scale|scaling|multiplier|norm|bias|window|attention|softcap|expert|quant|alibi",
    re.IGNORECASE,
)
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
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
        self._where = where
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
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, value, "a number")
        return float(value)

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def activation(self, name: str, default: Any = _MISSING) -> Activation:
        """An activation function, by any of the names that transformers gives it."""
        value = self._value(name, default)
        if value not in _ACTIVATIONS:
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
        return Keys(value, where=f"{self._where}: {name}")

    def rope(self, *, default_theta: float, max_context: int) -> RopeConfig:
        """RoPE in either dialect of transformers.

        v4 writes `rope_theta` beside `rope_scaling`; v5 writes both into `rope_parameters`.
        """
        if self.has("rope_parameters"):
            scaling = self.nested("rope_parameters")
            assert scaling is not None
            theta = scaling.number("rope_theta", self.number("rope_theta", default_theta))
        else:
            scaling = self.nested("rope_scaling")
            theta = self.number("rope_theta", default_theta)
        if scaling is None:
            return RopeConfig(theta=theta)
        old_name = scaling._value("type", "default")
        kind = scaling._value("rope_type", old_name)
        if scaling.number("partial_rotary_factor", 1.0) != 1.0:
            raise CheckpointError(f"{scaling._where}: a partial_rotary_factor is not supported")
        if kind == "default":
            rope = RopeConfig(theta=theta)
        elif kind == "linear":
            rope = RopeConfig(theta=theta, kind="linear", factor=scaling.number("factor"))
        elif kind == "llama3":
            rope = RopeConfig(
                theta=theta,
                kind="llama3",
                factor=scaling.number("factor"),
                low_freq_factor=scaling.number("low_freq_factor"),
                high_freq_factor=scaling.number("high_freq_factor"),
                original_context=scaling.count("original_max_position_embeddings", max_context),
            )
            if not 0 < rope.low_freq_factor < rope.high_freq_factor:
                raise CheckpointError(
                    f"{scaling._where}: low_freq_factor must lie between 0 and high_freq_factor"
                )
        else:
            raise CheckpointError(
                f"{scaling._where}: rope type {kind!r} is not supported; "
                "kvgen knows default, linear and llama3"
            )
        scaling.refuse_unread(every=True)
        return rope

    def refuse_unread(self, *, inert: frozenset[str] = frozenset(), every: bool = False) -> None:
        """Raise CheckpointError for a key that may change the arithmetic and was not understood.

        With `every`, the name need not speak of arithmetic (inside an object that is all
        arithmetic).
        """
        for name in self.unread():
            value = self._raw[name]
            harmless = value is None or value is False or value == 0 or value in ("", [], {})
            speaks = every or _SPEAKS_OF_ARITHMETIC.search(name)
            if speaks and not harmless and name not in _INERT and name not in inert:
                raise CheckpointError(
                    f"{self._where}: {name} = {value!r} is not understood; "
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
                raise CheckpointError(f"{self._where}: {name} is missing")
            return default
        return value

    def _wrong(self, name: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {name} should be {wanted}, not {value!r}")
