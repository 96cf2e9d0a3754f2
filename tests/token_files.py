"""Checkpoints whose tokens tokenizer.json does not tell alone, as small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL = "<|endoftext|>"
_PLAIN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}

Files = dict[str, Any]

TEXTS = [
    "<|im_start|>ab<|im_end|> c",
    "a <x> b<x>c <X>",
    "<|im_end|><|im_start|>\nab <|endoftext|> ",
    "the <|end|>the end",
    " two  words",
]


def token(content: str, *, special: bool = True, **flags: Any) -> dict[str, Any]:
    """An added token as these files write it."""
    return {"content": content, "special": special} | _PLAIN | flags


def tokenizer_json(*added: dict[str, Any]) -> Files:
    """A BPE over printable ASCII: 96 characters, two merges, and added tokens from 99 on."""
    characters = [chr(code) for code in range(0x21, 0x7F)] + ["\u0120", "\u010a"]
    words = [SPECIAL, *characters, "ab", "th"]
    listed = [{"id": 0} | token(SPECIAL)]
    listed += [{"id": len(words) + i} | each for i, each in enumerate(added)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": listed,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "vocab": {word: number for number, word in enumerate(words)},
            "merges": ["a b", "t h"],
        },
    }  # fmt: skip


def _case(*added: dict[str, Any], **files: Any) -> Files:
    """Files by their names without `.json`; the class is the general one unless a file says so."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | files.pop("tokenizer_config", {})
    return {"tokenizer": tokenizer_json(*added), "tokenizer_config": settings} | files


_START, _END = token("<|im_start|>"), token("<|im_end|>")
_LISTED = {"0": token(SPECIAL), "99": _START, "100": _END}

CASES: dict[str, Files] = {
    "tokens that only the settings list": _case(
        tokenizer_config={"added_tokens_decoder": _LISTED, "eos_token": "<|im_end|>"}
    ),
    "tokens that only added_tokens.json lists": _case(
        added_tokens={"<|im_start|>": 99, "<|im_end|>": 100, "<x>": 101},
        tokenizer_config={"eos_token": "<|im_end|>"},
    ),
    "tokens that only special_tokens_map.json names": _case(
        special_tokens_map={
            "eos_token": {"content": "<|im_end|>"} | _PLAIN | {"lstrip": True},
            "additional_special_tokens": ["<|im_start|>", "<x>"],
            "image_token": "<|end|>",
        },
        tokenizer_config={"eos_token": SPECIAL},
    ),
    "tokens that are only additional": _case(
        tokenizer_config={
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "eos_token": "<|im_end|>",
        }
    ),
    "tokens that are only extra": _case(
        tokenizer_config={
            "extra_special_tokens": [{"__type": "AddedToken"} | token("<x>", rstrip=True)],
            "additional_special_tokens": ["<|im_start|>"],
        }
    ),
    "extra tokens with names": _case(
        tokenizer_config={"extra_special_tokens": {"image_token": "<x>"}, "audio_token": "<|end|>"}
    ),
    "names as objects": _case(
        tokenizer_config={
            "bos_token": {"__type": "AddedToken"} | token("<|im_start|>", rstrip=True),
            "eos_token": {"__type": "AddedToken"} | token("<|im_end|>", special=False),
        }
    ),
    "flags of a token that differ": _case(
        token("<x>", special=False),
        tokenizer_config={"added_tokens_decoder": {"99": token("<x>", rstrip=True, lstrip=True)}},
    ),
    "a token that is normalized and a whole word": _case(
        tokenizer_config={
            "added_tokens_decoder": {
                "99": token("<x>", special=False, normalized=True),
                "100": token("the", special=False, single_word=True),
            }
        }
    ),
    "a token that only the settings call special": _case(
        token("<x>", special=False),
        tokenizer_config={"added_tokens_decoder": {"99": token("<x>")}},
    ),
    "a token that only its name makes special": _case(
        token("<x>", special=False), tokenizer_config={"pad_token": "<x>"}
    ),
    "ids that are listed in another place": _case(
        tokenizer_config={"added_tokens_decoder": {"120": _END, "110": _START, "5": token("<x>")}}
    ),
    "special tokens that are cut": _case(
        _START, tokenizer_config={"split_special_tokens": True, "bos_token": "<|im_start|>"}
    ),
    "a space first, which the general class leaves aside": _case(
        tokenizer_config={"add_prefix_space": True}
    ),
    "a space first": _case(
        config={"model_type": "gpt2"},
        tokenizer_config={"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True},
    ),
    "a class that forgets flags": _case(
        config={"model_type": "qwen2"},
        tokenizer_config={
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": _LISTED | {"99": _START | {"rstrip": True}},
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
        },
    ),
}


def write_files(folder: Path, files: Files) -> Path:
    """The files in a folder, with a config.json for the reference implementation."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ({"config": {"model_type": "llama"}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
