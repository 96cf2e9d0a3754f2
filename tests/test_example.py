"""The worked examples of scaling, words, retrieval and order, each against NumPy by hand."""

from __future__ import annotations

import doctest
import re

import numpy as np
import pytest

from kvgen.attention import example, scaling
from kvgen.render.canvas import Canvas, Mode
from kvgen.render.example import worked_examples
from tests.command import inside
from tests.test_render import lines_of, without_colors

ROUNDING = 1e-6
SINGLE = 1e-3  # relative: exponentials of float32 scores around 100, against float64


def softmax_by_hand(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("module", [example, scaling])
def test_the_examples_in_docstrings_hold(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


# --- Scaling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("d_k", scaling.SIZES)
def test_the_effect_of_scaling_is_what_float64_gives(d_k: int, scaled: bool) -> None:
    random = np.random.RandomState(0)
    q, k = random.standard_normal((200, d_k)), random.standard_normal((64, d_k))
    scores = np.einsum("id,jd->ij", q, k) / (np.sqrt(d_k) if scaled else 1)
    weights = softmax_by_hand(scores)
    gradients = [np.sqrt(((np.diag(w) - np.outer(w, w)) ** 2).sum()) for w in weights]
    effect = scaling.scaling_effect(d_k, scaled=scaled)
    assert (effect.d_k, effect.scaled) == (d_k, scaled)
    assert effect.spread == pytest.approx(np.std(scores), rel=SINGLE)
    assert effect.greatest_weight == pytest.approx(weights.max(axis=1).mean(), rel=SINGLE)
    assert effect.mean_gradient == pytest.approx(np.mean(gradients), rel=SINGLE)
    assert effect.median_gradient == pytest.approx(np.median(gradients), rel=SINGLE)


def test_the_jacobian_is_the_change_of_the_weights() -> None:
    scores, small = np.array([0.3, -1.2, 2.0, 0.0]), 1e-6
    changed = [
        (softmax_by_hand(scores + small * one) - softmax_by_hand(scores - small * one))
        / (2 * small)
        for one in np.eye(4)
    ]
    jacobian = scaling.softmax_jacobian(softmax_by_hand(scores))
    np.testing.assert_allclose(jacobian, np.transpose(changed), atol=ROUNDING)


def test_only_scaled_scores_keep_their_spread_and_gradient_as_vectors_grow() -> None:
    small, _, large = (scaling.scaling_effect(d_k, scaled=False) for d_k in scaling.SIZES)
    assert large.spread / small.spread == pytest.approx(np.sqrt(1024 / 4), rel=0.1)
    assert large.greatest_weight > 0.9 and large.median_gradient < 0.001
    for d_k in scaling.SIZES:
        effect = scaling.scaling_effect(d_k, scaled=True)
        assert effect.spread == pytest.approx(1, rel=0.1)
        assert effect.greatest_weight < 0.15 and effect.median_gradient > 0.1


# --- Words ------------------------------------------------------------------------------------


def test_tea_is_at_a_right_angle_to_king_and_car_is_opposite() -> None:
    _, car, _, tea = example.likenesses()
    assert (tea.word, tea.vector) == ("tea", (3, 0, -1))
    assert tea.product == tea.cosine == 1 * 3 + 2 * 0 + 3 * -1 == 0
    assert car.cosine == pytest.approx(-1)


def test_the_words_weights_are_the_softmax_of_scaled_products() -> None:
    products = np.array([14, -14, 6, 0])
    words = example.likenesses()
    scaled = products / np.sqrt(3)
    np.testing.assert_allclose([one.scaled for one in words], scaled, rtol=ROUNDING)
    weights = np.exp(scaled) / np.exp(scaled).sum()
    np.testing.assert_allclose([one.weight for one in words], weights, rtol=1e-5)


def test_a_search_matches_normalises_and_mixes() -> None:
    row = example.retrieval()
    assert row.products.tolist() == [6, 3, 3, 0]  # 3 for "red", 3 for "vehicle"
    weights = np.exp([6 / np.sqrt(3), 3 / np.sqrt(3), 3 / np.sqrt(3), 0])
    weights /= weights.sum()
    np.testing.assert_allclose(row.weights, weights, atol=ROUNDING)
    lengths, heights = [4.2, 3.8, 0.1, 6.0], [1.5, 1.6, 0.1, 15.0]
    np.testing.assert_allclose(row.output, [weights @ lengths, weights @ heights], atol=1e-5)


# --- Order ------------------------------------------------------------------------------------


def test_both_orders_are_equal_where_the_scores_are_symmetric() -> None:
    Q, K, V = (np.array(each, float) for each in (example.QUERIES, example.KEYS, example.VALUES))
    cases = example.order_cases()
    for case, keys in zip(cases, (Q, 2 * Q, Q * [1, 2, 3, 4], K), strict=True):
        S = Q @ keys.T
        outputs = [softmax_by_hand(scores / 2) @ V for scores in (S, S.T)]
        assert case.asymmetry == np.abs(S - S.T).max()
        difference = np.abs(outputs[0] - outputs[1]).max()
        assert case.output_difference == pytest.approx(difference, abs=ROUNDING)
    assert [case.asymmetry > 0 for case in cases] == [False, False, False, True]


def test_projections_with_a_symmetric_product_make_both_orders_equal() -> None:
    """Q = X A and K = X B with A B^T symmetric, where K is no multiple of Q."""
    random = np.random.RandomState(3)
    X, V = random.standard_normal((3, 6)), random.standard_normal((3, 5))
    A, M = random.standard_normal((2, 6, 6))
    B = np.linalg.solve(A, M + M.T).T  # A B^T = M + M^T
    Q, K = X @ A, X @ B
    forward, swapped = example.walk(Q, K, V, causal=False), example.walk(K, Q, V, causal=False)
    assert np.linalg.matrix_rank(np.stack([Q.ravel(), K.ravel()])) == 2
    np.testing.assert_allclose(forward.scores, swapped.scores, atol=1e-4)
    np.testing.assert_allclose(forward.output, swapped.output, atol=1e-4)


# --- On the screen ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["glyphs", "ascii", "color"])
@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_examples_fit_and_each_number_is_whole(width: int, mode: Mode) -> None:
    canvas = Canvas(width, mode)
    lines = [without_colors(line) for line in lines_of(worked_examples(canvas), canvas)]
    assert max(map(len, lines)) <= width
    assert len(lines) <= {60: 140, 80: 110, 100: 100, 120: 100}[width]
    text = " ".join(" ".join(lines).split())
    assert "…" not in text and "~" not in text
    for number in ("32.06", "0.0006", "0.1798", "9.4e-08", "-8.083", "0.00031", "0.722", "0.311"):
        assert number in text


@pytest.mark.parametrize("width", ["80", "100", "120"])
def test_a_row_of_each_example_stands_on_one_line(width: str) -> None:
    lines = inside("inspect-attention", "--example", "--width", width).stdout.decode().splitlines()
    for row in (
        r"1024 +32 +q·k +32\.06 +0\.933 +0\.0863 +0\.0006",
        r"tea +\[3, 0, -1\] +0 +3\.162 +0\.000 +4\.899 +0\.000 +0\.00031",
        r"red car +\[1, 1, 0\] +6 +3\.464 +0\.722 +\[4\.2, 1\.5\] +\[3\.03, 1\.08\]",
        r"K = Q diag\(1, 2, 3, 4\) +0 +0\.000",
    ):
        assert sum(bool(re.fullmatch(row, line.strip())) for line in lines) == 1
