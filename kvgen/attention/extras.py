"""The parts of a recording that a file may lack: predictions, the lens, contributions.

Each is a dataclass. An array of it is an array of the file, `lens_entropies` for `entropies` of the
lens; its other fields stand in the file's meta, `meta["lens"]`. `LAYOUTS` has the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from kvgen.attention.contributions import Contributions
from kvgen.attention.lens import Lens
from kvgen.attention.predictions import Predictions
from kvgen.engine.tensors import Array

# Of each array its numbers and sizes, see `check_arrays`. L layers of the model, N of the lens, P
# positions of the lens, K candidates.
LAYOUTS: dict[str, dict[str, str]] = {
    "predictions": {
        "ids": "i4 TK",
        "probabilities": "f4 TK",
        "entropies": "f4 T",
        "next_probabilities": "f4 T",
    },
    "lens": {
        "ids": "i4 NPK",
        "probabilities": "f4 NPK",
        "entropies": "f4 NP",
        "final_ids": "i4 P",
        "final_probabilities": "f4 NP",
        "ranks": "i4 NP",
    },
    "contributions": {
        "heads": "f8 LH",
        "attention_biases": "f8 L",
        "mlps": "f8 L",
        "read": "i8 LH",
        "read_weights": "f4 LH",
        "copies": "f8 LH",
    },
}
_MAY_LACK = {"predictions_next_probabilities"}  # some numbers, which are NaN then
_FACTS: dict[str, Any] = {  # what stands in meta for a field of this type
    "int": int,
    "int | None": int | None,
    "float": float | int,
    "float | None": float | int | None,
    "tuple[int, ...]": list,
}

_Part = TypeVar("_Part", Lens, Contributions, Predictions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What is there of them."""

    predictions: Predictions | None = None
    lens: Lens | None = None
    contributions: Contributions | None = None

    def arrays(self) -> dict[str, Array]:
        """The arrays of all parts, by the names that they have in a file."""
        return {
            f"{part}_{name}": value
            for part, values in self._values().items()
            for name, value in values.items()
            if isinstance(value, np.ndarray)
        }

    def facts(self) -> dict[str, dict[str, Any]]:
        """The other fields of each part, as they stand in meta."""
        return {
            part: {
                name: value for name, value in values.items() if not isinstance(value, np.ndarray)
            }
            for part, values in self._values().items()
        }

    def as_json(self) -> dict[str, Any]:
        """All parts, with their arrays as lists; NaN is null."""
        return {
            part: {name: listed(value) for name, value in values.items()}
            for part, values in self._values().items()
        }

    def _values(self) -> dict[str, dict[str, Any]]:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: {field.name: getattr(part, field.name) for field in fields(part)}
            for name, part in parts.items()
            if part is not None
        }


def extras_of(arrays: Mapping[str, Array], meta: Mapping[str, Any], *, n_tokens: int) -> Extras:
    """The parts that a file holds. Raises KeyError, ValueError or TypeError where one is broken."""
    sizes = {}
    if "lens" in meta:
        sizes = {"N": len(meta["lens"]["layers"]), "P": len(meta["lens"]["positions"])}
    found = Extras(
        predictions=_part(Predictions, "predictions", arrays, meta, T=n_tokens),
        lens=_part(Lens, "lens", arrays, meta, **sizes),
        contributions=_part(Contributions, "contributions", arrays, meta),
    )
    if found.lens is not None:
        _check_ascending(found.lens.layers)
        _check_ascending(found.lens.positions, n_tokens)
    if found.contributions is not None:
        read, query = found.contributions.read, found.contributions.query
        if not 0 <= read.min() <= read.max() <= query < n_tokens:
            raise ValueError("contributions of positions that are not there")
    return found


def check_arrays(arrays: Mapping[str, Array], layout: Mapping[str, str], **known: int) -> None:
    """Raise ValueError or KeyError where arrays have other numbers or sizes than the layout says.

    It has for each name the numbers and a letter for each size, `f4 LTHD`. A letter stands for the
    same size everywhere, at least 1; some are `known`. Numbers have to be finite.
    """
    sizes = dict(known)
    for name, form in layout.items():
        array, (numbers, letters) = arrays[name], form.split()
        fits = array.dtype == np.dtype(numbers) and array.ndim == len(letters) and array.size > 0
        if not fits or any(
            sizes.setdefault(letter, size) != size
            for letter, size in zip(letters, array.shape, strict=True)
        ):
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
        missing = np.isnan(array) if name in _MAY_LACK else np.zeros(array.shape, np.bool_)
        if not (np.isfinite(array) | missing).all():
            raise ValueError(f"{name} holds numbers that are not finite")


def _part(
    kind: type[_Part], part: str, arrays: Mapping[str, Array], meta: Mapping[str, Any], **known: int
) -> _Part | None:
    if part not in meta:
        return None
    names = {f"{part}_{name}": form for name, form in LAYOUTS[part].items()}
    check_arrays(arrays, names, **known)
    values: dict[str, Any] = {name: arrays[f"{part}_{name}"] for name in LAYOUTS[part]}
    for field in fields(kind):
        if field.name not in values:
            value = meta[part][field.name]
            value = typed(value, _FACTS[str(field.type)], f"{field.name} of {part}")
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def typed(value: Any, kind: Any, what: str) -> Any:
    """A value of meta. Raises ValueError where it is of another type, or not finite."""
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or (isinstance(value, float) and not np.isfinite(value)):
        raise ValueError(f"{what} is {value!r}")
    return value


def _check_ascending(numbers: tuple[int, ...], end: int = 10**6) -> None:
    """Raise ValueError for numbers that do not ascend from 0 on to below an end."""
    whole = all(type(number) is int and 0 <= number < end for number in numbers)
    if not whole or list(numbers) != sorted(set(numbers)):
        raise ValueError(f"{numbers} are no numbers of layers or positions")


def listed(value: Any) -> Any:
    """An array as lists for JSON, with six decimals, and null where it has no finite number.

    Anything else as it is.
    """
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind == "f":
        rounded = np.round(value.astype(np.float64), 6)
        return np.where(np.isfinite(rounded), rounded, None).tolist()  # type: ignore[call-overload]
    return value.tolist()
