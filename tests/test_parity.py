"""The golden table, live against an installed `transformers` (extra `parity`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.configs import CONFIGS
from tests.conftest import Loader
from tests.test_golden import TOLERANCE

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(
    name: str, kind: str, tiny_folder: Callable[..., Path], tiny_model: Loader
) -> None:
    ids = tiny.make_ids(100, seed=7)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_folder(name, kind), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    for backend in ("numpy", "numba"):
        logits = tiny_model(name, kind=kind, backend=backend, cache_dtype="f32").logits(ids)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
