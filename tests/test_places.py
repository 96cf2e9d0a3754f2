"""Layers, heads and queries by number: what can be written, and the one message for the rest."""

from __future__ import annotations

import pytest

from kvgen.engine.places import (
    ALL,
    check_number,
    parse_address,
    parse_number,
    parse_numbers,
)
from kvgen.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", [5]), ("0-3", [0, 1, 2, 3]), ("4,0-1", [4, 0, 1]), ("-1", [5]), ("-6", [0]),
        ("1, 1,0-2", [1, 0, 2]), ("all", [0, 1, 2, 3, 4, 5]),
    ],
)  # fmt: skip
def test_numbers_are_looked_up_in_the_order_in_which_they_are_named(
    text: str, expected: list[int]
) -> None:
    assert parse_numbers(text, "layer").among(range(6), "layer") == expected


def test_numbers_of_a_recording_are_those_that_it_holds() -> None:
    assert ALL.among([1, 3, 4], "layer", owner="recording") == [1, 3, 4]
    assert parse_numbers("3-4", "layer").among([1, 3, 4], "layer") == [3, 4]
    assert parse_numbers("-3", "layer").among([1, 3, 4], "layer") == [1]
    with pytest.raises(UsageError, match=r"^layer 2: this recording has layers 1, 3, 4$"):
        parse_numbers("1-3", "layer").among([1, 3, 4], "layer", owner="recording")


@pytest.mark.parametrize("text", ["", "one", "1;2", "-1-3", "1-", "1,,2", "9" * 5000, "²", "1.5"])
def test_what_is_no_number_is_refused_before_a_model_is_known(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number"):
        parse_numbers(text, "layer")
    with pytest.raises(UsageError, match="is not a number"):
        parse_number(text, "layer")


def test_a_range_that_runs_backwards_is_shown_the_right_way_round() -> None:
    with pytest.raises(UsageError, match="layer range 3-1 runs backwards: write 1-3"):
        parse_numbers("3-1", "layer")


@pytest.mark.parametrize(
    ("number", "n", "what", "message"),
    [
        (6, 6, "layer", "layer 6: this model has layers 0-5"),
        (-7, 6, "layer", "layer -7: this model has layers 0-5"),
        (1, 1, "head", "head 1: this model has head 0 only"),
        (9, 3, "query", "query 9: this model has queries 0-2"),
    ],
)
def test_a_number_out_of_range_is_told_the_range(
    number: int, n: int, what: str, message: str
) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        check_number(number, range(n), what)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", (5, None)), ("5.1", (5, 1)), ("L5H1", (5, 1)), ("l5", (5, None)), ("5h1", (5, 1))],
)
def test_an_address_is_a_layer_or_a_head(text: str, expected: tuple[int, int | None]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "5,1", "-1", "5.", "H1", "5.1.2", "9" * 6])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not an address: write a layer as 5, a head as 5.1"):
        parse_address(text)
