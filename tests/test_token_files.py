"""Tokens that tokenizer.json does not tell alone, and optional files that stop nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kvgen
from kvgen.errors import CheckpointError
from kvgen.sampling import SamplingOptions
from kvgen.text.tokenizer import Tokenizer, find_tokenizer
from tests import tiny
from tests.command import assert_fails, inside
from tests.token_files import CASES, TEXTS, Files, token, tokenizer_json, write_files

GOLDEN = json.loads((Path(__file__).parent / "golden" / "token_files.json").read_text("utf-8"))


def opened(folder: Path, files: Files) -> Tokenizer:
    tokenizer = find_tokenizer(write_files(folder, files))
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("name", CASES)
def test_tokens_of_several_files_equal_the_reference_implementation(
    name: str, tmp_path: Path
) -> None:
    golden = GOLDEN[name]
    tokenizer = opened(tmp_path, CASES[name])
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert ids == golden["ids"]
    assert [tokenizer.decode(each) for each in ids] == golden["texts"]
    assert tokenizer.eos_id == golden["eos"]
    assert tokenizer.n_tokens == golden["tokens"]


def test_an_id_that_is_listed_in_another_place_is_told(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, CASES["ids that are listed in another place"])
    assert tokenizer.notes[0] == (
        "the token '<|im_end|>' has the id 101, although the tokenizer's settings list it as 120"
    )
    assert opened(tmp_path, CASES["tokens that only the settings list"]).notes == ()


BROKEN: list[tuple[Files, str]] = [
    ({"tokenizer_config": {"added_tokens_decoder": {"99": "<x>"}}}, ""),  # a bare text will do
    ({"tokenizer_config": {"added_tokens_decoder": None}}, ""),
    ({"tokenizer_config": {"added_tokens_decoder": [3]}}, "added_tokens_decoder should be tokens"),
    ({"tokenizer_config": {"added_tokens_decoder": {"x": token("<x>")}}}, "tokens by their ids"),
    ({"tokenizer_config": {"added_tokens_decoder": {"99": 3}}}, "an object with `content`"),
    ({"tokenizer_config": {"added_tokens_decoder": {"99": {"content": 3}}}}, "with `content`"),
    (
        {"tokenizer_config": {"added_tokens_decoder": {"99": token("<x>", rstrip=1)}}},
        "an object with `content` and flags",
    ),
    ({"tokenizer_config": {"eos_token": 3}}, "tokenizer_config.json: eos_token should be a text"),
    ({"tokenizer_config": {"extra_special_tokens": "<x>"}}, "should be a list of tokens"),
    ({"tokenizer_config": {"extra_special_tokens": {"image": 3}}}, "image should be a text"),
    ({"special_tokens_map": [1]}, "special_tokens_map.json: should hold a JSON object"),
    ({"added_tokens": {"<x>": "9"}}, "added_tokens.json: the id of '<x>' should be a number"),
]


@pytest.mark.parametrize(("files", "message"), BROKEN)
def test_files_that_describe_no_tokens_are_named(
    files: Files, message: str, tmp_path: Path
) -> None:
    files = {"tokenizer": tokenizer_json()} | files
    if not message:
        assert opened(tmp_path, files).encode("a") == [65]
        return
    with pytest.raises(CheckpointError) as raised:
        opened(tmp_path, files)
    assert message in str(raised.value) and str(tmp_path) in str(raised.value)


# --- within a checkpoint ----------------------------------------------------------------------


def checkpoint(folder: Path, **files: Any) -> Path:
    """The tiny Qwen2 with 99 tokens for its 131 ids."""
    tiny.write_checkpoint(folder, "qwen2")
    for name, content in ({"tokenizer": tokenizer_json()} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def pieces(folder: Path, prompt: str = "ab", **options: Any) -> list[kvgen.model.Piece]:
    model = kvgen.load(folder, backend="numpy", cache_dtype="f32")
    options = {"max_new_tokens": 24, "sampling": SamplingOptions()} | options
    return list(model.generate(prompt, **options))


@pytest.mark.parametrize(
    "file", ["added_tokens_decoder", "added_tokens", "additional_special_tokens"]
)
def test_a_text_ends_at_a_token_that_only_another_file_knows(file: str, tmp_path: Path) -> None:
    """Greedy decoding comes to 120 after [3, 4, 5], and tokenizer.json ends at 98."""
    names = {f"<{number}>": number for number in range(99, 121)}
    settings: dict[str, Any] = {"eos_token": "<120>"}
    files: Files = {"tokenizer_config": settings}
    if file == "added_tokens":
        files[file] = names
    elif file == "additional_special_tokens":
        settings |= {"eos_token": None, "sep_token": "<99>", file: [*names][1:]}
    else:
        settings[file] = {str(number): token(name) for name, number in names.items()}
    folder = checkpoint(tmp_path, **files)
    model = kvgen.load(folder, backend="numpy", cache_dtype="f32")
    for name, number in names.items():
        assert model.encode(f"a{name}b", special_tokens=False) == [65, number, 66]
    run = list(model.generate([3, 4, 5], max_new_tokens=9, sampling=SamplingOptions()))
    if settings["eos_token"] is not None:
        assert [piece.token for piece in run] == [52, 120]
        assert run[-1].finish_reason == "stop"
    else:
        assert [piece.token for piece in run[:2]] == [52, 120] and run[1].text == ""


@pytest.mark.parametrize("n_special", [1, 2])
@pytest.mark.parametrize("n_following", [0, 1, 2])
def test_a_special_token_ends_the_text_as_a_stop_text(
    n_special: int, n_following: int, tmp_path: Path
) -> None:
    """Greedy decoding writes `:{{TSf` and more: `S` and `f` are called special, text follows."""
    plain = [piece.token for piece in pieces(checkpoint(tmp_path / "plain"))]
    tokenizer = kvgen.load(tmp_path / "plain", backend="numpy").require_tokenizer()
    words = [tokenizer.decode([token]) for token in plain]
    assert words[4:6] == ["S", "f"] and words.count("S") == words.count("f") == 1
    special = dict(zip(["pad_token", "sep_token"], words[4:6][:n_special], strict=False))
    folder = checkpoint(tmp_path / "special", tokenizer_config=special)
    stop = "".join(words[4 : 4 + n_special + n_following])
    stopped = pieces(folder, stop=stop)
    assert stopped[-1].finish_reason == "stop"
    assert "".join(piece.text for piece in stopped) == "".join(words[:4])
    assert len(stopped) == 4 + len(stop)
    flags = ["--backend", "numpy", "--greedy", "--stop", stop, "-q"]
    run = inside("generate", "ab", "-m", str(folder), *flags)
    assert run.stdout.decode() == "".join(words[:4])
    # Without the stop text a special token only stays away from the text.
    rest = "".join(piece.text for piece in pieces(folder))
    assert rest == "".join(word for word in words if word not in special.values())


@pytest.mark.parametrize(
    ("generation", "used"),
    [
        ({"do_sample": True, "top_k": -1}, "temperature 1"),
        ({"do_sample": True, "top_k": 0, "top_p": 0.0}, "temperature 1"),
        ({"do_sample": True, "top_p": -1}, "temperature 1"),
        ({"do_sample": True, "top_k": 20.0}, "top-k 20 > temperature 1"),
        ({"do_sample": True, "top_k": None}, "temperature 1"),
        ({"do_sample": False, "top_k": "many", "top_p": 7}, "greedy"),
        ({"top_k": 20.5}, "greedy"),
        ({"repetition_penalty": 1}, "greedy"),
        ({"repetition_penalty": 1.3}, "repetition penalty 1.3 > greedy"),
        (
            {"do_sample": True, "repetition_penalty": 2, "min_p": 0.1},
            "repetition penalty 2 > min-p 0.1 > temperature 1",
        ),
    ],
)
def test_what_a_generation_config_asks_for_is_done(
    generation: dict[str, Any], used: str, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path, generation_config=generation)
    run = inside("generate", "ab", "-m", str(folder), "--backend", "numpy", "-n", "2", "-v")
    assert f"sampling: {used}\n" in run.stderr.decode()
    assert json.loads(inside("info", str(folder), "--json").stdout)["sampling"] == used


@pytest.mark.parametrize(
    ("generation", "flags", "message"),
    [
        ({"do_sample": True, "top_k": "many"}, ["--top-k", "5"], "top-k is 'many'"),
        ({"do_sample": True, "top_k": 20.5}, ["--top-k", "5"], "top-k is 20.5"),
        ({"do_sample": True, "top_k": True}, ["--top-k", "5"], "top-k is True"),
        ({"do_sample": True, "top_k": -2}, ["--top-k", "0"], "top-k is -2"),
        ({"do_sample": True, "top_p": 7}, ["--top-p", "1"], "top-p is 7"),
        ({"do_sample": True, "top_p": float("nan")}, ["--top-p", "1"], "top-p is nan"),
        ({"do_sample": True, "min_p": [1]}, ["--min-p", "0"], "min-p is [1]"),
        ({"do_sample": True, "temperature": "hot"}, ["--temp", "1"], "temperature is 'hot'"),
        ({"do_sample": True, "temperature": -1}, ["--greedy"], "temperature is -1"),
        (
            {"repetition_penalty": 0},
            ["--repetition-penalty", "1"],
            "is 0; it must be above 0 and finite; --repetition-penalty sets another value",
        ),
    ],
)
def test_a_recommendation_that_cannot_be_stops_only_what_uses_it(
    generation: dict[str, Any], flags: list[str], message: str, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path, generation_config=generation)
    model = ["-m", str(folder), "--backend", "numpy"]
    assert inside("generate", "ab", *model, "-n", "2", *flags).returncode == 0
    assert inside("verify", *model, "-p", "9").returncode == 0
    run = inside("info", *model[:2])
    assert run.returncode == 0 and message in run.stderr.decode()
    assert_fails(inside("generate", "ab", *model), 4, message)


def test_stop_ids_that_are_none_stop_only_a_text(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, generation_config={"eos_token_id": "2"})
    model = ["-m", str(folder), "--backend", "numpy"]
    assert inside("verify", *model, "-p", "9").returncode == 0
    assert "eos_token_id should be a token id" in inside("info", *model[:2]).stderr.decode()
    assert_fails(inside("generate", "ab", *model), 4, "eos_token_id should be a token id")


def test_a_generation_config_that_cannot_be_read_is_left_aside_with_a_note(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "generation_config.json").write_text("{")
    model = ["-m", str(folder), "--backend", "numpy"]
    for command in (["generate", "ab", "-n", "2"], ["info"], ["verify", "-p", "9"]):
        run = inside(*command, *(model if command[0] != "info" else model[:2]))
        assert run.returncode == 0
        assert "generation_config.json: is not valid JSON" in run.stderr.decode()


def test_keys_that_play_no_part_are_named(tmp_path: Path) -> None:
    generation = {
        "bos_token_id": 1, "max_length": 20, "temperature": 0.5, "num_beams": 1,
        "no_repeat_ngram_size": 3, "suppress_tokens": [], "typical_p": 1.0, "guidance_scale": 2.0,
    }  # fmt: skip
    folder = checkpoint(tmp_path, generation_config=generation)
    note = "generation_config.json: kvgen does not apply guidance_scale = 2.0, no_repeat_ngram_size"
    for command in (["generate", "ab", "-n", "2", "--backend", "numpy"], ["info"]):
        quiet, verbose = (inside(*command, "-m", str(folder), *flag) for flag in ([], ["-v"]))
        assert f"{note} = 3\n" in quiet.stderr.decode()
        assert (
            "ignored keys of generation_config.json: bos_token_id, max_length, num_beams, "
            "no_repeat_ngram_size, suppress_tokens, typical_p, guidance_scale\n"
        ) in verbose.stderr.decode()


# 24 greedy ids after [3, 4, 5] by transformers 5.24, GenerationConfig(repetition_penalty=...).
PENALIZED = {
    1.0: [52, 120, 126, 27, 27, 93, 37, 27, 75, 26, 16, 38,
          119, 38, 44, 3, 38, 129, 51, 44, 44, 16, 16, 119],
    1.3: [52, 120, 126, 27, 27, 93, 37, 0, 26, 16, 119, 38,
          7, 80, 117, 44, 13, 71, 11, 16, 117, 73, 62, 70],
    0.7: [52, 120, 4, 5, 52, 120, 104, 11, 111, 4, 27, 27,
          27, 27, 111, 104, 13, 27, 51, 4, 51, 111, 4, 13],
}  # fmt: skip


@pytest.mark.parametrize("penalty", PENALIZED)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_recommended_repetition_penalty_is_obeyed(
    penalty: float, backend: Any, tmp_path: Path
) -> None:
    folder = tiny.write_checkpoint(tmp_path, "qwen2")
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": penalty}))
    model = kvgen.load(folder, backend=backend, cache_dtype="f32")
    run = model.generate([3, 4, 5], max_new_tokens=24)
    assert [piece.token for piece in run] == PENALIZED[penalty]
