"""Random weights at real shapes, as safetensors for kvgen and as GGUF for llama.cpp."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

# Shapes of 15M llama2.c models, the default model, SmolLM2-135M, Qwen2.5-0.5B, and GPT-2 124M.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 6, "width": 288, "heads": 6, "kv_heads": 6, "ff": 768, "vocabulary": 32000},
    "default": {
        "layers": 8, "width": 320, "heads": 8, "kv_heads": 4, "ff": 864, "vocabulary": 4096,
    },
    "smol": {
        "layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "ff": 1536, "vocabulary": 49152,
    },
    "qwen": {
        "layers": 24, "width": 896, "heads": 14, "kv_heads": 2, "ff": 4864, "vocabulary": 151936,
    },
    "gpt2": {"layers": 12, "width": 768, "heads": 12, "ff": 3072, "vocabulary": 50257},
}  # fmt: skip
CONTEXT, GPT2_CONTEXT = 2048, 1024
QUANTIZED = ("BF16", "Q8_0")
# kvgen's (and the checkpoint's) name of a tensor, and GGUF's.
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def tensors(shape: dict[str, Any]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Checkpoint name, GGUF name and float32 numbers of every tensor, the same at every call."""
    random = np.random.default_rng(0)
    C, F, D = shape["width"], shape["ff"], shape["width"] // shape["heads"]
    keys = shape["kv_heads"] * D
    sizes = {
        "q_proj": (C, C), "k_proj": (keys, C), "v_proj": (keys, C), "o_proj": (C, C),
        "gate_proj": (F, C), "up_proj": (F, C), "down_proj": (C, F),
    }  # fmt: skip

    def numbers(*size: int) -> np.ndarray:
        return random.standard_normal(size, np.float32) * np.float32(0.04)

    yield "model.embed_tokens.weight", "token_embd.weight", numbers(shape["vocabulary"], C)
    yield "model.norm.weight", "output_norm.weight", np.ones(C, np.float32)
    for layer in range(shape["layers"]):
        for ours, theirs in _LAYER.items():
            size = sizes.get(ours.split(".")[-1])
            weight = np.ones(C, np.float32) if size is None else numbers(*size)
            yield f"model.layers.{layer}.{ours}.weight", f"blk.{layer}.{theirs}.weight", weight


def gpt2_tensors(shape: dict[str, Any]) -> Iterator[tuple[str, str, np.ndarray]]:
    """What `tensors` gives, for GPT-2: biases everywhere, learned positions, matrices [out, in]."""
    random = np.random.default_rng(0)
    C, F = shape["width"], shape["ff"]
    sizes = {"attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "mlp.c_fc": (F, C)}
    sizes |= {"mlp.c_proj": (C, F)}

    def numbers(*size: int) -> np.ndarray:
        return random.standard_normal(size, np.float32) * np.float32(0.04)

    yield "transformer.wte.weight", "token_embd.weight", numbers(shape["vocabulary"], C)
    yield "transformer.wpe.weight", "position_embd.weight", numbers(GPT2_CONTEXT, C)
    yield "transformer.ln_f.weight", "output_norm.weight", np.ones(C, np.float32)
    yield "transformer.ln_f.bias", "output_norm.bias", np.zeros(C, np.float32)
    for layer in range(shape["layers"]):
        for ours, theirs in _GPT2_LAYER.items():
            size = sizes.get(ours)
            weight = np.ones(C, np.float32) if size is None else numbers(*size)
            bias = numbers(C if size is None else size[0])
            yield f"transformer.h.{layer}.{ours}.weight", f"blk.{layer}.{theirs}.weight", weight
            yield f"transformer.h.{layer}.{ours}.bias", f"blk.{layer}.{theirs}.bias", bias


def config_of(name: str) -> dict[str, Any]:
    """The config.json of a model."""
    shape = SHAPES[name]
    if name == "gpt2":
        return {
            "model_type": "gpt2", "n_embd": shape["width"], "n_head": shape["heads"],
            "n_layer": shape["layers"], "n_positions": GPT2_CONTEXT,
            "vocab_size": shape["vocabulary"], "layer_norm_epsilon": 1e-5,
        }  # fmt: skip
    return {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": shape["width"],
        "intermediate_size": shape["ff"], "max_position_embeddings": CONTEXT,
        "num_attention_heads": shape["heads"], "num_hidden_layers": shape["layers"],
        "num_key_value_heads": shape["kv_heads"], "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "vocab_size": shape["vocabulary"],
    }  # fmt: skip


def write(folder: Path, name: str, quantize: str) -> None:
    """One model as safetensors in f32 and bf16, and as GGUF in every format that is compared."""
    shape, gpt2 = SHAPES[name], name == "gpt2"
    named = gpt2_tensors if gpt2 else tensors
    for kind, dtype in (("f32", np.float32), ("bf16", ml_dtypes.bfloat16)):
        place = folder / f"{name}-{kind}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config_of(name)))
        stored = {
            ours: np.ascontiguousarray(weight.T if ".c_" in ours else weight).astype(dtype)
            for ours, _, weight in named(shape)
        }  # GPT-2 keeps its matrices [in, out]
        save_file(stored, place / "model.safetensors")
    exact = folder / f"{name}-F32.gguf"
    writer = gguf.GGUFWriter(str(exact), "gpt2" if gpt2 else "llama")
    writer.add_context_length(GPT2_CONTEXT if gpt2 else CONTEXT)
    writer.add_embedding_length(shape["width"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["ff"])
    writer.add_head_count(shape["heads"])
    writer.add_vocab_size(shape["vocabulary"])
    if gpt2:
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(shape["kv_heads"])
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(shape["width"] // shape["heads"])
        writer.add_rope_freq_base(10000.0)
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")
    for _, theirs, weight in named(shape):
        writer.add_tensor(theirs, weight)
        if gpt2 and theirs == "token_embd.weight":
            writer.add_tensor("output.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for kind in QUANTIZED:
        target = folder / f"{name}-{kind}.gguf"
        command = [quantize, str(exact), str(target), kind]
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Write the models that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantize", required=True, help="llama.cpp's llama-quantize")
    parser.add_argument("--models", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    arguments = parser.parse_args()
    for name in arguments.models:
        write(arguments.folder, name, arguments.quantize)
        print(f"{name}: written to {arguments.folder}")  # noqa: T201


if __name__ == "__main__":
    main()
