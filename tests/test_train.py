"""weights/train.py: what it measures needs no torch; what it trains is tried on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import kvgen
from kvgen.loading import default_model
from tests.command import inside

SCRIPT = Path(__file__).parents[1] / "weights" / "train.py"
SENTENCE = "the old king had a daughter and she went into the wood to look for a golden bird"
TINY = {
    "n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 48,
    "tokens": 1024 * 40, "batch": 1024, "n_warm_up": 5, "until_256": 1024 * 16,
    "until_512": 1024 * 24, "begin_share": 0.3, "repeat_share": 0.3, "loop_share": 0.3,
}  # fmt: skip


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


train = load_script()


def write_texts(folder: Path) -> Path:
    """Made-up tales of a few words: enough of them for several blocks."""
    random = np.random.RandomState(0)
    for name, n_documents in (("train.txt", 60), ("valid.txt", 6)):
        documents = [
            " ".join(random.choice(SENTENCE.split(), 300)) + "." for _ in range(n_documents)
        ]
        (folder / name).write_text("\n<|endoftext|>\n".join(documents) + "\n<|endoftext|>\n")
    return folder


def options(**changes: Any) -> list[str]:
    settings = TINY | changes
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def call(*arguments: str) -> str:
    result = CliRunner().invoke(train.main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_score_is_the_mean_surprise_by_byte(tmp_path: Path) -> None:
    texts = ["Once upon a time there was a king.", "The cat sat on the mat."]
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(texts) + "\n<|endoftext|>\n")
    model = kvgen.load()
    ids = [token for text in texts for token in model.encode(text)]
    nats = 0.0
    for begin in range(0, len(ids) - 1, 8):
        targets = ids[begin + 1 : begin + 9]
        logits = model.logits(ids[begin : begin + len(targets)]).astype(np.float64)
        for row, target in zip(logits, targets, strict=True):
            nats -= row[target] - math.log(np.exp(row).sum())
    bits = nats / (sum(map(len, texts)) + 1) / math.log(2)  # an end counts as one byte
    said = call("score", str(tmp_path / "text.txt"), "--window", "8")
    per_byte, per_token = (float(part.split()[0]) for part in said.split(", "))
    assert per_byte == pytest.approx(bits, abs=2e-4)
    assert per_token == pytest.approx(nats / (len(ids) - 1), abs=2e-4)


def test_one_document_scores_as_by_kvgen_score(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(f"The {SENTENCE}, and came to a house.\n")
    said = call("score", str(text), "--window", "8")
    result = inside("score", str(text), "--window", "8", "--stride", "8", "--json")
    totals = json.loads(result.stdout)
    expected = (totals["bits_per_byte"], totals["nats_per_token"])
    assert said == "{:.4f} bits/byte, {:.4f} nats/token\n".format(*expected)


def test_a_score_by_the_reference_implementation_is_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    text = tmp_path / "text.txt"
    text.write_text(f"The {SENTENCE}, and came to a house. Nobody was there.\n<|endoftext|>\n")
    ours = call("score", str(text), "--window", "16", "--cache-dtype", "f32")
    theirs = call("score", str(text), "--window", "16", "--transformers")
    bits = [re.findall(r"[\d.]+(?= bits/byte)", said) for said in (ours, theirs)]
    assert float(bits[0][0]) == pytest.approx(float(bits[1][0]), abs=1e-3)


def test_repeated_grams_are_counted_from_their_second_time() -> None:
    assert train.repeated_share([1, 2, 1, 2], 2) == pytest.approx(1 / 3)
    assert train.repeated_share(list(range(50))) == 0
    assert train.repeated_share([7] * 27) == pytest.approx(19 / 20)
    assert train.repeated_share([1, 2, 3]) == 0  # too short for one


def test_loops_shows_greedy_stories_and_their_shares() -> None:
    said = call("loops", "--tokens", "20")
    assert said == call("loops", "--tokens", "20")  # greedy
    for opening in train.OPENINGS:
        assert opening in said
    assert said.count("% of the 8-grams repeated]") == len(train.OPENINGS)


def test_rates_warm_up_stay_and_fall() -> None:
    plan = train.Plan(tokens=1000, batch=1, n_warm_up=10, decay_share=0.4)
    assert [round(plan.rate(step), 3) for step in (0, 9, 500, 600, 800, 999)] == [
        0.1, 1, 1, 1, 0.5, 0.003,
    ]  # fmt: skip


def stream_of(**changes: Any) -> Any:
    random = np.random.RandomState(1)
    documents = [random.randint(1, 4096, 700).astype(np.uint16) for _ in range(20)]
    return train.Stream(documents, train.Plan(**(TINY | changes)))


def test_a_batch_is_the_stream_in_windows() -> None:
    stream = stream_of(repeat_share=0.0, loop_share=0.0)
    inputs, targets, copies, distances = stream.batch(3)
    assert inputs.shape == targets.shape == (4, 256) and not copies.any() and not distances.any()
    np.testing.assert_array_equal(inputs.ravel()[1:], targets.ravel()[:-1])
    assert stream.batch(17)[0].shape == (2, 512) and stream.batch(30)[0].shape == (1, 1024)
    for again, before in zip(
        stream_of(repeat_share=0.0, loop_share=0.0).batch(3),
        (inputs, targets, copies, distances),
        strict=True,
    ):
        np.testing.assert_array_equal(again, before)


def test_each_block_is_read_once_an_epoch() -> None:
    stream = stream_of(begin_share=0.0)
    blocks = [stream.block(index) for index in range(stream.n_blocks)]
    seen = np.sort(np.concatenate([block[:-1] for block in blocks]))
    whole = np.sort(stream.ids[: stream.n_blocks * 1024])
    np.testing.assert_array_equal(seen, whole)


def test_blocks_begin_with_a_document() -> None:
    random = np.random.RandomState(1)
    documents = [np.append(0, random.randint(1, 4096, 700)).astype(np.uint16) for _ in range(20)]
    stream = train.Stream(documents, train.Plan(**(TINY | {"begin_share": 1.0})))
    blocks = [stream.block(index) for index in range(stream.n_blocks)]
    assert {len(block) for block in blocks} == {1025}
    assert sum(block[0] == 0 for block in blocks) >= stream.n_blocks - 2  # none begins at the end


def test_repeated_tokens_count_from_their_second_copy() -> None:
    inputs, targets, copies, _ = stream_of(repeat_share=1.0).batch(0)
    for row, goal, copy in zip(inputs, targets, copies, strict=True):
        n_unknown = int((copy < 0).sum())
        assert 9 <= n_unknown <= 127 and (copy[:n_unknown] < 0).all() and row.all()
        np.testing.assert_array_equal(goal[:-1], row[1:])
        np.testing.assert_array_equal(goal[n_unknown:], row[: len(row) - n_unknown])
        assert not copy[n_unknown:].any()


def test_repetitions_are_counted_within_a_story() -> None:
    words = [5, 6, 7, 8, 9]
    copies, distances = train.repetitions(np.array([*words, *words, 1, *words, 0, *words]))
    assert copies.tolist() == [0] * 9 + [1] + [0] * 5 + [2] + [0] * 6
    assert distances[9] == 5 and distances[15] == 11 and not distances[16:].any()
    copies, distances = train.repetitions(np.full(9, 3))
    assert copies.tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4] == distances.tolist()


def test_own_words_count_where_they_repeat() -> None:
    stream, own = stream_of(repeat_share=0.0, loop_share=1.0), np.tile(np.arange(1, 42), 25)[None]
    assert not stream.batch(30)[2].any()
    inputs, targets, copies, distances = stream.batch(30, own)
    np.testing.assert_array_equal(inputs[0], own[0, :-1])
    np.testing.assert_array_equal(targets[0], own[0, 1:])
    assert (copies[0, :45] == -1).all() and (copies[0, 45:] > 0).all()
    np.testing.assert_array_equal(distances[0, 45:], copies[0, 45:] * 41)


def test_own_stories_are_greedy_and_begin_as_documents_do() -> None:
    model = kvgen.load()
    document = np.array(model.encode("Once upon a time there was a king who had three sons and a"))
    own = train.own_stories(default_model(), [document], [0], n=1)
    assert own.shape == (1, 1025)
    stories = np.split(own.ravel(), np.flatnonzero(own.ravel() == 0)[1:])
    for story in stories[:2]:
        n_given = np.argmin(np.append(story[: len(document)] == document, False))
        assert n_given >= 4 and len(story) <= 256
        ids = story[:40].tolist()
        best = model.logits(ids, cache=False).argmax(1)[n_given - 1 : -1]
        assert (best == story[n_given:40]).mean() > 0.9  # rounding of the cache may turn a few


def test_the_written_gradient_is_the_one_of_the_loss() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    hidden, embedding = torch.randn(12, 8).bfloat16(), torch.randn(30, 8).bfloat16()
    targets = torch.randint(0, 30, (12,))
    copies = torch.tensor([0, -1, -1, 0, 0, 1, 1, 1, 2, 2, 2, 0])
    distances = torch.tensor([0, 0, 0, 0, 0, 3, 3, 3, 6, 6, 6, 0])
    nats, d_logits = train.surprise(hidden, embedding, targets, copies, distances)

    logits = (hidden @ embedding.T).float().requires_grad_()
    goals = torch.eye(30)[targets]
    for row in range(5, 11):
        damped = logits.detach().softmax(1)[row - distances[row]]
        damped[targets[row]] *= train.REPETITION_FACTOR ** copies[row]
        goals[row] = damped / damped.sum()
    losses = -(goals * logits.log_softmax(1)).sum(1)
    loss = losses[copies >= 0].sum()
    loss.backward()
    assert float(nats) == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(d_logits.float(), logits.grad, atol=2e-2, rtol=2e-2)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(train, "SAVE_EVERY", 8)  # the run shall see what the model writes
    monkeypatch.setattr(train, "own_stories", partial(train.own_stories, n=1))
    texts = write_texts(tmp_path)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    said = call("run", str(texts), str(whole), *options(), "--eager")
    assert "bits per byte on the whole of valid.txt" in said
    n_calls, arguments = 0, ("run", str(texts), str(halves), *options(), "--eager", "--minutes")
    assert "saved after step 0 of 40" in call(*arguments, "0")
    while "step 40 of 40" not in call(*arguments, "0.01"):
        n_calls += 1
    assert n_calls > 0
    assert (halves / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_trained_folder_is_what_was_trained(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    texts = write_texts(tmp_path)
    call("run", str(texts), str(tmp_path / "model"), *options(), "--eager")
    model = kvgen.load(tmp_path / "model", cache_dtype="f32")
    assert (model.config.n_layers, model.config.n_kv_heads, model.engine.dtype) == (2, 2, "bf16")
    ids = model.encode("the old king")
    assert ids[0] == 0
    plan = train.Plan(**TINY)
    state = train.Run(tmp_path / "model", plan)
    state.restore()
    with torch.no_grad():
        hidden = train.forward(state.tensors, torch.tensor([ids]), plan)[0].float()
        expected = hidden @ state.tensors["model.embed_tokens.weight"].T
    atol = 0.05 * expected.abs().max().item()
    np.testing.assert_allclose(model.logits(ids), expected, atol=atol)
