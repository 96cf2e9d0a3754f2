"""Small tokenizers of every kind that checkpoints bring, as their converters build them.

They are trained on a few sentences, so that the same file comes out each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import kvgen
from kvgen.loading import default_model

SPECIALS = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SENTENCES = (Path(kvgen.__file__).parent / "bench" / "text.txt").read_text("utf-8").splitlines()
# transformers, convert_slow_tokenizer.py: how a SentencePiece model with byte fallback is decoded.
_SPELLED = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def sentencepiece() -> tokenizers.Tokenizer:
    """SentencePiece's BPE as Llama 2 has it: a space is put before the text."""
    tokenizer = tokenizers.Tokenizer(_byte_fallback_bpe())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([*_SPELLED, decoders.Strip(" ", 1, 0)])
    return _finished(tokenizer, start="<s>")


def metaspace() -> tokenizers.Tokenizer:
    """The same pieces the newer way: the space is put before the text, not after special tokens."""
    tokenizer = tokenizers.Tokenizer(_byte_fallback_bpe())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([*_SPELLED, decoders.Strip(" ", 1, 0)])
    return _finished(tokenizer, start="<s>")


def no_prefix() -> tokenizers.Tokenizer:
    """SentencePiece's BPE as Gemma has it: nothing is put before the text."""
    tokenizer = tokenizers.Tokenizer(_byte_fallback_bpe())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(_SPELLED)
    return _finished(tokenizer, start="<s>")


def unigram() -> tokenizers.Tokenizer:
    """SentencePiece's Unigram: no bytes, what is unknown is lost."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.decoder = decoders.Metaspace()
    return _finished(tokenizer)


def byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE with a start token: the default model's own."""
    return tokenizers.Tokenizer.from_file(str(default_model() / "tokenizer.json"))


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "no_prefix": no_prefix,
    "unigram": unigram,
    "byte_level": byte_level,
}

# What cuts a text in ways that are easily got wrong.
TEXTS = [
    "The cat sat on the mat.",
    " two  spaces\n\n\ttab \r\n end  ",
    "it's WE'LL 1234 3.14 don't",
    "naïve café — 月の光 🐈\u200d⬛ e\u0301",
    "<|endoftext|>a<|end|> </s>b    c<s>",
    "",
]

_END = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
# tokenizer_config.json of checkpoints that bring vocab.json and merges.txt, after published ones.
MERGES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 1024,
    },
    "gpt2 without words": {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": False},
    "gpt2 with a space first": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
    "gpt2 with more tokens": {
        "tokenizer_class": "GPT2Tokenizer",
        "added_tokens_decoder": {
            "0": {"content": "<|endoftext|>", "special": True} | _END,
            "4096": {"content": "<|end|>", "special": True} | _END,
            "4097": {"content": "    ", "special": False} | _END | {"normalized": True},
        },
        "eos_token": "<|end|>",
    },
    "opt": {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": True,
        "add_prefix_space": False,
        "errors": "replace",
        "bos_token": {"__type": "AddedToken", "content": "</s>"} | _END | {"normalized": True},
        "eos_token": {"__type": "AddedToken", "content": "</s>"} | _END | {"normalized": True},
        "pad_token": {"__type": "AddedToken", "content": "<pad>"} | _END | {"normalized": True},
        "unk_token": {"__type": "AddedToken", "content": "</s>"} | _END | {"normalized": True},
    },
    "codegen": {
        "tokenizer_class": "CodeGenTokenizer",
        "add_prefix_space": False,
        "eos_token": "<|endoftext|>",
    },
    "qwen2": {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "added_tokens_decoder": {
            "0": {"content": "<|endoftext|>", "special": True} | _END,
            "4096": {"content": "<|end|>", "special": True} | _END,
        },
        "bos_token": None,
        "eos_token": "<|end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
    },
    "qwen2 without words": {"tokenizer_class": "Qwen2Tokenizer"},
}
_MORE_WORDS = {"opt": ["<s>", "<pad>", "</s>"]}
_MORE_FILES = {"codegen": {"added_tokens.json": {"    ": 4096, "<|end|>": 4097}}}


def write_merges(folder: Path, name: str) -> Path:
    """The default model's vocabulary as vocab.json and merges.txt, with those settings."""
    model = json.loads(byte_level().to_str())["model"]
    words = model["vocab"] | {word: 4096 + i for i, word in enumerate(_MORE_WORDS.get(name, []))}
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    files = {"vocab.json": words, "tokenizer_config.json": MERGES[name]}
    for file, content in (files | _MORE_FILES.get(name, {})).items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return folder


def _byte_fallback_bpe() -> models.BPE:
    """Merges of words with their space, and a token for each byte."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*SPECIALS, *_BYTES], show_progress=False
    )
    trained.train_from_iterator(_SENTENCES, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    return models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def _finished(tokenizer: tokenizers.Tokenizer, *, start: str | None = None) -> tokenizers.Tokenizer:
    """With its special tokens, and a start token before every text."""
    tokenizer.add_special_tokens(SPECIALS)
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A",
            pair=f"{start} $A {start} $B",
            special_tokens=[(start, tokenizer.token_to_id(start))],
        )
    return tokenizer
