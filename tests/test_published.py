"""The comparison with published tables: true shapes, and the same work in both runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import kvgen
from tests.conftest import Loader
from tests.peers import published

N_PARAMETERS = {  # as their model cards count them
    "GPT-2 124M": 124_439_808,
    "Gemma 3 270M": 268_098_176,
    "Qwen3 0.6B": 596_049_920,
    "Llama 3.2 1B": 1_235_814_400,
}


@pytest.mark.parametrize("line", published.TABLE, ids=lambda line: line.model)
def test_the_shapes_are_those_of_the_models(line: published.Published) -> None:
    shapes = dict(published.tensors(published._SHAPES[line.model]))
    assert sum(map(math.prod, shapes.values())) == N_PARAMETERS[line.model]
    least, most = line.times_slower
    assert 5 < least < line.on / line.off < most


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3_text", "qwen3", "llama"])
def test_a_model_of_each_kind_can_be_run(model_type: str, tmp_path: Path) -> None:
    config = next(x for x in published._SHAPES.values() if x["model_type"] == model_type)
    small = {"vocab_size": 97, "num_hidden_layers": 2, "n_layer": 2, "n_positions": 64}
    small = {name: number for name, number in small.items() if name in config}
    published.write_model(tmp_path, config | small, "BF16")
    engine = kvgen.load(tmp_path, backend="numpy").engine
    ours = published.measure(engine, n_prompt=5, n_new=4, n_sampled=3)
    assert (ours.n_tokens, ours.positions_on) == (4, 5 + 4 - 1)
    assert ours.sampled in ((5, 6, 8), (5, 7, 8)) and ours.max_abs_logit_difference < 1e-3


def test_the_table_has_a_line_for_each_model(tiny_model: Loader) -> None:
    engine = tiny_model("gpt2", backend="numpy").engine
    ours = published.measure(engine, n_prompt=3, n_new=3, n_sampled=2)
    lines = published.markdown([(line, ours) for line in published.TABLE]).splitlines()
    assert len(lines) == 2 + len(published.TABLE) and all("|" in line for line in lines)
