"""The worked example of order, against NumPy by hand."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from kvgen.attention import example

ROUNDING = 1e-6


def softmax_by_hand(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("module", [example])
def test_the_examples_in_docstrings_hold(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


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
