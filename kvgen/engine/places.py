"""Layers, heads and queries as users name them by number, and the one message for a wrong number.

A command line is read before the model is known: `parse_numbers` and `parse_address` judge the
form alone. What there is decides later, in `Numbers.among` and `check_number`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvgen.errors import UsageError

ADDRESS = r"[Ll]?([0-9]{1,5})(?:[.Hh]([0-9]{1,5}))?"  # two groups: layer, and head if there is one


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers that are still to be looked up: single ones and ranges, `-1` being the last."""

    ranges: tuple[tuple[int, int], ...]  # first and last of each, both included
    everything: bool = False

    def among(self, there: Sequence[int], what: str, *, owner: str = "model") -> list[int]:
        """The numbers in the order in which they are named, each once.

        A negative number counts from the end of `there`, which is ascending. Raises UsageError
        for a number that is not there.

        Numbers(((0, 1), (-1, -1))).among(range(6), "layer") is [0, 1, 5].
        """
        if self.everything:
            return list(there)
        chosen: list[int] = []
        for first, last in self.ranges:
            for number in range(first, last + 1):
                chosen.append(check_number(number, there, what, owner=owner))
        return list(dict.fromkeys(chosen))


ALL = Numbers((), everything=True)


def parse_numbers(text: str, what: str) -> Numbers:
    """`5`, `0-3,7`, `-1` or `all`. Raises UsageError for anything else."""
    if text == "all":
        return ALL
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"(-[0-9]{1,6})|([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
        if match is None:
            raise UsageError(f"{what} {part!r} is not a number, a range like 0-3, or all")
        first = int(match[1] or match[2])
        last = int(match[3]) if match[3] is not None else first
        if last < first:
            raise UsageError(f"{what} range {part.strip()} runs backwards: write {last}-{first}")
        ranges.append((first, last))
    return Numbers(tuple(ranges))


def parse_number(text: str, what: str) -> int:
    """One number, `-1` being the last. Raises UsageError for anything else."""
    if re.fullmatch("-?[0-9]{1,6}", text.strip()) is None:
        raise UsageError(f"{what} {text!r} is not a number")
    return int(text)


def parse_address(text: str) -> tuple[int, int | None]:
    """The layer, and the head if there is one, of `5`, `5.1` or `L5H1`.

    Raises UsageError for anything else.
    """
    match = re.fullmatch(ADDRESS, text)
    if match is None:
        raise UsageError(f"{text!r} is not an address: write a layer as 5, a head as 5.1 or L5H1")
    return int(match[1]), None if match[2] is None else int(match[2])


def check_number(number: int, there: Sequence[int], what: str, *, owner: str = "model") -> int:
    """The number itself, or the one that a negative number counts to from the end of `there`.

    Raises UsageError where it is not there; `owner` is what has the numbers: a model, a recording.
    """
    try:
        number = operator.index(number)
    except TypeError:
        raise UsageError(f"{what} {number!r} is not a whole number") from None
    if number in there:
        return number
    if -len(there) <= number < 0:
        return there[number]
    raise UsageError(f"{what} {number}: this {owner} has {_described(there, what)}")


def check_numbers(
    numbers: Sequence[int] | None, there: Sequence[int], what: str, *, owner: str = "model"
) -> list[int] | None:
    """The same of several numbers, each once, in order; None, which stands for all, stays None.

    Raises UsageError for none at all, too.
    """
    if numbers is None:
        return None
    if not isinstance(numbers, Iterable):
        raise UsageError(f"{what} {numbers!r} is not a list: write [{numbers!r}]")
    if not len(numbers):
        raise UsageError(f"no {what} is named: this {owner} has {_described(there, what)}")
    return sorted({check_number(number, there, what, owner=owner) for number in numbers})


def _described(there: Sequence[int], what: str) -> str:
    """`layers 0-5`, or `layers 1, 3` where some between are missing."""
    if len(there) == 1:
        return f"{what} {there[0]} only"
    several = "queries" if what == "query" else f"{what}s"
    if there[-1] - there[0] == len(there) - 1:
        return f"{several} {there[0]}-{there[-1]}"
    return f"{several} {', '.join(map(str, there))}"
