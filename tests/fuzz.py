"""Mutated checkpoints: each is loaded and run, or refused in one line; nothing else may happen.

    python -m tests.fuzz 200000 --seed 1 --out folder

A case is one or several files of a tiny checkpoint, mutated: keys of config.json and of the other
JSON files with odd values, bytes of the safetensors header, of tokenizer.json and of the configs.
Case N of a seed is always the same; `--only N` runs it alone. The folders of cases that did
something else are kept under `--out`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kvgen
from kvgen.checkpoint.families import FAMILIES
from kvgen.checkpoint.families.rope import ROPE_KEYS
from kvgen.errors import KvgenError
from tests import tiny
from tests.configs import CONFIGS

LONGEST_SECONDS = {"numpy": 20, "numba": 300}  # kernels may have to be compiled first
MOST_BYTES = 16 * 2**30  # of address space, when run by hand: what asks for more is an offender
NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 48, 128, 1.5, -0.5, 0.0, -0.0, 0.25, 0.3, 1.0, 2.0, 64.0, 1e-9,
    1e-30, 1e-40, 1e29, 1e300, -1e29, 1e-300, 10**40, -(10**40), 10**400, 2**16, 2**24 - 1, 2**24,
    2**31, 2**53, 2**63, 2**64, -(2**63), float("nan"), float("inf"), float("-inf"), 1.0000001,
]  # fmt: skip
VALUES: list[Any] = [
    *NUMBERS, None, True, False, "", "a", "silu", "gelu", "1", "full_attention", "a\nb", "\x1b[2J",
    "\ud800", "\x00", [], [1], [0], [None], [[]], {}, {"a": 1}, [1.0] * 4, [1e-40] * 4,
    ["sliding_attention"] * 4, ["full_attention"] * 4, [[["global"], 3]], [[["local"], 10**9]],
    [[[], 10**12]], {"full_attention": {}}, [10**40], list(range(300)), [[[[[[[[1]]]]]]]],
]  # fmt: skip
KINDS = ["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su", "proportional"]
CONFIG_KEYS = sorted(
    set().union(ROPE_KEYS, *(family.reads for family in FAMILIES.values()))
    | {"model_type", "architectures", "is_causal", "quantization_config", "per_layer_config"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "text_config", "torch_dtype", "odd_scale"}
)
GENERATION_KEYS = [
    "temperature", "top_k", "top_p", "min_p", "typical_p", "eos_token_id", "bos_token_id",
    "pad_token_id", "do_sample", "repetition_penalty", "max_length", "max_new_tokens", "num_beams",
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "stop_strings",
]  # fmt: skip
TOKENIZER_KEYS = [
    "chat_template", "bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token",
    "add_eos_token", "add_prefix_space", "added_tokens_decoder", "additional_special_tokens",
    "extra_special_tokens", "tokenizer_class", "model_max_length", "clean_up_tokenization_spaces",
    "legacy", "split_special_tokens",
]  # fmt: skip
SPECIAL = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
TOKENIZER: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": 0, "content": "<s>", "special": True, **SPECIAL}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": True},
    "post_processor": {"type": "TemplateProcessing",
                       "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                  {"Sequence": {"id": "A", "type_id": 0}}],
                       "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                                {"Sequence": {"id": "B", "type_id": 1}}],
                       "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                "use_regex": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
              "vocab": {"<s>": 0, **{chr(33 + i): 1 + i for i in range(94)}, "Ġ": 95, "at": 96,
                        "Ġc": 97},
              "merges": [["a", "t"], ["Ġ", "c"]]},
}  # fmt: skip
BASE: dict[str, bytes] = {
    "tokenizer.json": json.dumps(TOKENIZER).encode(),
    "tokenizer_config.json": json.dumps(
        {"bos_token": "<s>", "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    ).encode(),
    "generation_config.json": json.dumps({"do_sample": True, "temperature": 0.8}).encode(),
}


class Case(NamedTuple):
    """One checkpoint to try: the mutated files of a tiny model, and how it is run."""

    number: int
    model: str
    files: dict[str, bytes]
    backend: str


class Offence(NamedTuple):
    """What a case did instead of running or being refused in one line."""

    case: Case
    what: str


def mutated_keys(dice: random.Random, content: dict[str, Any], keys: list[str]) -> bytes:
    """One to three keys, also of nested objects, removed or given odd values."""
    content = copy.deepcopy(content)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        target = dice.choice([content, content, *_objects(content)])
        key = dice.choice([*target, dice.choice(keys), dice.choice(keys)])
        chance = dice.random()
        if chance < 0.15:
            target.pop(key, None)
        elif chance < 0.4 and keys is CONFIG_KEYS:
            target[dice.choice(["rope_scaling", "rope_parameters"])] = _some_rope(dice)
        elif chance < 0.7 and isinstance(target.get(key), (int, float)):
            target[key] = _some_number(dice)
        else:
            target[key] = copy.deepcopy(dice.choice(VALUES))
    return json.dumps(content).encode()


def _objects(content: object) -> Iterator[dict[str, Any]]:
    """The objects inside nested objects and lists."""
    for value in content.values() if isinstance(content, dict) else content:  # type: ignore[attr-defined]
        if isinstance(value, dict):
            yield value
        if isinstance(value, (dict, list)):
            yield from _objects(value)


def _some_number(dice: random.Random) -> Any:
    """An odd number, or one of any size."""
    if dice.random() < 0.7:
        return dice.choice(NUMBERS)
    number = dice.choice([1, 1, 1, -1]) * 10 ** dice.uniform(-32, 32)
    return number if dice.random() < 0.7 or abs(number) < 1 else int(number)


def _some_rope(dice: random.Random) -> dict[str, Any]:
    """A RoPE of some kind, mostly whole, with one number odd."""
    rope = {
        dice.choice(["type", "rope_type"]): dice.choice(KINDS), "factor": 4.0,
        "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "short_factor": [1.0] * dice.choice([2, 4, 6, 10]),
        "long_factor": [2.0] * dice.choice([2, 4, 6, 10]), "rope_theta": 10000.0,
    }  # fmt: skip
    for key in dice.sample(sorted(ROPE_KEYS), dice.choice([0, 1, 1, 2])):
        rope[key] = dice.choice(VALUES) if dice.random() < 0.3 else _some_number(dice)
    return rope


def mutated_bytes(dice: random.Random, content: bytes, *, within: int) -> bytes:
    """Some bytes near the beginning changed, removed or inserted."""
    changed = bytearray(content)
    for _ in range(dice.randint(1, 8)):
        if not changed:
            break
        place, kind = dice.randrange(min(len(changed), within)), dice.random()
        if kind < 0.6:
            changed[place] = dice.randrange(256)
        elif kind < 0.8:
            del changed[place : place + dice.randint(1, 9)]
        else:
            changed[place:place] = dice.randbytes(dice.randint(1, 9))
    return bytes(changed)


def mutated_header(dice: random.Random, content: bytes) -> bytes:
    """The header of a safetensors file with bytes changed, or its entries."""
    size = int.from_bytes(content[:8], "little")
    if dice.random() < 0.5:
        return mutated_bytes(dice, content, within=8 + size)
    header = json.loads(content[8 : 8 + size])
    for _ in range(dice.randint(1, 3)):
        name = dice.choice(sorted(header))
        chance = dice.random()
        if chance < 0.3:
            other = name.replace(
                "model.", dice.choice(["", "module.", "_orig_mod.", "\x1b", "lm_"])
            )
            header[other] = header.pop(name)
        elif chance < 0.4:
            del header[name]
        elif chance < 0.5:
            header["__metadata__"] = {name: dice.choice(sorted(header)), "format": "pt"}
        elif isinstance(header[name], dict):
            key = dice.choice(["dtype", "shape", "data_offsets"])
            odd = ["F64", "I64", "F8_E4M3", "BOOL", "F16", [2, 3], [0, 8], [0], [2**40, 2**40]]
            header[name][key] = dice.choice([*odd, *VALUES])
        if not header:
            break
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def make_case(seed: int, number: int, weights: Callable[[str], bytes]) -> Case:
    """Case `number` of a seed; `weights` gives the safetensors file of a tiny model."""
    dice = random.Random(f"{seed}-{number}")
    model = dice.choice(sorted(CONFIGS))
    config = CONFIGS[model]
    if config["model_type"] == "gemma3_text" and dice.random() < 0.3:
        config = {"model_type": "gemma3", "text_config": config}
    files = BASE | {"config.json": json.dumps(config).encode()}
    makers: dict[str, Callable[[], bytes]] = {
        "config.json": lambda: mutated_keys(dice, config, CONFIG_KEYS),
        "model.safetensors": lambda: mutated_header(dice, weights(model)),
        "tokenizer.json": lambda: mutated_keys(dice, TOKENIZER, list(TOKENIZER)),
        "tokenizer_config.json": lambda: mutated_keys(
            dice, json.loads(BASE["tokenizer_config.json"]), TOKENIZER_KEYS
        ),
        "generation_config.json": lambda: mutated_keys(
            dice, json.loads(BASE["generation_config.json"]), GENERATION_KEYS
        ),
    }
    names = ["config.json"] * 8 + sorted(makers)
    for name in dice.sample(names, dice.choice([1, 1, 1, 2, 3])):
        if name != "model.safetensors" and dice.random() < 0.1:
            files[name] = mutated_bytes(dice, files[name], within=2000)
        else:
            files[name] = makers[name]()
    return Case(number, model, files, "numba" if dice.random() < 0.1 else "numpy")


def run_case(case: Case, folder: Path) -> Offence | None:
    """Write, load and run a case; None where all is as it should be."""
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LONGEST_SECONDS[case.backend])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            model = kvgen.load(folder, backend=case.backend)
            model.logits([1, 2, 3])
            list(model.generate([1, 2], max_new_tokens=2, seed=1))
            if model.tokenizer is not None:
                model.encode("The cat sat.")
    except KvgenError as error:
        if not str(error).isprintable() or not str(error):
            return Offence(case, f"a message of several lines or control signs: {str(error)!r}")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return Offence(case, f"{type(error).__name__}: {str(error)[:200]!r} {_place(error)}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    seconds = time.monotonic() - started
    too_long = seconds > LONGEST_SECONDS[case.backend]
    return Offence(case, f"took {seconds:.0f} seconds") if too_long else None


def _too_long(*_: object) -> None:
    raise TimeoutError("took too long")


def _place(error: BaseException) -> str:
    """The innermost line of kvgen on the way to an error."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if f"{os.sep}kvgen{os.sep}" in file:
            place = f"in {Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def offences(cases: range, *, seed: int, folder: Path) -> Iterator[Offence]:
    """Run the cases in folders that are used again; what offends is yielded."""
    kept: dict[str, bytes] = {}

    def weights(name: str) -> bytes:
        if name not in kept:
            kept[name] = (
                tiny.write_checkpoint(folder / name, name) / "model.safetensors"
            ).read_bytes()
        return kept[name]

    for number in cases:
        case = make_case(seed, number, weights)
        original = weights(case.model)
        place = folder / case.model
        found = run_case(case, place)
        if "model.safetensors" in case.files:
            # A new file: the old one may still be mapped.
            (place / "model.safetensors").unlink()
            (place / "model.safetensors").write_bytes(original)
        if found is not None:
            yield found


def main() -> int:
    """Run the cases of the command line; 1 where one offends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", type=int, help="how many cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first case")
    parser.add_argument("--only", type=int, help="one case alone")
    parser.add_argument("--out", type=Path, help="where the folders of offending cases are kept")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    cases = range(options.first, options.first + options.cases)
    if options.only is not None:
        cases = range(options.only, options.only + 1)
    n_offences = 0
    with tempfile.TemporaryDirectory() as folder:
        for case, what in offences(cases, seed=options.seed, folder=Path(folder)):
            n_offences += 1
            print(f"case {case.number} ({case.model}, {case.backend}): {what}", flush=True)  # noqa: T201
            if options.out is not None:
                kept = options.out / f"{options.seed}-{case.number}"
                shutil.rmtree(kept, ignore_errors=True)
                tiny.write_checkpoint(kept, case.model)
                for name, content in case.files.items():
                    (kept / name).write_bytes(content)
    print(f"{len(cases)} cases of seed {options.seed}, {n_offences} offend")  # noqa: T201
    return 1 if n_offences else 0


if __name__ == "__main__":
    sys.exit(main())
