"""The filters and the Sampler, live against those of `transformers` (extra `parity`)."""

from __future__ import annotations

import numpy as np
import pytest

from kvgen.filters import (
    add_bias,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)
from kvgen.sampling import Sampler, SamplingOptions

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

V = 997


def reference(name: str, value: object, logits: np.ndarray, history: list[int]) -> np.ndarray:
    """The logits [V] that a logits processor of transformers gives."""
    processor = getattr(transformers, f"{name}LogitsProcessor", None)
    processor = processor or getattr(transformers, f"{name}LogitsWarper")
    ids, scores = torch.tensor([history]), torch.from_numpy(logits.copy())[None]
    return np.asarray(processor(value)(ids, scores)[0])


@pytest.fixture(params=range(5))
def random(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(request.param)


@pytest.fixture
def logits(random: np.random.Generator) -> np.ndarray:
    return random.normal(0, 4, V).astype(np.float32)


@pytest.mark.parametrize("penalty", [0.7, 1.3, 3.0])
def test_repetition_penalty(
    random: np.random.Generator, logits: np.ndarray, penalty: float
) -> None:
    history = random.integers(0, V, 200).tolist()
    np.testing.assert_allclose(
        penalize_repetition(logits, history, penalty),
        reference("RepetitionPenalty", penalty, logits, history),
        rtol=1e-6,
    )


@pytest.mark.parametrize("k", [1, 40, V - 1, V])
def test_top_k(logits: np.ndarray, k: int) -> None:
    np.testing.assert_array_equal(keep_top_k(logits, k), reference("TopK", k, logits, [0]))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p(logits: np.ndarray, p: float) -> None:
    np.testing.assert_array_equal(keep_top_p(logits, p), reference("TopP", p, logits, [0]))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.9])
def test_min_p(logits: np.ndarray, p: float) -> None:
    np.testing.assert_array_equal(keep_min_p(logits, p), reference("MinP", p, logits, [0]))


def test_logit_bias(random: np.random.Generator, logits: np.ndarray) -> None:
    ids = random.choice(V, 20, replace=False).tolist()
    bias = {token: float(random.normal(0, 9)) for token in ids} | {ids[0]: float("-inf")}
    np.testing.assert_allclose(
        add_bias(logits, bias),
        reference(
            "SequenceBias", {(token,): addend for token, addend in bias.items()}, logits, [0]
        ),
        rtol=1e-6,
    )


def test_the_chain_draws_what_the_chain_of_transformers_gives() -> None:
    random = np.random.default_rng(3)
    logits, history = random.normal(0, 2, 60).astype(np.float32), [4, 9, 9, 18, 37, 42]
    bias = {int(np.argmax(logits)): -3.0, 7: float("-inf"), 50: 4.0}
    chain = [
        ("SequenceBias", {(token,): addend for token, addend in bias.items()}),
        ("RepetitionPenalty", 1.4),
        ("TopK", 14),
        ("TopP", 0.95),
        ("MinP", 0.08),
        ("Temperature", 1.5),
    ]
    filtered, n_possible = logits, []
    for name, value in chain:
        filtered = reference(name, value, filtered, history)
        n_possible.append(int(np.isfinite(filtered).sum()))
    assert n_possible == [59, 59, 14, 12, 9, 9]  # of 60: every filter takes some out
    expected = np.exp(filtered.astype(np.float64))
    expected /= expected.sum()
    possible = np.flatnonzero(expected)
    sampler = Sampler(
        SamplingOptions(
            logit_bias=bias, repetition_penalty=1.4, top_k=14, top_p=0.95, min_p=0.08,
            temperature=1.5,
        ),
        seed=1,
    )  # fmt: skip
    count = 20_000
    drawn = np.bincount([sampler(logits, history) for _ in range(count)], minlength=60)
    assert drawn[possible].sum() == count
    means = count * expected[possible]
    # Chi-square of 8 degrees of freedom exceeds this by chance once in 1,000 times.
    assert ((drawn[possible] - means) ** 2 / means).sum() < 26.124
