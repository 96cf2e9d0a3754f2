"""A head's output as the sum of weights times values: by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvgen.attention.steps import explain_query
from kvgen.attention.weighted_values import weigh_values
from tests.conftest import Loader
from tests.test_maps import recorded


@pytest.mark.parametrize("name", ["llama_gqa", "mistral", "gemma2", "gpt2"])
def test_weighted_values_add_up_to_the_kernels_output(name: str, tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, name)
    for layer, head, query in ((0, 0, 0), (1, 2, 9), (2, 3, 22)):
        one = recording.trace.layer(layer)
        explained = explain_query(one, head, query)
        found = weigh_values(one, explained, head=head, query=query)
        assert found.parts.shape == (query + 1, one.v.shape[2])
        by_hand = np.zeros(one.v.shape[2])
        for j in range(query + 1):
            part = float(explained.weights[j]) * one.v[j, one.kv_head(head)]
            np.testing.assert_allclose(found.parts[j], part, rtol=1e-5)
            by_hand += part
        np.testing.assert_allclose(found.output, by_hand, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(found.kernel, one.z[query, head])
        assert found.difference == np.abs(found.output - found.kernel).max() < 1e-5


def test_a_wrong_value_would_be_noticed(tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, "llama_gqa")
    one = recording.trace.layer(1)
    explained = explain_query(one, 2, 9)
    z = one.z.copy()
    z[9, 2, 5] += 0.25
    found = weigh_values(replace(one, z=z), explained, head=2, query=9)
    assert found.difference == pytest.approx(0.25, abs=1e-5)
