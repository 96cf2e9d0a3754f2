"""What a checkpoint is, without running it: numbers by hand, the view at every width."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from safetensors import safe_open

from kvgen.facts import read_facts
from kvgen.loading import default_model
from kvgen.render.canvas import Canvas, Mode
from kvgen.render.info import facts_json, facts_view
from tests import tiny
from tests.command import assert_fails, inside
from tests.configs import CONFIGS
from tests.test_render import lines_of

QUESTIONS = [
    "model", "folder", "shape", "block", "positions", "windows", "weights", "KV cache", "kv heads",
    "tokenizer", "chat", "sampling",
]  # fmt: skip
MARGIN = 11


def view(folder: Path, width: int, mode: Mode = "glyphs") -> list[str]:
    canvas = Canvas(width, mode)
    return lines_of(facts_view(read_facts(folder), canvas), canvas)


def answers(folder: Path, width: int = 200) -> dict[str, list[str]]:
    """The parts of each answer, taken from what is drawn."""
    found: dict[str, list[str]] = {}
    for line in view(folder, width):
        question = line[:MARGIN].strip() or list(found)[-1]
        found.setdefault(question, []).extend(line[MARGIN:].split(" · "))
    return found


def facts_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(facts_json(read_facts(folder))))
    return content


def stored(folder: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and bytes of every tensor, by the safetensors library."""
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        width = {"F32": 4, "F16": 2, "BF16": 2}
        return {
            name: (tuple(part.get_shape()), prod(part.get_shape()) * width[part.get_dtype()])
            for name, part in slices.items()
        }


# --- numbers ----------------------------------------------------------------------------------


def test_the_default_model_by_hand() -> None:
    folder = default_model()
    tensors = stored(folder)
    n_numbers = sum(prod(shape) for shape, _ in tensors.values())
    n_bytes = sum(size for _, size in tensors.values())
    norms = sum(size for shape, size in tensors.values() if len(shape) == 1)
    facts = facts_of(folder)
    assert facts == {
        "name": "storyteller",
        "folder": str(folder),
        "family": "llama",
        "parameters": n_numbers,
        "layers": 7,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
        "width": 320,
        "ff": 832,
        "vocabulary": 4096,
        "context": 1024,
        "tied": True,
        "norm": "rms",
        "norm_eps": 1e-5,
        "mlp": "gated",
        "activation": "silu",
        "parallel_residual": False,
        "qk_norm": None,
        "attention_scales": [64**-0.5] * 7,
        "attention_softcap": None,
        "logit_softcap": None,
        "rope": [{"layers": list(range(7)), "kind": "default", "theta": 10000.0, "dim": 64}],
        "windows": [],
        "dtype": "bf16",
        "stored_bytes": {"BF16": n_bytes},
        "file_bytes": (folder / "model.safetensors").stat().st_size,
        "weight_bytes": n_bytes - norms,
        "cache_dtype": "f16",
        "kv_bytes_per_token": 2 * 7 * 2 * 64 * 2,
        "kv_bytes": 2 * 7 * 2 * 64 * 2 * 1024,
        "kv_sharing": [[0, 1], [2, 3]],
        "tokenizer": {
            "kind": "BPE", "tokens": 4096, "start": "<|endoftext|>", "end": "<|endoftext|>",
        },
        "chat_template": False,
        "stop_ids": [0],
        "sampling": "top-p 0.9 > temperature 0.7",
        "notes": [],
        "ignored_keys": facts["ignored_keys"],
        "ignored_generation_keys": ["bos_token_id"],
        "version": facts["version"],
    }  # fmt: skip
    C, F, V, D = 320, 832, 4096, 64
    layer = C * 4 * D * 2 + C * 2 * D * 2 + 3 * C * F + 2 * C
    assert n_numbers == V * C + 7 * layer + C == 8_626_880


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_bytes_are_those_of_the_file(
    name: str, tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder(name)
    tensors = stored(folder)
    facts = facts_of(folder)
    assert facts["parameters"] == sum(prod(shape) for shape, _ in tensors.values())
    assert facts["stored_bytes"] == {"F32": sum(size for _, size in tensors.values())}
    assert facts["file_bytes"] == (folder / "model.safetensors").stat().st_size
    assert 0.9 < facts["weight_bytes"] / facts["stored_bytes"]["F32"] < 1
    assert facts["tied"] == (not {"lm_head.weight", "embed_out.weight"} & set(tensors))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_is_counted_from_the_config(name: str, tiny_folder: Callable[..., Path]) -> None:
    raw = CONFIGS[name]
    facts = facts_of(tiny_folder(name))
    layers = raw.get("num_hidden_layers") or raw.get("n_layer") or raw["num_layers"]
    heads = raw.get("num_attention_heads") or raw.get("n_head") or raw["num_heads"]
    kv_heads = raw.get("num_key_value_heads") or heads
    width = raw.get("hidden_size") or raw["n_embd"]
    head_dim = raw.get("head_dim") or width // heads
    assert [facts[key] for key in ("layers", "heads", "kv_heads", "width", "head_dim")] == [
        layers, heads, kv_heads, width, head_dim,
    ]  # fmt: skip
    assert facts["kv_bytes_per_token"] == 2 * layers * kv_heads * head_dim * 4
    assert facts["kv_bytes"] == facts["kv_bytes_per_token"] * facts["context"]
    sharing = facts["kv_sharing"]
    assert len(sharing) == kv_heads
    assert [head for group in sharing for head in group] == list(range(heads))


def test_a_tied_head_stored_twice_counts_once(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    tensors = tiny.make_tensors("llama_gqa")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    facts = facts_of(tiny.write_checkpoint(tmp_path, "llama_gqa", tensors))
    once = facts_of(tiny_folder("llama_gqa"))
    assert facts["tied"] and facts["parameters"] == once["parameters"]
    assert facts["weight_bytes"] == once["weight_bytes"]
    assert facts["stored_bytes"]["F32"] == once["stored_bytes"]["F32"] + 131 * 54 * 4


def test_a_head_that_differs_from_the_embedding_counts_and_is_noted(tmp_path: Path) -> None:
    tensors = tiny.make_tensors("llama_gqa")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    folder = tiny.write_checkpoint(tmp_path, "llama_gqa", tensors)
    facts = facts_of(folder)
    assert not facts["tied"] and facts["parameters"] == sum(map(np.size, tensors.values()))
    assert "lm_head.weight differs from the embedding" in facts["notes"][0]
    run = inside("info", str(folder))
    assert run.returncode == 0 and facts["notes"][0] in run.stderr.decode()
    assert inside("info", str(folder), "-q").stderr == b""


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "transformer.h.1.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("llama_gqa", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_buffers_do_not_count(
    name: str, buffer: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    tensors = tiny.make_tensors(name) | {buffer: np.ones((1, 1, 256, 256), np.float32)}
    facts = facts_of(tiny.write_checkpoint(tmp_path, name, tensors))
    assert facts["parameters"] == facts_of(tiny_folder(name))["parameters"]


@pytest.mark.parametrize(("kind", "dtype", "width"), [("F16", "f16", 2), ("BF16", "bf16", 2)])
def test_bytes_follow_the_stored_width(
    kind: str, dtype: str, width: int, tiny_folder: Callable[..., Path]
) -> None:
    wide, narrow = facts_of(tiny_folder("qwen3")), facts_of(tiny_folder("qwen3", kind))
    assert narrow["dtype"] == dtype
    assert narrow["stored_bytes"] == {kind: wide["stored_bytes"]["F32"] * width // 4}
    assert narrow["weight_bytes"] == wide["weight_bytes"] * width // 4
    assert 2 * narrow["kv_bytes_per_token"] == wide["kv_bytes_per_token"]


# --- the view ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", [*CONFIGS, None], ids=str)
def test_the_view_fits_its_width(
    name: str | None, width: int, tiny_folder: Callable[..., Path]
) -> None:
    folder = default_model() if name is None else tiny_folder(name)
    lines = view(folder, width)
    assert max(map(cell_len, lines)) <= width
    assert [line[:MARGIN].strip() for line in lines if line[0] != " "] == QUESTIONS
    for line in lines:
        answer = line[MARGIN:].rstrip()
        assert line[:MARGIN].endswith("  ") and answer and answer[0] not in " ·" != answer[-1]
    words = " ".join(" ".join(line[MARGIN:].split(" · ")) for line in lines)
    wide = " ".join(" ".join(parts) for parts in answers(folder).values())
    if name is None:  # the path of a test's folder is cut wherever a line ends
        assert words.split() == wide.split()
    ascii_only = inside("info", str(folder), "--ascii", "--width", str(width)).stdout
    assert ascii_only.isascii() and max(map(len, ascii_only.splitlines())) <= width
    assert b"\\" not in ascii_only


def test_colour_sets_the_questions_back(tiny_folder: Callable[..., Path]) -> None:
    run = inside("info", str(tiny_folder("gpt2")), "--color", "always")
    assert run.stdout.startswith(b"\x1b[2mmodel      \x1b[0mgpt2")
    assert b"\x1b" not in inside("info", str(tiny_folder("gpt2"))).stdout


@pytest.mark.parametrize(
    ("name", "question", "expected"),
    [
        ("gemma3", "windows", ["the last 9 (layers 0-4, 6)", "every key (layer 5)"]),
        ("gpt_neo", "windows", ["the last 7 (layers 1, 3)", "every key (layers 0, 2)"]),
        ("mistral", "windows", ["the last 9 (layers 0-3)"]),
        ("llama_gqa", "windows", ["none: a query sees every key before it"]),
        ("gemma3", "positions",
         ["RoPE theta 10,000 (layers 0-4, 6)", "RoPE theta 1,000,000 (layer 5)"]),
        ("smollm3", "positions", ["RoPE theta 2,000,000 (layers 0-2, 4)", "none (layer 3)"]),
        ("gpt2", "positions", ["learned, 256 of them"]),
        ("opt", "positions", ["learned, 256 of them"]),
        ("gpt_neox", "positions", ["RoPE theta 10,000 over 4 of 16"]),
        ("llama_yarn", "positions", ["RoPE theta 10,000, yarn x 4"]),
        ("phi3_longrope", "positions",
         ["RoPE theta 10,000, longrope",
          "other frequencies beyond 100 positions: kept ids run again once"]),
        ("llama_dynamic", "positions",
         ["RoPE theta 10,000, dynamic x 3",
          "other frequencies at each length beyond 100: kept ids run again at every step"]),
        ("llama3_mqa", "kv heads", ["0 for query heads 0-5"]),
        ("llama_gqa", "kv heads", ["0 for query heads 0-2", "1 for 3-5"]),
        ("gpt2", "kv heads", ["one for each query head"]),
    ],
)  # fmt: skip
def test_what_is_special_is_told(
    name: str, question: str, expected: list[str], tiny_folder: Callable[..., Path]
) -> None:
    assert answers(tiny_folder(name))[question] == expected


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("gemma2", "scores capped at 2"),
        ("gemma2", "logits capped at 3"),
        ("gemma2", "scores x 0.2041"),
        ("gpt_neo", "scores x 1"),
        ("gpt2_inverse", "scores x 0.3536 to 0.1179 by layer"),
        ("cohere", "attention and MLP in parallel"),
        ("gpt_neox", "attention and MLP in parallel"),
        ("gpt_neox_sequential", "attention, then MLP"),
        ("qwen3", "queries and keys normalised by head"),
        ("olmo2", "queries and keys normalised"),
        ("llama_gqa", "head tied to the embedding"),
        ("mistral", "head of its own"),
        ("gpt2", "LayerNorm (eps 1e-05)"),
        ("qwen3", "RMSNorm (eps 1e-06)"),
        ("opt", "plain MLP with relu"),
        ("gemma", "gated MLP with gelu_tanh"),
    ],
)
def test_the_block_names_its_parts(name: str, part: str, tiny_folder: Callable[..., Path]) -> None:
    assert part in answers(tiny_folder(name))["block"]


def test_layers_are_listed_for_programs_too(tiny_folder: Callable[..., Path]) -> None:
    gemma = facts_of(tiny_folder("gemma3"))
    assert gemma["windows"] == [9, 9, 9, 9, 9, None, 9]
    assert [rope["layers"] for rope in gemma["rope"]] == [[0, 1, 2, 3, 4, 6], [5]]
    smollm = facts_of(tiny_folder("smollm3"))
    assert smollm["rope"][1] == {"layers": [3], "kind": None}
    longrope = facts_of(tiny_folder("phi3_longrope"))["rope"]
    assert [rope["changes_beyond"] for rope in longrope] == [100]
    assert "changes_beyond" not in gemma["rope"][0]
    assert facts_of(tiny_folder("gpt2"))["rope"] == []


def test_the_cache_is_reckoned_in_the_view(tiny_folder: Callable[..., Path]) -> None:
    assert answers(tiny_folder("qwen3"))["KV cache"] == [
        "1.2 KiB a token = 2 (K and V) x 4 layers x 2 kv heads x 20 x 4 bytes (f32)",
        "400.0 KiB at the whole context",
    ]


# --- tokenizer and template -------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The default model, its small files to be changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in default_model().iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change(folder: Path, file: str, **changes: object) -> None:
    content = json.loads((folder / file).read_text("utf-8")) | changes
    (folder / file).write_text(json.dumps(content), encoding="utf-8")


def test_the_tokenizer_is_told(copy: Path) -> None:
    assert answers(copy)["tokenizer"] == [
        "BPE, 4,096 tokens", "texts start with <|endoftext|>", "stops at 0",
    ]  # fmt: skip
    change(copy, "tokenizer.json", post_processor=None)
    change(copy, "generation_config.json", eos_token_id=[0, 7, 9])
    assert answers(copy)["tokenizer"][1:] == ["no start token", "stops at 0, 7, 9"]
    assert facts_of(copy)["tokenizer"]["start"] is None


def test_ids_without_a_token_are_counted(copy: Path) -> None:
    content = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    del vocabulary[last]
    content["model"]["merges"] = [
        merge for merge in content["model"]["merges"] if "".join(merge) != last
    ]
    (copy / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    parts = answers(copy)["tokenizer"]
    assert parts[:2] == ["BPE, 4,095 tokens", "1 ids without a token are never sampled"]


def test_a_name_of_a_token_cannot_act_on_the_terminal(copy: Path) -> None:
    name = "\x1b[2J" + "long" * 20
    content = (copy / "tokenizer.json").read_text("utf-8")
    (copy / "tokenizer.json").write_text(content.replace("<|endoftext|>", json.dumps(name)[1:-1]))
    run = inside("info", str(copy))
    assert b"\x1b" not in run.stdout and rb"texts start with \x1b[2Jlong" in run.stdout
    assert facts_of(copy)["tokenizer"]["start"] == name


def test_a_missing_tokenizer_is_told_with_its_remedy(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, "qwen2")
    assert answers(folder)["tokenizer"][1:] == ["stops at 130"]
    (folder / "tokenizer.model").write_bytes(b"\x0a")
    facts = facts_of(folder)
    assert facts["tokenizer"] is None and facts["stop_ids"] == [130]
    text = " ".join(answers(folder, 400)["tokenizer"])
    assert "tokenizer.json is missing (found tokenizer.model; to convert: python -c" in text


def test_a_template_is_told(copy: Path) -> None:
    assert answers(copy)["chat"] == ["no template"]
    change(copy, "tokenizer_config.json", chat_template="{{ messages }}")
    assert answers(copy)["chat"] == ["a template: --chat uses it"]
    assert facts_of(copy)["chat_template"] is True


# --- the command ------------------------------------------------------------------------------


def test_json_is_one_object_with_the_facts(tiny_folder: Callable[..., Path]) -> None:
    run = inside("info", str(tiny_folder("gemma2")), "--json")
    assert run.returncode == 0 and run.stderr == b"" and run.stdout.count(b"\n") == 1
    assert json.loads(run.stdout) == facts_of(tiny_folder("gemma2"))


def test_verbose_lists_the_keys_without_a_part(tiny_folder: Callable[..., Path]) -> None:
    text = inside("info", str(tiny_folder("gemma2")), "-v").stderr.decode()
    assert "ignored keys of config.json: " in text and "cache_implementation" in text
    assert inside("info", str(tiny_folder("gemma2"))).stderr == b""


def test_a_model_is_named_once(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = str(tiny_folder("gpt2")), str(tiny_folder("opt"))
    assert_fails(inside("info", one, "-m", other), 2, "name the model once")
    assert_fails(inside("info", "--revision", "main"), 2, "--revision needs a Hub model")
    expected = inside("info", one).stdout
    assert inside("info", "-m", one).stdout == expected
    monkeypatch.setenv("KVGEN_MODEL", other)
    assert inside("info", one).stdout == expected != inside("info").stdout


def _cut(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(weights[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "is truncated (1,000 bytes)"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is not a usable tokenizer"),
        (lambda folder: change(folder, "config.json", num_hidden_layers=8), "layers.7."),
        (lambda folder: change(folder, "config.json", hidden_size=160), "has shape"),
        (lambda folder: change(folder, "config.json", sliding_windows=3), "is not understood"),
    ],
)
def test_a_broken_checkpoint_is_told_in_one_line(
    damage: Callable[[Path], object], message: str, copy: Path
) -> None:
    damage(copy)
    for flags in ([], ["--json"]):
        assert_fails(inside("info", str(copy), *flags), 4, message)
    assert_fails(inside("info", str(copy / "nowhere")), 3, "no such model folder")


def test_nothing_is_compiled_and_numba_is_not_imported(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from kvgen.cli import run\n"
        "assert run(['info', '--json']) == 0\n"
        "heavy = {'numba', 'llvmlite', 'jinja2', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {"KVGEN_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
    assert json.loads(run.stdout)["name"] == "storyteller" and not list(tmp_path.iterdir())
