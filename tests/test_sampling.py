"""Filters and the Sampler, by hand-worked examples."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

import kvgen.filters
from kvgen.errors import UsageError
from kvgen.filters import (
    add_bias,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_occurrence,
    penalize_repetition,
)
from kvgen.model import Model
from kvgen.sampling import Sampler, SamplingOptions

# Probabilities .4 .3 .2 .1
LOGITS = np.log(np.float32([0.2, 0.4, 0.1, 0.3]))


def kept(logits: np.ndarray) -> list[int]:
    return np.flatnonzero(np.isfinite(logits)).tolist()


def draw(options: SamplingOptions, *, count: int = 4000, seed: int = 0) -> np.ndarray:
    sampler = Sampler(options, seed=seed)
    return np.bincount([sampler(LOGITS, ()) for _ in range(count)], minlength=4) / count


def test_docstring_examples_hold() -> None:
    assert doctest.testmod(kvgen.filters).failed == 0


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


@pytest.mark.parametrize("dtype", [int, np.int64])
def test_a_bias_is_added_to_the_logits_of_its_ids(dtype: type) -> None:
    bias = {dtype(1): -2.5, dtype(3): -np.inf, dtype(4): 1.0}  # there is no id 4
    np.testing.assert_array_equal(
        add_bias(np.float32([1, 2, 3, 4]), bias), np.float32([1, -0.5, 3, -np.inf])
    )


def test_the_repetition_penalty_divides_above_0_and_multiplies_below() -> None:
    penalized = penalize_repetition(np.float32([3, -3, 3, -np.inf]), [0, 1, 1, 3, 9], 1.5)
    np.testing.assert_array_equal(penalized, np.float32([2, -4.5, 3, -np.inf]))


@pytest.mark.parametrize("presence", [0.0, 0.5, -2.0])
@pytest.mark.parametrize("frequency", [0.0, 0.25, -1.0])
def test_occurrence_is_counted_token_by_token(presence: float, frequency: float) -> None:
    history = [0, 2, 2, 5, 2, 0, 7]  # 7 is beyond the logits
    expected = [
        1.0 - frequency * history.count(token) - presence * (token in history) for token in range(6)
    ]
    penalized = penalize_occurrence(
        np.ones(6, np.float32), history, presence=presence, frequency=frequency
    )
    np.testing.assert_allclose(penalized, expected, rtol=1e-6)


def test_filters_leave_their_logits_as_they_were() -> None:
    logits = np.float32([1, 2, 3])
    add_bias(logits, {0: 1.0})
    penalize_repetition(logits, [0], 2.0)
    penalize_occurrence(logits, [0], presence=1.0, frequency=1.0)
    assert logits.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "history", "expected"),
    [
        ({"presence_penalty": 2.0}, [1], 3),
        ({"presence_penalty": 2.0}, [1, 3], 0),
        ({"presence_penalty": 2.0, "repeat_last_n": 1}, [1, 3], 1),
        ({"presence_penalty": 2.0, "repeat_last_n": 2}, [1, 3], 0),
        ({"presence_penalty": 2.0, "repeat_last_n": 9}, [1, 3], 0),
        ({"presence_penalty": 2.0, "repeat_last_n": 0}, [1, 3], 1),
        ({"repetition_penalty": 9.0, "repeat_last_n": 1}, [1, 3], 1),
        ({"repetition_penalty": 9.0, "repeat_last_n": 0}, [1, 3], 1),
        ({"repetition_penalty": 9.0}, [1, 3], 0),
        ({"frequency_penalty": 0.2}, [1], 1),  # .4 falls to .327, .3 is second
        ({"frequency_penalty": 0.2}, [1, 1], 3),
        ({"logit_bias": {2: 5.0}}, [], 2),
        ({"logit_bias": {2: 5.0}, "presence_penalty": 9.0}, [2], 1),
        ({"logit_bias": {1: -np.inf, 3: False}}, [], 0),
        # A bias comes first: it makes 2 positive, so that the penalty divides it.
        ({"logit_bias": {2: 3.0}, "repetition_penalty": 100.0}, [2], 2),
    ],
)
def test_greedy_choices_after_bias_and_penalties(
    options: dict[str, Any], history: list[int], expected: int
) -> None:
    assert Sampler(SamplingOptions(**options))(LOGITS, history) == expected


def test_a_banned_token_is_never_sampled() -> None:
    shares = draw(SamplingOptions(temperature=9.0, logit_bias={1: False, 2: -np.inf, 0: -1e6}))
    assert shares.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ban_of_every_token_is_refused(temperature: float) -> None:
    banned = dict.fromkeys(range(4), False)
    sampler = Sampler(SamplingOptions(temperature=temperature, logit_bias=banned))
    with pytest.raises(UsageError, match="logit-bias and ignore-eos ban every token"):
        sampler(LOGITS, ())


@pytest.mark.parametrize("factor", [1e-29, 1e29])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_penalties_stay_finite(factor: float, sign: int) -> None:
    options = SamplingOptions(
        temperature=1.0,
        repetition_penalty=factor,
        frequency_penalty=1e6,
        presence_penalty=1e6,
        logit_bias={0: sign * 1e6},
        top_k=3,
        top_p=0.9,
        min_p=0.1,
    )
    sampler = Sampler(options, seed=0)
    # Only a bias above 0 that is divided by a tiny factor exceeds 8193 penalties of a million.
    assert (sampler(LOGITS, [0] * 8192) == 0) == (factor < 1 and sign > 0)


def test_stop_ids_are_banned_where_the_options_say_so() -> None:
    assert Sampler(SamplingOptions(), stop_ids=[1])(LOGITS, ()) == 1
    assert Sampler(SamplingOptions(ignore_eos=True), stop_ids=[1, 3, 99])(LOGITS, ()) == 0
    biased = SamplingOptions(ignore_eos=True, logit_bias={1: 100.0})
    assert Sampler(biased, stop_ids=[1])(LOGITS, ()) == 3


# Choices of the sampler before it had any of the options after `repetition_penalty`.
GOLDEN: list[tuple[dict[str, Any], str]] = [
    (
        {},
        "49 43 38 54 32 29 56 58 4 41 27 35 38 48 21 1 43 31 21 5 57 11 10 12",
    ),
    (
        {"repetition_penalty": 1.5},
        "49 43 38 54 32 29 56 58 36 41 27 35 25 48 21 2 0 31 18 16 57 11 10 12",
    ),
    (
        {"temperature": 1.0},
        "10 43 38 6 12 47 1 6 44 41 27 35 38 35 18 56 43 31 22 16 57 11 10 12",
    ),
    (
        {"temperature": 0.8, "top_k": 10, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3},
        "34 43 38 6 16 47 15 22 36 41 27 35 38 48 21 56 43 31 21 16 57 11 10 12",
    ),
]  # fmt: skip
NEUTRAL = {
    "frequency_penalty": 0, "presence_penalty": 0, "repeat_last_n": -1, "logit_bias": {},
    "ignore_eos": False,
}  # fmt: skip


@pytest.mark.parametrize("more", [{}, NEUTRAL, {"repeat_last_n": 1000, "logit_bias": {7: 0}}])
@pytest.mark.parametrize(("options", "expected"), GOLDEN)
def test_choices_are_those_of_earlier_versions(
    options: dict[str, Any], more: dict[str, Any], expected: str
) -> None:
    random = np.random.default_rng(7)
    sampler = Sampler(SamplingOptions(**options, **more), seed=11)
    ids = [3, 1, 4, 1, 5]
    for _ in expected.split():
        ids.append(sampler(random.normal(0, 2, 60).astype(np.float32), ids))
    assert " ".join(map(str, ids[5:])) == expected


# The value that chi-square exceeds by chance once in 1,000 times, by degrees of freedom.
CRITICAL = {4: 18.467, 5: 20.515, 7: 24.322, 11: 31.264}
CHI_LOGITS = np.float32([2.0, 1.7, 1.5, 1.1, 0.8, 0.5, 0.2, -0.1, -0.4, -0.7, -1.0, -1.3])
CHI_HISTORY = [0, 0, 3, 11]


def chi_square(
    sampler: Sampler, expected: np.ndarray, history: list[int], *, count: int = 20_000
) -> float:
    """Pearson's statistic of draws; infinity where a token is drawn whose probability is 0."""
    drawn = np.bincount(
        [sampler(CHI_LOGITS, history) for _ in range(count)], minlength=len(expected)
    )
    possible = expected > 0
    if drawn[~possible].any():
        return float("inf")
    means = count * expected[possible]
    return float(((drawn[possible] - means) ** 2 / means).sum())


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum()


@pytest.mark.parametrize(
    ("options", "n_possible"),
    [
        ({"temperature": 1.0}, 12),
        ({"temperature": 2.0, "top_k": 5}, 5),
        ({"temperature": 0.7, "top_p": 0.8}, 5),
        ({"temperature": 1.5, "min_p": 0.2}, 6),
        (
            {
                "temperature": 1.3,
                "top_k": 8,
                "logit_bias": {1: -np.inf, 10: 3.0},
                "repetition_penalty": 1.2,
                "frequency_penalty": 0.3,
                "presence_penalty": -0.2,
            },
            8,
        ),
    ],
)
def test_draws_follow_the_filtered_softmax(options: dict[str, Any], n_possible: int) -> None:
    logits = CHI_LOGITS.astype(np.float64)
    for token, bias in options.get("logit_bias", {}).items():
        logits[token] += bias
    for token in set(CHI_HISTORY):
        factor = options.get("repetition_penalty", 1.0)
        logits[token] *= factor if logits[token] < 0 else 1 / factor
        logits[token] -= options.get("presence_penalty", 0)
        logits[token] -= options.get("frequency_penalty", 0) * CHI_HISTORY.count(token)
    order = np.argsort(-logits)
    mass = softmax(logits)[order]
    gone = np.zeros(12, bool)
    gone[options.get("top_k", 12) :] = True
    gone |= np.cumsum(mass) - mass >= options.get("top_p", 1.0)
    gone |= mass < options.get("min_p", 0) * mass[0]
    logits[order[gone]] = -np.inf
    expected = softmax(logits / options["temperature"])
    assert np.count_nonzero(expected) == n_possible
    critical = CRITICAL[n_possible - 1]
    sampler = Sampler(SamplingOptions(**options), seed=2)
    assert chi_square(sampler, expected, CHI_HISTORY) < critical
    warmer = options | {"temperature": 1.2 * options["temperature"]}
    assert chi_square(Sampler(SamplingOptions(**warmer), seed=2), expected, CHI_HISTORY) > critical


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
        ({"frequency_penalty": "a"}, "frequency-penalty is 'a'; it must be a number"),
        ({"frequency_penalty": float("nan")}, "frequency-penalty is nan; it must lie between -1e6"),
        ({"presence_penalty": float("-inf")}, "presence-penalty is -inf; it must lie between"),
        ({"presence_penalty": True}, "presence-penalty is True; it must be a number"),
        ({"repeat_last_n": -2}, "repeat-last-n is -2; it must be 0 or more, or -1 for all"),
        ({"repeat_last_n": 1.5}, "repeat-last-n is 1.5; it must be a whole number"),
        ({"ignore_eos": 1}, "ignore-eos is 1; it must be True or False"),
        ({"logit_bias": [1]}, r"logit-bias is \[1\]; it must map token ids to numbers"),
        ({"logit_bias": {"a": 1}}, "logit-bias is of 'a'; a token id is a whole number, 0 or more"),
        ({"logit_bias": {-1: 1}}, "logit-bias is of -1; a token id is a whole number"),
        ({"logit_bias": {5: "x"}}, "logit-bias of 5 is 'x'; it must lie between -1e6 and 1e6, or"),
        ({"logit_bias": {5: float("inf")}}, "logit-bias of 5 is inf; it must lie between"),
        ({"logit_bias": {5: float("nan")}}, "logit-bias of 5 is nan; it must lie between"),
        ({"logit_bias": {5: True}}, "logit-bias of 5 is True; it must lie between"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingOptions(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "greedy"),
        ({"temperature": 0.8}, "temperature 0.8"),
        (
            {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
            "top-k 40 > top-p 0.9 > min-p 0.05 > temperature 1",
        ),
        ({"repetition_penalty": 1.2, "repeat_last_n": 0}, "greedy"),
        ({"presence_penalty": 0.5}, "presence penalty 0.5 > greedy"),
        (
            {
                "temperature": 1.0,
                "top_k": 40,
                "logit_bias": {262: False, 5: 2.5},
                "ignore_eos": True,
                "repetition_penalty": 1.2,
                "presence_penalty": 0.5,
                "frequency_penalty": -0.5,
                "repeat_last_n": 64,
            },
            "logit bias 262=-inf 5=2.5 > ids that end a text banned > repetition penalty 1.2 > "
            "frequency penalty -0.5 > presence penalty 0.5 (last 64 tokens) > top-k 40 > "
            "temperature 1",
        ),
    ],
)
def test_the_chain_is_described_in_its_order(options: dict[str, Any], expected: str) -> None:
    assert SamplingOptions(**options).describe() == expected


def test_options_keep_a_bias_of_their_own() -> None:
    bias = {3: 1.0}
    options = SamplingOptions(logit_bias=bias)
    bias[4] = 2.0
    assert options.logit_bias == {3: 1.0}
    assert hash(options) == hash(SamplingOptions(logit_bias={3: 1.0}))


# --- in a model -------------------------------------------------------------------------------


def test_generate_takes_penalties_and_biases(storyteller: Model) -> None:
    end = min(storyteller.stop_ids)
    forced: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0, "logit_bias": {end: 1e6}}
    run = list(storyteller.generate("The cat", **forced))
    assert [(piece.token, piece.finish_reason) for piece in run] == [(end, "stop")]
    run = list(storyteller.generate("The cat", **forced, ignore_eos=True))
    assert len(run) == 6 and run[-1].finish_reason == "length"
    assert not storyteller.stop_ids & {piece.token for piece in run}
    run = list(
        storyteller.generate("The cat", max_new_tokens=40, temperature=0, presence_penalty=1e6)
    )
    ids = [*storyteller.encode("The cat"), *(piece.token for piece in run)]
    assert len(set(ids)) == len(ids)


def test_a_bias_outside_the_vocabulary_is_refused(storyteller: Model) -> None:
    size = storyteller.config.vocab_size
    with pytest.raises(UsageError, match=f"token id {size} is outside the vocabulary"):
        storyteller.sampler(SamplingOptions(logit_bias={size: 1.0}))
