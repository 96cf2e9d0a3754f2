"""Authority: logits of the reference implementation, for every tiny model and the default one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvgen.model import Model
from kvgen.sampling import SamplingOptions
from tests.configs import CONFIGS, LENGTH_DEPENDENT
from tests.conftest import BACKENDS, Loader
from tests.sequences import steps_of

GOLDEN = Path(__file__).parent / "golden"
# float32 sums in another order, on logits of order one to ten.
TOLERANCE = 1e-4


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("length", [1, 2, 40, 200])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_reference_implementation(
    name: str, backend: str, length: int, use_cache: bool, tiny_model: Loader
) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    short = name in LENGTH_DEPENDENT and length <= 40
    expected = golden["logits_40" if short else "logits"][:length]
    logits = tiny_model(name, backend=backend).logits(golden["ids"][:length], cache=use_cache)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_equal_the_reference_implementation(
    name: str, backend: str, tiny_model: Loader
) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    engine = tiny_model(name, backend=backend).engine
    steps = steps_of(engine, golden["ids"][:12].tolist(), 64)
    assert [step.token for step in steps] == golden["greedy_ids"].tolist()


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_default_model_equals_the_reference_implementation(
    storyteller: Model, use_cache: bool
) -> None:
    golden = np.load(GOLDEN / "storyteller.npz")
    logits = storyteller.logits(golden["ids"], cache=use_cache)[::10]
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("story", "use_cache"),
    [
        (0, True),
        *(pytest.param(story, True, marks=pytest.mark.slow) for story in range(1, 5)),
        pytest.param(0, False, marks=pytest.mark.slow),
    ],
)
def test_default_model_writes_the_same_greedy_text(
    storyteller: Model, story: int, use_cache: bool
) -> None:
    golden = np.load(GOLDEN / "storyteller.npz")
    expected = golden["greedy_ids"][story]
    pieces = list(
        storyteller.generate(
            str(golden["openings"][story]),
            max_new_tokens=len(expected),
            sampling=SamplingOptions(),
            cache=use_cache,
        )
    )
    tokens = [piece.token for piece in pieces]
    assert tokens + [0] * (len(expected) - len(tokens)) == expected.tolist()
    assert "".join(piece.text for piece in pieces) == str(golden["greedy_texts"][story])
