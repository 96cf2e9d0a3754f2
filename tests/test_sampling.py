"""Filters and the Sampler, by hand-worked examples."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import kvgen.sampling
from kvgen.errors import UsageError
from kvgen.sampling import Sampler, SamplingOptions, keep_min_p, keep_top_k, keep_top_p

# Probabilities .4 .3 .2 .1
LOGITS = np.log(np.float32([0.2, 0.4, 0.1, 0.3]))


def kept(logits: np.ndarray) -> list[int]:
    return np.flatnonzero(np.isfinite(logits)).tolist()


def draw(options: SamplingOptions, *, count: int = 4000, seed: int = 0) -> np.ndarray:
    sampler = Sampler(options, seed=seed)
    return np.bincount([sampler(LOGITS, ()) for _ in range(count)], minlength=4) / count


def test_docstring_examples_hold() -> None:
    assert doctest.testmod(kvgen.sampling).failed == 0


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [1, 3]), (4, [0, 1, 2, 3])])
def test_top_k_keeps_the_k_most_probable(k: int, expected: list[int]) -> None:
    assert kept(keep_top_k(LOGITS, k)) == expected


def test_top_k_keeps_exactly_k_of_equal_logits() -> None:
    assert kept(keep_top_k(np.zeros(5, np.float32), 2)) == [0, 1]


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.01, [1]), (0.39, [1]), (0.5, [1, 3]), (0.75, [0, 1, 3]), (1, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, expected: list[int]) -> None:
    assert kept(keep_top_p(LOGITS, p)) == expected


@pytest.mark.parametrize(
    ("p", "expected"), [(0, [0, 1, 2, 3]), (0.45, [0, 1, 3]), (0.6, [1, 3]), (1, [1])]
)
def test_min_p_keeps_what_is_near_the_best(p: float, expected: list[int]) -> None:
    assert kept(keep_min_p(LOGITS, p)) == expected


def test_greedy_takes_the_most_probable() -> None:
    assert Sampler(SamplingOptions())(LOGITS, ()) == 1


def test_sampled_shares_follow_the_probabilities() -> None:
    np.testing.assert_allclose(
        draw(SamplingOptions(temperature=1.0)), [0.2, 0.4, 0.1, 0.3], atol=0.03
    )


def test_temperature_acts_last() -> None:
    # top-p .5 keeps .4 and .3; temperature 1/2 squares them: .16 to .09.
    shares = draw(SamplingOptions(temperature=0.5, top_p=0.5))
    np.testing.assert_allclose(shares, [0, 0.64, 0, 0.36], atol=0.03)


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    shares = draw(SamplingOptions(temperature=temperature), count=400)
    expected = [0, 1, 0, 0] if temperature < 1 else [0.25] * 4
    np.testing.assert_allclose(shares, expected, atol=0.1)


def test_the_same_seed_gives_the_same_choices() -> None:
    options = SamplingOptions(temperature=1.0, top_k=3)
    sequences = [
        [sampler(LOGITS, ()) for _ in range(50)]
        for sampler in (
            Sampler(options, seed=5),
            Sampler(options, seed=5),
            Sampler(options, seed=6),
        )
    ]
    assert sequences[0] == sequences[1] != sequences[2]


def test_a_seed_is_drawn_and_told_where_none_is_given() -> None:
    options = SamplingOptions(temperature=1.0)
    first = Sampler(options)
    again = Sampler(options, seed=first.seed)
    assert [first(LOGITS, ()) for _ in range(20)] == [again(LOGITS, ()) for _ in range(20)]


def test_ids_beyond_the_tokenizer_are_never_sampled() -> None:
    assert Sampler(SamplingOptions(), n_tokens=1)(LOGITS, ()) == 0
    sampler = Sampler(SamplingOptions(temperature=5.0), n_tokens=2, seed=0)
    assert {sampler(LOGITS, ()) for _ in range(200)} == {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1; it must be 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"top_k": 1.5}, "top-k is 1.5; it must be a whole number"),
        ({"top_k": -2}, "top-k is -2; it must be 0 or more, or -1 for all"),
        ({"repetition_penalty": 0}, "repetition-penalty is 0; it must be above 0 and finite"),
        ({"repetition_penalty": 1e300}, "repetition-penalty is 1e"),
        ({"top_p": 0}, "top-p is 0; it must be above 0 and at most 1"),
        ({"top_p": 2}, "top-p is 2"),
        ({"min_p": 1.5}, "min-p is 1.5; it must lie between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "greedy"),
        ({"temperature": 0.8}, "temperature 0.8"),
        (
            {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
            "top-k 40 > top-p 0.9 > min-p 0.05 > temperature 1",
        ),
    ],
)
def test_the_chain_is_described_in_its_order(options: dict[str, float], expected: str) -> None:
    assert SamplingOptions(**options).describe() == expected  # type: ignore[arg-type]
