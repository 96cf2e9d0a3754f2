"""The parts of a recording that a file may lack: predictions, the lens, contributions.

Each is a dataclass. An array of it is an array of the file, `lens_entropies` for `entropies` of the
lens; its other fields stand in the file's meta, `meta["lens"]`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from kvgen.attention.contributions import Contributions
from kvgen.attention.lens import Lens
from kvgen.attention.predictions import Predictions
from kvgen.engine.tensors import Array

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


def extras_of(arrays: dict[str, Array], meta: dict[str, Any]) -> Extras:
    """The parts that a file holds. Raises KeyError, ValueError or TypeError where one is broken."""
    return Extras(
        predictions=_part(Predictions, "predictions", arrays, meta),
        lens=_part(Lens, "lens", arrays, meta),
        contributions=_part(Contributions, "contributions", arrays, meta),
    )


def _part(
    kind: type[_Part], name: str, arrays: dict[str, Array], meta: dict[str, Any]
) -> _Part | None:
    if name not in meta:
        return None
    values: dict[str, Any] = {
        field.name: meta[name][field.name]
        if field.name in meta[name]
        else arrays[f"{name}_{field.name}"]
        for field in fields(kind)
    }
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return kind(**values)


def listed(value: Any) -> Any:
    """An array as lists for JSON, with six decimals and null for NaN; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind == "f":
        rounded = np.round(value.astype(np.float64), 6)
        return np.where(np.isnan(rounded), None, rounded).tolist()  # type: ignore[call-overload]
    return value.tolist()
