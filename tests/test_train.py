"""weights/train.py: what it measures needs no torch; what it trains is tried on a tiny model."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import kvgen

SCRIPT = Path(__file__).parents[1] / "weights" / "train.py"
SENTENCE = "the old king had a daughter and she went into the wood to look for a golden bird"
TINY = {
    "n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 48,
    "tokens": 1024 * 40, "batch": 1024, "n_warm_up": 5, "until_256": 1024 * 16,
    "until_512": 1024 * 24, "repeat_share": 0.3, "loop_share": 0.3,
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
    n_bytes = sum(len(text) + 1 for text in texts)
    bits = nats / (len(ids) - 1) * len(ids) / n_bytes / math.log(2)
    said = call("score", str(tmp_path / "text.txt"), "--window", "8")
    per_byte, per_token = (float(part.split()[0]) for part in said.split(", "))
    assert per_byte == pytest.approx(bits, abs=2e-4)
    assert per_token == pytest.approx(nats / (len(ids) - 1), abs=2e-4)


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
    inputs, targets, periods = stream.batch(3)
    assert inputs.shape == targets.shape == (4, 256) and not periods.any()
    np.testing.assert_array_equal(inputs.ravel()[1:], targets.ravel()[:-1])
    assert stream.batch(17)[0].shape == (2, 512) and stream.batch(30)[0].shape == (1, 1024)
    for again, before in zip(
        stream_of(repeat_share=0.0, loop_share=0.0).batch(3),
        (inputs, targets, periods),
        strict=True,
    ):
        np.testing.assert_array_equal(again, before)


def test_each_block_is_read_once_an_epoch() -> None:
    stream = stream_of(repeat_share=0.0)
    blocks = [stream.block(index) for index in range(stream.n_blocks)]
    seen = np.sort(np.concatenate([block[:-1] for block in blocks]))
    whole = np.sort(stream.ids[: stream.n_blocks * 1024])
    np.testing.assert_array_equal(seen, whole)


def test_repeated_tokens_count_from_their_second_copy() -> None:
    inputs, targets, periods = stream_of(repeat_share=1.0).batch(0)
    for row, goal in zip(inputs, targets, strict=True):
        n_first = int((goal < 0).sum())
        assert 10 <= n_first <= 128 and row[0] == 0 and (goal[:n_first] < 0).all()
        np.testing.assert_array_equal(goal[n_first:-1], row[n_first + 1 :])
        np.testing.assert_array_equal(row[n_first + 1 :], row[1 : len(row) - n_first])
    assert not periods.any()


def test_text_falls_into_a_loop_during_the_decay_only() -> None:
    stream = stream_of(repeat_share=0.0, loop_share=1.0)
    assert not stream.batch(0)[2].any()
    inputs, targets, periods = stream.batch(30)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    for goal, period in zip(targets, periods, strict=True):
        looped = np.flatnonzero(period)
        assert 1024 // 2 <= len(looped) <= 1024 * 3 // 4 and looped[-1] == 1023
        np.testing.assert_array_equal(goal[looped], goal[looped - period[looped]])


def test_the_written_gradient_is_the_one_of_the_loss() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    hidden, embedding = torch.randn(12, 8).bfloat16(), torch.randn(30, 8).bfloat16()
    targets = torch.randint(0, 30, (12,))
    targets[1] = -1
    periods = torch.tensor([0, 0, 0, 0, 0, 3, 3, 3, 0, 5, 5, 5])
    nats, d_logits = train.surprise(hidden, embedding, targets, periods)

    logits = (hidden @ embedding.T).float().requires_grad_()
    p = logits.softmax(1)[torch.arange(12), targets.clamp(min=0)]
    gap = (p - p.detach()[torch.arange(12) - periods] / 2).abs()
    losses = torch.where(periods > 0, -torch.log(1 - gap), -torch.log(p))
    loss = losses[targets >= 0].sum()
    loss.backward()
    assert float(nats) == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(d_logits.float(), logits.grad, atol=2e-2, rtol=2e-2)


def test_a_stopped_run_goes_on_to_the_same_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
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
