"""Random weights at real shapes, as safetensors for kvgen and as GGUF for the llama.cpps.

    python -m tests.peers.models FOLDER --quantize PATH [--real CHECKPOINT] [--models NAME ...]

A file that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.peers.shapes import LAYER, REAL, SHAPES, config_of, gpt2_tensors, tensors

QUANTIZED = ("BF16", "Q8_0", "Q4_0")


def write(folder: Path, name: str, quantize: str) -> None:
    """One model as safetensors in f32 and bf16, and as GGUF in every format that is compared."""
    shape, gpt2 = SHAPES[name], name == "gpt2"
    named = gpt2_tensors if gpt2 else tensors

    def stored() -> dict[str, np.ndarray]:  # GPT-2 keeps its matrices [in, out]
        return {
            ours: np.ascontiguousarray(weight.T if ".c_" in ours else weight)
            for ours, _, weight in named(shape)
        }

    write_checkpoints(folder, name, config_of(name), stored)

    def named_for_gguf() -> Iterator[tuple[str, np.ndarray]]:
        for _, theirs, weight in named(shape):
            yield theirs, weight
            if gpt2 and theirs == "token_embd.weight":
                yield "output.weight", weight

    write_gguf(folder, name, config_of(name), named_for_gguf)
    write_quantized(folder, name, quantize)


def write_real(folder: Path, source: Path, quantize: str) -> None:
    """What `write` makes, of a real checkpoint of llama's kind with a tied head and a tokenizer."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.setdefault("architectures", ["LlamaForCausalLM"])  # converters ask for it
    stored = {
        key: weight.astype(np.float32)
        for key, weight in load_file(source / "model.safetensors").items()
    }
    heads = {
        "q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"],
    }  # fmt: skip

    def named_for_gguf() -> Iterator[tuple[str, np.ndarray]]:
        yield "token_embd.weight", stored["model.embed_tokens.weight"]
        yield "output_norm.weight", stored["model.norm.weight"]
        for layer in range(config["num_hidden_layers"]):
            for ours, theirs in LAYER.items():
                weight = stored[f"model.layers.{layer}.{ours}.weight"]
                if n_heads := heads.get(ours.split(".")[-1]):
                    weight = interleaved(weight, n_heads)
                yield f"blk.{layer}.{theirs}.weight", weight

    write_checkpoints(folder, REAL, config, lambda: stored)
    for kind in ("f32", "bf16"):
        for file in (*source.glob("*token*"), *source.glob("generation_config.json")):
            shutil.copy(file, folder / f"{REAL}-{kind}")
    write_gguf(folder, REAL, config, named_for_gguf)
    write_quantized(folder, REAL, quantize)


def interleaved(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of a q or k matrix [H * D, C] in llama.cpp's order: it turns neighbours, not halves.

    Of one head with rows 0 1 2 3 the pairs that are turned together are (0, 2) and (1, 3): they
    come as 0 2 1 3.
    """
    halves = weight.reshape(n_heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_checkpoints(
    folder: Path,
    name: str,
    config: dict[str, Any],
    stored: Callable[[], Mapping[str, np.ndarray]],
) -> None:
    """Checkpoints of float32 tensors as f32 and as bf16; config.json comes last."""
    for kind, dtype in (("f32", np.float32), ("bf16", ml_dtypes.bfloat16)):
        place = folder / f"{name}-{kind}"
        if not (place / "config.json").exists():
            place.mkdir(parents=True, exist_ok=True)
            save_file(
                {key: weight.astype(dtype) for key, weight in stored().items()},
                place / "model.safetensors",
            )
            (place / "config.json").write_text(json.dumps(config))


def write_header(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """What GGUF says of a model beside its tensors, from its config.json."""
    writer.add_vocab_size(config["vocab_size"])
    if config["model_type"] == "gpt2":
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_feed_forward_length(4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config.get("rope_parameters", config)["rope_theta"])


def write_gguf(
    folder: Path,
    name: str,
    config: dict[str, Any],
    named: Callable[[], Iterable[tuple[str, np.ndarray]]],
) -> None:
    """A model in float32 without a vocabulary: the llama-benches make up their ids."""
    exact = folder / f"{name}-F32.gguf"
    if exact.exists():
        return
    unfinished = exact.with_suffix(".part")
    writer = gguf.GGUFWriter(str(unfinished), config["model_type"])
    write_header(writer, config)
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")
    for key, weight in named():
        writer.add_tensor(key, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(exact)


def write_quantized(folder: Path, name: str, quantize: str) -> None:
    """The other formats, by llama.cpp's llama-quantize, from the model in float32."""
    for kind in QUANTIZED:
        target = folder / f"{name}-{kind}.gguf"
        if not target.exists():
            command = [quantize, str(folder / f"{name}-F32.gguf"), str(target), kind]
            subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Write the models that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantize", required=True, help="llama.cpp's llama-quantize")
    parser.add_argument("--models", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--real", type=Path, help=f"a checkpoint of llama's kind, as {REAL}")
    arguments = parser.parse_args()
    for name in arguments.models:
        write(arguments.folder, name, arguments.quantize)
        print(f"{name}: written to {arguments.folder}")  # noqa: T201
    if arguments.real:
        write_real(arguments.folder, arguments.real, arguments.quantize)
        print(f"{REAL}: written to {arguments.folder}")  # noqa: T201


if __name__ == "__main__":
    main()
