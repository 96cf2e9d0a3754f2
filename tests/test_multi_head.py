"""A layer's attention output, head by head and as one product: by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvgen.attention.multi_head import HeadSum, OutputProjection, sum_heads
from kvgen.errors import UsageError
from kvgen.model import Model
from tests.conftest import Loader
from tests.sequences import output_weights
from tests.test_maps import recorded
from tests.test_render import make_trace


def projection_of(model: Model, layer: int) -> OutputProjection:
    return OutputProjection(output_weights(model)(layer), model.params.layers[layer].o.bias)


# grouped queries; biases; biases and no groups; windows; one key/value head; a norm behind W_O
FAMILIES = ["llama_gqa", "llama_biased", "gpt2", "starcoder2", "mistral", "gemma2", "opt"]


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_and_bias_add_up_to_the_output_of_the_layer(name: str, tiny_model: Loader) -> None:
    model, recording = recorded(tiny_model, name)
    H, D, C = model.config.n_heads, model.config.head_dim, model.config.d_model
    for layer, query in ((0, 0), (1, 11), (2, 22)):
        z = recording.trace.layer(layer).z[query]
        weights, bias = projection_of(model, layer)[:2]
        found = sum_heads(recording.trace.layer(layer), query, OutputProjection(weights, bias))
        np.testing.assert_array_equal(found.z, z)
        by_hand = np.zeros(C)
        for head in range(H):
            written = np.zeros(C)
            for number in range(D):
                written += float(z[head, number]) * weights[:, head * D + number]
            np.testing.assert_allclose(found.written[head], written, rtol=1e-4, atol=1e-6)
            by_hand += written
        if bias is not None:
            by_hand += bias
            np.testing.assert_array_equal(found.bias, bias)
        np.testing.assert_allclose(found.total, by_hand, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.output, by_hand, rtol=1e-4, atol=1e-6)
        energy = by_hand @ by_hand
        np.testing.assert_allclose(
            found.shares, found.written @ by_hand / energy, rtol=1e-3, atol=1e-5
        )
        expected = 0 if bias is None else bias @ by_hand / energy
        assert found.bias_share == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert found.shares.sum() + found.bias_share == pytest.approx(1, abs=1e-5)
        assert found.difference == np.abs(found.total - found.output).max() < 1e-5


def test_there_are_families_with_a_bias_and_without(tiny_model: Loader) -> None:
    biased = [projection_of(tiny_model(name), 0).bias is not None for name in FAMILIES]
    assert any(biased) and not all(biased)


def test_the_sum_is_the_output_that_the_reference_engine_adds(tiny_model: Loader) -> None:
    """The layer's own arithmetic: what its linear module makes of z."""
    model, recording = recorded(tiny_model, "llama_biased")
    z = recording.trace.layer(1).z[7]
    linear = model.params.layers[1].o
    assert linear.bias is not None
    expected = z.reshape(1, -1) @ linear.weight.dequantize().T + linear.bias
    found = sum_heads(recording.trace.layer(1), 7, projection_of(model, 1))
    np.testing.assert_allclose(found.total, expected[0], rtol=1e-5, atol=1e-6)


def two_heads(z: list[list[float]], bias: list[float] | None = None) -> HeadSum:
    """Heads of one number, a width of two; W_O turns the second head's number around."""
    layer = make_trace(1, H=2, G=1, D=1, layers=1).layers[0]
    weights = np.float32([[1, 0], [0, -1]])
    projection = OutputProjection(weights, None if bias is None else np.float32(bias))
    return sum_heads(replace(layer, z=np.float32([z])), 0, projection)


def test_two_heads_and_a_bias_with_a_pencil() -> None:
    found = two_heads([[3], [4]])
    assert found.written.tolist() == [[3, 0], [0, -4]] and found.total.tolist() == [3, -4]
    np.testing.assert_allclose(found.shares, [9 / 25, 16 / 25])
    assert found.bias is None and found.bias_share == 0 and found.difference == 0
    found = two_heads([[3], [4]], [1, 8])  # the output is (4, 4)
    np.testing.assert_allclose(found.shares, [12 / 32, -16 / 32])
    assert found.bias_share == pytest.approx(36 / 32)


def test_an_output_of_zero_has_no_shares() -> None:
    assert two_heads([[0], [0]]).shares.tolist() == [0, 0]


def test_a_missing_head_is_noticed(tiny_model: Loader) -> None:
    model, recording = recorded(tiny_model, "llama_gqa")
    some = recording.trace.layer(1).only(0, 1, 2)
    with pytest.raises(UsageError, match="needs every head: record without -H"):
        sum_heads(some, 3, projection_of(model, 1))
