"""What the KV cache saves, beside what others have published.

    python -m tests.peers.published [--only NAME] [--quick] [--json]

The shapes and lengths of the with/without tables of Sebastian Raschka's LLMs-from-scratch (Apple M4
CPU), on random weights, made one model at a time in a temporary folder. Their machine is another
one, so that tokens per second say little: compare how many times slower a run is without the cache,
theirs, ours, and what `kvgen.bench.cost` predicts from this machine's speed. The cached run is run
whole; of the uncached one some steps are, and times between them are interpolated. At these steps
the logits of both are compared. Their uncached pass makes logits for every position, ours for the
last one: with Gemma's vocabulary that alone is 2.7 times the multiplications. Their prompts have
about as many tokens as here; GPT-2's has 4.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import kvgen
from kvgen.bench.cost import calibrate_with_overhead, cost_of
from kvgen.engine.contract import Engine
from kvgen.session import Session

_SAMPLED = 6  # uncached steps that are run
_FREE_BYTES = 8 * 2**30  # of disk, for the largest model
_LLAMA = {"hidden_act": "silu", "tie_word_embeddings": True}
_SHAPES: dict[str, dict[str, Any]] = {
    "GPT-2 124M": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257,
        "n_positions": 1024, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    },
    "Gemma 3 270M": {
        "model_type": "gemma3_text", "hidden_size": 640, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "intermediate_size": 2048, "vocab_size": 262144, "max_position_embeddings": 32768,
        "sliding_window": 512, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    },
    "Qwen3 0.6B": _LLAMA | {
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 3072, "vocab_size": 151936, "max_position_embeddings": 40960,
        "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    },
    "Llama 3.2 1B": _LLAMA | {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "intermediate_size": 8192, "vocab_size": 128256, "max_position_embeddings": 131072,
        "rope_theta": 5e5, "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Published:
    """A line of somebody else's table: tokens per second without the cache and with it.

    Both were cut to whole numbers, and count the prompt's tokens too.
    """

    model: str
    kind: str  # of weights: F32, BF16
    n_prompt: int
    n_new: int
    off: float
    on: float

    @property
    def times_slower(self) -> tuple[float, float]:
        """At least and at most, as both numbers were cut."""
        return self.on / (self.off + 1), (self.on + 1) / self.off


TABLE = (
    Published(model="GPT-2 124M", kind="F32", n_prompt=4, n_new=200, off=27, on=144),
    Published(model="Gemma 3 270M", kind="BF16", n_prompt=12, n_new=150, off=8, on=130),
    Published(model="Qwen3 0.6B", kind="BF16", n_prompt=18, n_new=150, off=1, on=80),
    Published(model="Llama 3.2 1B", kind="BF16", n_prompt=12, n_new=150, off=1, on=68),
)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """The same work here: seconds of a whole run, and what they should have been."""

    n_tokens: int
    on_seconds: float
    off_seconds: float
    predicted_times_slower: float
    positions_on: int  # run through the model by the cached run
    sampled: tuple[int, ...]  # lengths of the uncached passes that were run
    max_abs_logit_difference: float

    @property
    def times_slower(self) -> float:
        return self.off_seconds / self.on_seconds


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a checkpoint's tensors."""
    V = config["vocab_size"]
    if config["model_type"] == "gpt2":
        C = config["n_embd"]
        yield from (("wte.weight", (V, C)), ("wpe.weight", (config["n_positions"], C)))
        for layer in range(config["n_layer"]):
            for name, width in (("attn.c_attn", 3 * C), ("mlp.c_fc", 4 * C)):
                yield f"h.{layer}.{name}.weight", (C, width)
                yield f"h.{layer}.{name}.bias", (width,)
            for name, width in (("attn.c_proj", C), ("mlp.c_proj", 4 * C)):
                yield f"h.{layer}.{name}.weight", (width, C)
                yield f"h.{layer}.{name}.bias", (C,)
            for name in ("ln_1", "ln_2"):
                yield from ((f"h.{layer}.{name}.{part}", (C,)) for part in ("weight", "bias"))
        yield from ((f"ln_f.{part}", (C,)) for part in ("weight", "bias"))
        return
    C, F, D = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "gemma3_text":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    yield "model.embed_tokens.weight", (V, C)
    for layer in range(config["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (q, C), "self_attn.k_proj": (kv, C), "self_attn.v_proj": (kv, C),
            "self_attn.o_proj": (C, q), "mlp.gate_proj": (F, C), "mlp.up_proj": (F, C),
            "mlp.down_proj": (C, F), **dict.fromkeys(norms, (C,)),
        }  # fmt: skip
        if config["model_type"] != "llama":
            shapes |= {"self_attn.q_norm": (D,), "self_attn.k_norm": (D,)}
        for name, shape in shapes.items():
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (C,)


def write_model(folder: Path, config: dict[str, Any], kind: str) -> None:
    """A checkpoint of random weights; the random numbers repeat after a million."""
    block = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
    dtype = ml_dtypes.bfloat16 if kind == "BF16" else np.float32
    weights = {}
    for name, shape in tensors(config):
        if len(shape) == 1:
            weights[name] = np.full(shape, float("norm" in name or "ln_" in name), dtype)
            if name.endswith("bias") or config["model_type"] == "gemma3_text":
                weights[name][:] = 0  # Gemma stores the difference of a norm's weight to 1
        else:
            numbers = (block / np.sqrt(max(shape))).astype(dtype)
            weights[name] = np.resize(numbers, shape)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def measure(engine: Engine, *, n_prompt: int, n_new: int, n_sampled: int = _SAMPLED) -> Ours:
    """Run greedy decoding with the cache whole, and some of its steps without."""
    ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, n_prompt).tolist()
    session = Session(engine, n_prompt + n_new)
    session.feed(ids)
    session.feed([0])  # warm up both functions
    session.rewind()
    run_before = session.cache.positions_run
    on_seconds, logits = 0.0, {}
    fed = list(ids)
    for _ in range(n_new):
        began = time.perf_counter()
        last = session.feed(fed)
        fed = [int(last.argmax())]
        on_seconds += time.perf_counter() - began
        logits[len(ids)] = last
        ids += fed
    lengths = range(n_prompt, n_prompt + n_new)  # of the passes that give the new tokens
    sampled = sorted(
        {*np.linspace(lengths[0], lengths[-1], n_sampled).round().astype(int).tolist()}
    )
    seconds, greatest, uncached = [], 0.0, Session(engine, n_prompt + n_new)
    for length in sampled:
        samples = []
        for _ in range(2):
            uncached.rewind()
            began = time.perf_counter()
            again = uncached.feed(ids[:length])
            samples.append(time.perf_counter() - began)
        seconds.append(median(samples))
        greatest = max(greatest, float(np.abs(again - logits[length]).max()))
    cost, speed = cost_of(engine), calibrate_with_overhead(engine)
    on = cost.seconds(0, n_prompt, speed)
    on += sum(cost.seconds(length - 1, 1, speed) for length in lengths[1:])
    off = sum(cost.seconds(0, length, speed) for length in lengths)
    return Ours(
        n_tokens=n_new,
        on_seconds=on_seconds,
        off_seconds=float(np.interp(lengths, sampled, seconds).sum()),
        predicted_times_slower=off / on,
        positions_on=session.cache.positions_run - run_before,
        sampled=tuple(sampled),
        max_abs_logit_difference=greatest,
    )


def markdown(results: list[tuple[Published, Ours]]) -> str:
    """The table, for the README."""
    lines = [
        "| model, prompt + new tokens | theirs: off, on tok/s | times slower | ours: off, on tok/s "
        "| times slower | predicted |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for theirs, ours in results:
        slower = "..".join(f"{times:.3g}" for times in theirs.times_slower)
        off, on = (ours.n_tokens / each for each in (ours.off_seconds, ours.on_seconds))
        lines.append(
            f"| {theirs.model}, {theirs.n_prompt} + {ours.n_tokens} | {theirs.off:g}, "
            f"{theirs.on:g} | {slower} | {off:.1f}, {on:.1f} | "
            f"{ours.times_slower:.1f} | {ours.predicted_times_slower:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make, run and remove one model after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=_SHAPES)
    parser.add_argument("--quick", action="store_true", help="8 new tokens")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.disk_usage(tempfile.gettempdir()).free < _FREE_BYTES:
        parser.error(f"the models need {_FREE_BYTES >> 30} GiB in {tempfile.gettempdir()}")
    results = []
    for line in TABLE:
        if options.only in (None, line.model):
            with tempfile.TemporaryDirectory() as folder:
                write_model(Path(folder), _SHAPES[line.model], line.kind)
                engine = kvgen.load(folder).engine
                n_new = 8 if options.quick else line.n_new
                results.append((line, measure(engine, n_prompt=line.n_prompt, n_new=n_new)))
    if options.json:
        print(json.dumps([{"theirs": asdict(a), "ours": asdict(b)} for a, b in results]))  # noqa: T201
    else:
        print(markdown(results))  # noqa: T201


if __name__ == "__main__":
    main()
