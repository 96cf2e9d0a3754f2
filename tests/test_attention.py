"""The steps of the formula and the diagnostics, by hand-worked examples and on real traces."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from kvgen.attention import diagnostics
from kvgen.attention.diagnostics import METRICS, diagnose
from kvgen.attention.export import export
from kvgen.attention.record import RecordedRun, probe_ids, record, recording_bytes
from kvgen.attention.saved import read_export
from kvgen.attention.steps import (
    attention_weights,
    explain_row,
    weighted_values,
)
from kvgen.engine.trace import LayerTrace
from kvgen.errors import KvgenError, UsageError
from kvgen.sampling import Sampler, SamplingOptions
from tests import readme, tiny
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader
from tests.sequences import output_weights

PROMPT = tiny.make_ids(30, seed=2)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def recorded(
    tiny_model: Loader,
    name: str,
    backend: str = "numpy",
    n_new: int = 6,
    heads: Sequence[int] | None = None,
) -> RecordedRun:
    model = tiny_model(name, backend=backend)
    return record(
        model.engine,
        PROMPT,
        layers=[0, 2],
        heads=heads,
        sampler=Sampler(SamplingOptions()),
        max_new_tokens=n_new,
        output_weights=output_weights(model),
    )


@every_backend
@pytest.mark.parametrize("name", CONFIGS)
def test_maps_are_those_that_the_kernel_used(name: str, backend: str, tiny_model: Loader) -> None:
    recording = recorded(tiny_model, name, backend)
    assert recording.diagnostics.recomputed < 1e-5
    assert recording.decode_rows is not None and recording.decode_rows < 1e-5
    assert (recording.trace.length, recording.trace.n_prompt) == (35, 30)
    assert recording.sampled_last is not None


def test_rows_sum_to_one_and_never_see_the_future(tiny_model: Loader) -> None:
    weights = attention_weights(recorded(tiny_model, "llama_gqa").trace.layers[1])
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    assert weights.shape == (6, 35, 35)
    assert not np.triu(weights, 1).any()


def test_later_rows_can_be_had_alone(tiny_model: Loader) -> None:
    layer = recorded(tiny_model, "llama_gqa").trace.layers[0]
    np.testing.assert_allclose(
        attention_weights(layer, first=30), attention_weights(layer)[:, 30:], atol=1e-6
    )


def test_a_damaged_map_would_be_noticed(tiny_model: Loader) -> None:
    trace = recorded(tiny_model, "llama_gqa").trace
    damaged = replace(trace.layers[0], k=trace.layers[0].k[::-1])
    assert diagnose(replace(trace, layers=(damaged,))).recomputed > 1e-2


@every_backend
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma2"])
def test_some_heads_alone_are_as_among_all(name: str, backend: str, tiny_model: Loader) -> None:
    whole = recorded(tiny_model, name, backend)
    some = recorded(tiny_model, name, backend, heads=[1, 2, 4])
    assert some.trace.heads == (1, 2, 4) and some.diagnostics.recomputed < 1e-5
    assert some.residual_norms is not None and whole.residual_norms is not None
    for one, other in zip(some.trace.layers, whole.trace.layers, strict=True):
        np.testing.assert_array_equal(attention_weights(one), attention_weights(other)[[1, 2, 4]])
    for metric in METRICS:
        np.testing.assert_allclose(
            some.diagnostics.scores[metric],
            whole.diagnostics.scores[metric][:, [1, 2, 4]],
            atol=1e-5,
        )
    for lengths, of_all in zip(some.residual_norms, whole.residual_norms, strict=True):
        np.testing.assert_allclose(lengths, of_all[:, :, [1, 2, 4]], rtol=1e-4, atol=1e-5)


def test_a_prefill_alone_has_no_decode_rows(tiny_model: Loader) -> None:
    recording = recorded(tiny_model, "gpt2", n_new=0)
    assert recording.decode_rows is None and recording.sampled_last is None
    assert recording.trace.length == 30


def test_query_heads_of_a_group_read_the_same_keys() -> None:
    random = np.random.RandomState(0)
    q, k, v = (random.standard_normal((7, n, 4)).astype(np.float32) for n in (6, 2, 2))
    heads = tuple(range(6))
    grouped = LayerTrace(layer=0, heads=heads, group_size=3, scale=0.5, q=q, k=k, v=v, z=q)
    k, v = k.repeat(3, axis=1), v.repeat(3, axis=1)
    repeated = LayerTrace(layer=0, heads=heads, group_size=1, scale=0.5, q=q, k=k, v=v, z=q)
    weights = attention_weights(grouped)
    np.testing.assert_allclose(weights, attention_weights(repeated), atol=1e-6)
    np.testing.assert_allclose(
        weighted_values(weights, grouped), weighted_values(weights, repeated), atol=1e-6
    )


def test_king_against_queen_car_and_crown() -> None:
    row = explain_row([1, 2, 3], [[1, 2, 3], [-1, -2, -3], [1, 1, 1]], np.eye(3))
    assert row.products.tolist() == [14, -14, 6]
    np.testing.assert_allclose(row.cosines, [1, -1, 0.926], atol=5e-4)
    np.testing.assert_allclose(row.scaled, np.array([14, -14, 6]) / np.sqrt(3), rtol=1e-6)


def test_the_four_steps_with_three_keys_of_four_and_values_of_five() -> None:
    random = np.random.RandomState(1)
    q, keys, values = random.randn(4), random.randn(3, 4), random.randn(3, 5)
    row = explain_row(q, keys, values)
    scaled = keys @ q / 2  # sqrt(d_k) = 2
    weights = np.exp(scaled) / np.exp(scaled).sum()
    np.testing.assert_allclose(row.weights, weights, rtol=1e-5)
    np.testing.assert_allclose(row.output, weights @ values, rtol=1e-4)
    assert row.output.shape == (5,)
    assert row.weights.sum() == pytest.approx(1)
    assert row.shares.sum() == pytest.approx(1, abs=1e-5)


def test_a_row_without_output_has_no_shares() -> None:
    row = explain_row([1.0, 0.0], [[0.0, 0.0]], [[0.0, 0.0]])
    assert row.shares.tolist() == [0] and row.cosines.tolist() == [0]


def test_a_row_is_explained_whatever_the_flags_of_its_products_say() -> None:
    """A BLAS may raise them for nothing, so not even a number that deserves one warns."""
    row = explain_row([1.0], [[0.0], [0.0]], [[np.inf], [-np.inf]])
    assert np.isnan(row.output).all() and row.weights.tolist() == [0.5, 0.5]


A = np.float32([[[1, 0, 0, 0], [0.25, 0.75, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4]]])


def test_sink_mass_by_hand() -> None:
    assert diagnostics.sink_mass(A)[0] == pytest.approx((1 + 0.25 + 0.5 + 0.1) / 4)


def test_previous_token_by_hand() -> None:
    assert diagnostics.previous_token(A)[0] == pytest.approx((0.25 + 0.5 + 0.3) / 3)


def test_induction_by_hand() -> None:
    # x = a b a b: row 2 (a) should read key 1, row 3 (b) key 2; rows 0 and 1 have no match.
    assert diagnostics.induction(A, [5, 6, 5, 6])[0] == pytest.approx((0.5 + 0.3) / 2)
    # x = a a: row 1 repeats at once and may read itself.
    assert diagnostics.induction(A[:, :2, :2], [5, 5])[0] == pytest.approx(0.75)
    assert np.isnan(diagnostics.induction(A, [1, 2, 3, 4])[0])


def test_normalised_entropy_by_hand() -> None:
    uniform = np.tril(np.ones((1, 5, 5), np.float32))
    uniform /= uniform.sum(axis=-1, keepdims=True)
    entropies = diagnostics.row_entropy(uniform)
    assert diagnostics.normalised_entropy(entropies)[0] == pytest.approx(1)
    one_key = diagnostics.row_entropy(np.eye(5, dtype=np.float32)[None])
    assert diagnostics.normalised_entropy(one_key)[0] == 0


def test_entropy_of_the_rest_by_hand() -> None:
    # Row 2: keys 1, 2 alike; row 3: all on key 1; row 4: .95 on the sink, not counted.
    weights = np.zeros((1, 5, 5), np.float32)
    weights[0, [0, 1], 0] = 1
    weights[0, 2, :3] = 0.5, 0.25, 0.25
    weights[0, 3, :2] = 0.6, 0.4
    weights[0, 4, :2] = 0.95, 0.05
    entropies = diagnostics.row_entropy(weights)
    mean, rows = diagnostics.entropy_of_the_rest(entropies, weights[:, :, 0])
    assert rows.tolist() == [2]
    assert mean[0] == pytest.approx((1 + 0) / 2, abs=1e-6)


def test_one_token_has_a_sink_and_nothing_else() -> None:
    one = np.ones((2, 1, 1), np.float32)
    assert diagnostics.sink_mass(one).tolist() == [1, 1]
    assert np.isnan(diagnostics.previous_token(one)).all()
    assert np.isnan(diagnostics.normalised_entropy(one[:, :, 0])).all()
    assert np.isnan(diagnostics.sink_mass(one[:, 1:])).all()
    assert np.isnan(diagnostics.mean_distance(one)).all()


def test_labels_need_enough_rows() -> None:
    def label(n_rows: int, **scores: float) -> str:
        values = dict.fromkeys(METRICS, 0.0) | scores
        found = diagnostics.Diagnostics(
            scores={name: np.float32([[value]]) for name, value in values.items()},
            rows=dict.fromkeys(METRICS, np.float32([[n_rows]])),
            first=np.zeros((1, n_rows, 1), np.float32),
            recomputed=0.0,
        )
        return found.label(0, 0)

    assert label(10, previous=0.9, **{"sink-later": 0.5}) == "previous 0.90"
    assert label(10, induction=0.5) == "induction 0.50"
    assert label(10, **{"sink-later": 0.31}) == "sink 0.31"
    assert label(10, entropy=0.85) == "broad 0.85"
    assert label(10, previous=0.39) == ""
    assert label(10, duplicate=0.5) == "duplicate 0.50"
    assert label(3, **{"sink-later": 0.9}) == ""


def test_duplicate_tokens_by_hand() -> None:
    weights = np.tril(np.full((1, 4, 4), 0.1, np.float32))
    weights[0, 2, 0] = 0.7  # ids 5 6 5 5: row 2 matches key 0, row 3 keys 0 and 2
    assert diagnostics.duplicate_token(weights, [5, 6, 5, 5])[0] == pytest.approx((0.7 + 0.2) / 2)
    assert np.isnan(diagnostics.duplicate_token(weights, [1, 2, 3, 4])).all()


def test_mean_distance_by_hand() -> None:
    weights = np.zeros((2, 4, 4), np.float32)
    weights[0, 1:, 0] = 1  # all on the sink: nothing is counted
    weights[1, 1, 1], weights[1, 2, 1], weights[1, 3, 1] = 0.5, 1, 0.5
    assert diagnostics.mean_distance(weights).tolist() == [0, 1.0]
    assert diagnostics.mean_distance(weights, with_first=True).tolist() == [2, 1.0]


def test_memory_is_counted_before_it_is_taken(
    tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_model("llama_gqa").config
    H, D = config.n_heads, config.head_dim
    monkeypatch.setattr("kvgen.attention.record.usable_cores", lambda: 2)
    maps = 2 * 2 * H // config.n_kv_heads + 3
    one = recording_bytes(config, n_layers=2, n_heads=H, n_prompt=10, n_new=0)
    assert one == 4 * (2 * 2 * 10 * H * D + maps * 100)
    assert recording_bytes(config, n_layers=2, n_heads=H, n_prompt=10, n_new=5) == 4 * (
        2 * 2 * 2 * 14 * H * D + maps * 14 * 14
    )
    # One head of one layer: one map at a time, whatever the cores.
    alone = recording_bytes(config, n_layers=1, n_heads=1, n_prompt=10, n_new=0)
    assert alone == 4 * (2 * 10 * D + 5 * 100)


def test_a_probe_finds_a_perfect_induction_head() -> None:
    ids = probe_ids(range(100, 200), n_tokens=50, seed=0, first=[7])
    assert len(ids) == 101 and ids[1:51] == ids[51:] and len(set(ids)) == 51
    assert ids == probe_ids(range(100, 200), n_tokens=50, seed=0, first=[7])
    weights = np.eye(101, dtype=np.float32)[None].repeat(2, axis=0)
    for i in range(51, 101):  # the key behind where this token stood before
        weights[1, i] = np.eye(101)[i - 49]
    assert diagnostics.probed_induction(weights, 50).tolist() == [0, 1]
    with pytest.raises(UsageError, match="needs 50 ordinary tokens; there are 3"):
        probe_ids([1, 2, 3], n_tokens=50, seed=0, first=[])


def test_diagnosing_does_not_write_to_its_input(tiny_model: Loader) -> None:
    trace = recorded(tiny_model, "gpt2").trace
    before = [layer.q.copy() for layer in trace.layers]
    found = diagnose(trace)
    assert found.scores["sink"].shape == (2, 5)
    for layer, q in zip(trace.layers, before, strict=True):
        np.testing.assert_array_equal(layer.q, q)


def saved(tiny_model: Loader, name: str, kind: str, path: Path) -> tuple[RecordedRun, Path]:
    recording = recorded(tiny_model, name, heads=[1, 4])
    tokens = [f"t{token}".encode() for token in recording.trace.token_ids]
    content = export(recording, tokens, facts={"model": "tiny"}, kind=kind)
    file = path / f"saved.{kind}"
    file.write_bytes(content)
    return recording, file


def test_an_archive_holds_what_its_schema_says(tiny_model: Loader, tmp_path: Path) -> None:
    recording, file = saved(tiny_model, "llama_gqa", "npz", tmp_path)
    with np.load(file, allow_pickle=False) as archive:
        whole = attention_weights(recording.trace.layers[1])
        np.testing.assert_array_equal(archive["weights"][1], whole)
        assert archive["layer_index"].tolist() == [0, 2]
        assert archive["head_index"].tolist() == [1, 4]
        assert archive["token_ids"].tolist() == list(recording.trace.token_ids)
        offsets = archive["token_offsets"]
        name = f"t{recording.trace.token_ids[3]}".encode()
        assert archive["tokens"].tolist() == [f"t{token}" for token in archive["token_ids"]]
        assert archive["token_bytes"][offsets[3] : offsets[4]].tobytes() == name
        assert archive["step_of_row"].tolist() == [0] * 30 + [1, 2, 3, 4, 5]
        assert archive["metrics"].shape == archive["metric_rows"].shape == (2, 2, len(METRICS))
        previous = recording.diagnostics.scores["previous"]
        np.testing.assert_array_equal(archive["metrics"][:, :, 1], previous)
        assert archive["metric_rows"][0, 0, :2].tolist() == [35, 34]
        assert archive["output_norms"].shape == archive["value_norms"].shape == (2, 35, 2)
        meta = json.loads(str(archive["meta"]))
    assert (meta["format"], meta["version"], meta["prompt_len"]) == ("kvgen.attention", 3, 30)
    assert meta["sampled_last"] == recording.sampled_last and meta["model"] == "tiny"


def test_tokens_are_stored_as_text_that_any_program_can_show(
    tiny_model: Loader, tmp_path: Path
) -> None:
    recording = recorded(tiny_model, "llama_gqa")
    tokens = [b"t"] * recording.trace.length
    tokens[:5] = [b" cat", b"\xe6\x9c", "月".encode(), b"\0", b""]
    expected = [" cat", r"\xe6\x9c", "月", r"\x00", "", *["t"] * (len(tokens) - 5)]
    for kind in ("npz", "safetensors", "json"):
        content = export(recording, tokens, facts={}, kind=kind)
        file = tmp_path / f"saved.{kind}"
        file.write_bytes(content)
        if kind == "json":
            assert json.loads(content)["tokens"] == expected
            continue
        if kind == "npz":
            assert np.load(file)["tokens"].tolist() == expected
        else:
            with safe_open(file, framework="numpy") as opened:
                assert json.loads(opened.metadata()["tokens"]) == expected
        assert read_export(file).tokens == tokens


def test_the_readme_shows_how_bertviz_and_circuitsvis_take_the_maps(
    tiny_model: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are replaced by checks of what they ask for; neither needs to be installed."""
    recording = recorded(tiny_model, "llama_gqa", heads=[1, 4])
    T = recording.trace.length
    (tmp_path / "girl.npz").write_bytes(export(recording, [b"t"] * T, facts={}, kind="npz"))
    shown: list[str] = []

    def head_view(attention: list[np.ndarray], tokens: list[str]) -> None:
        # As bertviz.util.format_attention: a tensor [1, H, T, T] for each layer.
        assert {one.shape for one in attention} == {(1, 2, T, T)} and len(attention) == 2
        assert all(isinstance(token, str) for token in tokens) and len(tokens) == T
        shown.append("bertviz")

    def attention_heads(*, attention: np.ndarray, tokens: list[str]) -> None:
        # circuitsvis.attention: [H, destination, source]
        assert attention.shape == (2, T, T) and len(tokens) == T
        shown.append("circuitsvis")

    for name, members in {
        "torch": {"from_numpy": lambda array: array},
        "bertviz": {"head_view": head_view},
        "circuitsvis": {},
        "circuitsvis.attention": {"attention_heads": attention_heads},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**members))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^ *```python\n(.*?)```", readme.QUESTIONS.read_text("utf-8"), re.M | re.S)
    (block,) = [textwrap.dedent(block) for block in blocks if "head_view" in block]
    assert len(block.strip().splitlines()) <= 9
    exec(compile(block, "README.md", "exec"), {})
    assert shown == ["bertviz", "circuitsvis"]


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("name", ["llama_gqa", "gemma2"])
def test_what_is_saved_can_be_read_again(
    name: str, kind: str, tiny_model: Loader, tmp_path: Path
) -> None:
    recording, file = saved(tiny_model, name, kind, tmp_path)
    again = read_export(file)
    assert again.recording.trace.heads == (1, 4) and again.meta["model"] == "tiny"
    assert again.tokens == [f"t{token}".encode() for token in recording.trace.token_ids]
    assert again.recording.diagnostics.recomputed == recording.diagnostics.recomputed
    assert again.recording.residual_norms is not None and recording.residual_norms is not None
    for one, other in zip(again.recording.residual_norms, recording.residual_norms, strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.recording.trace.n_prompt == recording.trace.n_prompt
    for one, other in zip(again.recording.trace.layers, recording.trace.layers, strict=True):
        np.testing.assert_array_equal(attention_weights(one), attention_weights(other))
        np.testing.assert_array_equal(one.z, other.z)


def test_json_holds_the_strongest_keys(tiny_model: Loader, tmp_path: Path) -> None:
    recording, file = saved(tiny_model, "llama_gqa", "json", tmp_path)
    content = json.loads(file.read_text())
    first = content["maps"][0]
    assert (first["layer"], first["head"], len(first["rows"])) == (0, 1, 35)
    assert first["rows"][0] == [[0, 1.0]] and len(first["rows"][20]) == 8
    weights = attention_weights(recording.trace.layers[0])[0]
    key, weight = first["rows"][20][0]
    assert key == weights[20].argmax() and weight == pytest.approx(weights[20].max(), abs=1e-6)
    assert set(content["metrics"][0]) == {"layer", "head", *METRICS}


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_what_is_no_recording_is_refused(
    kind: str, tiny_model: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = saved(tiny_model, "llama_gqa", kind, tmp_path)
    whole = file.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-3]):
        file.write_bytes(content)
        with pytest.raises(KvgenError, match=r"saved\.(npz|safetensors): "):
            read_export(file)
    file.write_bytes(whole)
    monkeypatch.setattr("kvgen.attention.saved.VERSION", 9)
    with pytest.raises(KvgenError, match=r"is kvgen.attention version 3, .* write it again"):
        read_export(file)
    other = tmp_path / f"other.{kind}"
    arrays = {"a": np.zeros(3, np.float32)}
    np.savez(other, **arrays) if kind == "npz" else save_file(arrays, other)
    with pytest.raises(KvgenError, match="no recording"):
        read_export(other)
