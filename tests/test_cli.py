"""The command line as users meet it: real processes, both streams, exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import kvgen as kvgen_package
from kvgen.cli import cli
from kvgen.engine.calibration import Calibration
from kvgen.engine.contract import Engine
from kvgen.loading import default_model
from kvgen.sampling import SamplingOptions
from tests.command import (
    COMMANDS,
    KVGEN,
    LAST_HEAD,
    LAST_LAYER,
    PROMPT,
    SHAPE,
    assert_fails,
    inside,
    kvgen,
)
from tests.configs import CONFIGS


@pytest.fixture
def storyteller_copy(tmp_path: Path) -> Path:
    """The default model's files, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in default_model().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


# --- generate ---------------------------------------------------------------------------------


def test_text_goes_to_stdout_and_timings_to_stderr() -> None:
    run = kvgen("generate", PROMPT, "-n", "12", "--greedy")
    assert run.returncode == 0
    pieces = kvgen_package.load().generate(PROMPT, max_new_tokens=12, sampling=SamplingOptions())
    assert run.stdout.decode() == "".join(piece.text for piece in pieces)
    lines = run.stderr.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["load", "prefill", "decode", "cache"]
    assert lines[1].split()[1:3] == ["7", "tokens"]
    assert lines[2].split()[1:3] == ["11", "tokens"]  # the first of 12 comes out of the prefill
    assert "on · 18 positions" in lines[3]


@pytest.mark.parametrize(
    "arguments",
    [["-p", PROMPT], ["-"], [], ["-f", "-"], ["-f", "FILE"], ["--prompt", PROMPT, "--no-cache"],
     [PROMPT, "--backend", "numpy"], [PROMPT, "--dtype", "f32"], [PROMPT, "--no-kv-cache"],
     [PROMPT, "--temp", "0"], [PROMPT, "-t", "2"]],
    ids=" ".join,
)  # fmt: skip
def test_every_way_gives_the_same_text(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n")
    flags = ["-n", "20", "-q", "--greedy"]
    expected = inside("generate", PROMPT, *flags)
    if arguments in (["-"], [], ["-f", "-"]):
        run = kvgen("generate", *arguments, *flags, stdin=PROMPT.encode() + b"\n")
    else:
        run = inside(
            "generate", *(str(file) if word == "FILE" else word for word in arguments), *flags
        )
    assert run.returncode == 0
    assert run.stdout == expected.stdout and len(run.stdout) > 40
    assert expected.stderr == b""


def test_the_same_seed_gives_the_same_text() -> None:
    one, again, uncached, other = (
        inside("generate", PROMPT, "-n", "25", *rest, "-q").stdout
        for rest in (["--seed", "7"], ["-s", "7"], ["-s", "7", "--no-cache"], ["-s", "8"])
    )
    assert one == again == uncached != other


def test_a_random_seed_is_printed_and_can_be_used_again() -> None:
    run = inside("generate", PROMPT, "-n", "25")
    sampled = run.stderr.decode().splitlines()[-1]
    assert sampled.startswith("sampled top-p 0.9 > temperature 0.7 · seed ")
    assert inside("generate", PROMPT, "-n", "25", "-s", sampled.split()[-1]).stdout == run.stdout


def test_generation_as_json() -> None:
    run = inside("generate", PROMPT, "-n", "8", "--greedy", "--json")
    content = json.loads(run.stdout)
    assert run.stderr == b""
    assert content["finish_reason"] == "length" and len(content["ids"]) == 8
    assert content["text"].encode() == inside("generate", PROMPT, "-n", "8", "--greedy").stdout
    assert content["timings"]["prefill_tokens"] == len(content["prompt_ids"]) == 7
    assert content["timings"]["decode_steps"] == 7
    assert (content["model"], content["dtype"], content["cache"]) == ("storyteller", "bf16", True)


def test_a_stop_text_ends_the_text() -> None:
    full = inside("generate", PROMPT, "-n", "30", "--greedy", "-q").stdout.decode()
    stop = full[10:15]
    run = inside("generate", PROMPT, "-n", "30", "--greedy", "--stop", stop, "--json")
    content = json.loads(run.stdout)
    assert content["text"] == full[: full.index(stop)]
    assert content["finish_reason"] == "stop"


def test_a_stepwise_prefill_is_named_in_the_timing_block() -> None:
    run = kvgen("generate", PROMPT, "-n", "3", "--greedy", "--prefill", "stepwise")
    assert run.returncode == 0
    assert run.stderr.decode().splitlines()[1].endswith("(stepwise: one token at a time)")
    assert run.stdout == kvgen("generate", PROMPT, "-n", "3", "--greedy").stdout


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_a_stepwise_prefill_is_refused_where_it_means_nothing(command: str) -> None:
    run = inside(command, "--prefill", "stepwise")
    assert run.returncode == 2
    assert b"--prefill stepwise" in run.stderr and b"leave it out" in run.stderr


def test_no_new_tokens_is_a_prefill() -> None:
    run = inside("generate", PROMPT, "-n", "0")
    assert run.returncode == 0 and run.stdout == b""
    assert [line.split()[0] for line in run.stderr.decode().splitlines()] == [
        "load", "prefill", "cache", "sampled",
    ]  # fmt: skip


def test_an_empty_prompt_starts_from_the_start_token() -> None:
    run = inside("generate", "", "-n", "5", "-q")
    assert run.returncode == 0 and run.stdout


def test_an_empty_prompt_without_start_token_is_refused(storyteller_copy: Path) -> None:
    path = storyteller_copy / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"post_processor": None}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert_fails(inside("generate", "", "-m", str(storyteller_copy)), 2, "the prompt is empty")


def test_echo_puts_the_prompt_first() -> None:
    run = inside("generate", "é 月", "-n", "3", "--echo", "-q", "--greedy")
    assert run.stdout.decode().startswith("é 月")


def test_text_is_utf8_whatever_the_locale() -> None:
    run = kvgen("generate", "é 月", "-n", "3", "--echo", "-q", PYTHONIOENCODING="cp1252")
    assert run.returncode == 0 and run.stdout.decode().startswith("é 月")


def test_verbose_names_model_keys_and_chain() -> None:
    text = inside("generate", PROMPT, "-n", "2", "-v", "--top-k", "40").stderr.decode()
    assert (
        f"{LAST_LAYER + 1} layers, {LAST_HEAD + 1} heads on {SHAPE['num_key_value_heads']} "
        f"key/value heads of size {SHAPE['head_dim']}, width {SHAPE['hidden_size']}"
    ) in text
    assert "ignored keys of config.json: architectures" in text
    assert "sampling: top-k 40 > top-p 0.9 > temperature 0.7" in text


def test_verbose_names_bias_and_penalties() -> None:
    run = inside(
        "generate", PROMPT, "-n", "3", "-v", "--greedy", "--logit-bias", "7=false",
        "--logit-bias", "9=1.5", "--presence-penalty", "0.5", "--repeat-last-n", "64",
        "--ignore-eos",
    )  # fmt: skip
    assert (
        "sampling: logit bias 7=-inf 9=1.5 > ids that end a text banned > presence penalty 0.5 "
        "(last 64 tokens) > greedy\n"
    ) in run.stderr.decode()


def test_ignore_eos_goes_on_to_the_last_token() -> None:
    end = min(kvgen_package.load().stop_ids)
    base = ["generate", PROMPT, "-n", "5", "--greedy", "--json", "--logit-bias", f"{end}=1000"]
    ended, gone_on = (json.loads(inside(*base, *more).stdout) for more in ([], ["--ignore-eos"]))
    assert (ended["ids"], ended["finish_reason"]) == ([end], "stop")
    assert (len(gone_on["ids"]), gone_on["finish_reason"]) == (5, "length")
    assert end not in gone_on["ids"]


def test_inspect_attention_takes_bias_and_penalties_but_not_ignore_eos() -> None:
    base = ["inspect-attention", "The cat", "-n", "2", "--json", "-q", "--backend", "numpy"]
    shown = json.loads(inside(*base, "--logit-bias", "300=1000", "--frequency-penalty", "2").stdout)
    assert "logit bias 300=1000 > frequency penalty 2 > greedy" in json.dumps(shown)
    assert_fails(inside(*base, "--ignore-eos"), 2, "No such option '--ignore-eos'")


def test_a_window_without_a_penalty_is_pointed_out() -> None:
    base = ["generate", PROMPT, "-n", "2", "--repeat-last-n", "9"]
    note = "--repeat-last-n changes nothing without a penalty"
    assert note in inside(*base).stderr.decode()
    assert note not in inside(*base, "--presence-penalty", "1").stderr.decode()


def test_idle_filters_are_pointed_out() -> None:
    text = inside("generate", PROMPT, "-n", "2", "--greedy", "--top-p", ".5").stderr.decode()
    assert "--top-p changes nothing at temperature 0: the best token is taken" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PROMPT, "--top-p", "2"], "'--top-p': 2.0 is not in the range"),
        ([PROMPT, "--temperature", "-1"], "'--temperature'"),
        ([PROMPT, "--temperature", "nan"], "temperature is nan"),
        ([PROMPT, "--frequency-penalty", "inf"], "frequency-penalty is inf; it must"),
        ([PROMPT, "--presence-penalty", "1e7"], "presence-penalty is 10000000.0; it must lie betw"),
        ([PROMPT, "--repeat-last-n", "-2"], "'--repeat-last-n': -2 is not in the range"),
        ([PROMPT, "--logit-bias", "7"], "'7' is not ID=B, such as 262=1.5, 262=-inf or 262=false"),
        ([PROMPT, "--logit-bias", "cat=1"], "'cat=1' is not ID=B"),
        ([PROMPT, "--logit-bias", "7=true"], "'7=true' is not ID=B"),
        ([PROMPT, "--logit-bias", "7=nan"], "logit-bias of 7 is nan; it must lie between"),
        ([PROMPT, "--logit-bias", "-7=1"], "logit-bias is of -7; a token id is a whole number"),
        ([PROMPT, "--logit-bias", "9999999=1"], "token id 9999999 is outside the vocabulary"),
        ([PROMPT, "--logit-bias", "7=1", "--logit-bias", "7=2"], "token id 7 is given twice"),
        ([PROMPT, "--greedy", "--temp", "1"], "contradict each other"),
        ([PROMPT, "-n", "-1"], "'-n'"),
        ([PROMPT, "-n", "many"], "'many' is not a valid integer"),
        ([PROMPT, "-n", "1019"], "7 prompt tokens and 1019 new ones exceed the context of 1024"),
        ([PROMPT, "--bogus"], "No such option"),
        ([PROMPT, "--stop", ""], "a stop text must not be empty"),
        ([PROMPT, "--dtype", "int3"], "'int3' is not one of"),
        ([PROMPT, "-p", "again"], "give the prompt once"),
        (["-f", "nowhere.txt"], "nowhere.txt: cannot be read: No such file"),
        (["-f", "."], "cannot be read: Is a directory"),
    ],
)
def test_wrong_usage_is_told_in_one_line(arguments: list[str], message: str) -> None:
    assert_fails(inside("generate", *arguments), 2, message)


def test_a_missing_prompt_is_told_and_never_waited_for() -> None:
    assert_fails(kvgen("generate", stdin=None), 2, "no prompt")


def test_a_prompt_that_is_not_utf8_is_refused() -> None:
    assert_fails(kvgen("generate", stdin=b"\xff"), 2, "standard input: is not valid UTF-8")
    run = subprocess.run([*KVGEN, "generate", b"\xff"], capture_output=True, check=False)
    assert_fails(run, 2, "is not valid UTF-8")


# --- models -----------------------------------------------------------------------------------


def test_a_missing_model_has_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_fails(kvgen("generate", "hi", "-m", str(tmp_path / "no")), 3, "no such model folder")
    monkeypatch.setenv("KVGEN_MODEL", str(tmp_path / "no"))
    assert_fails(inside("generate", "hi"), 3, "no such model")


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1_000_000])


def _break_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",')


def _lose_tensor(folder: Path) -> None:
    _edit_tensors(folder, lambda tensors: tensors.pop("model.layers.3.mlp.up_proj.weight"))


def _add_tensor(folder: Path) -> None:
    _edit_tensors(folder, lambda tensors: tensors.update(extra=np.ones(3, np.float32)))


def _edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def _unknown_family(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "rwkv"}')


def _lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pointer, "a git-lfs pointer"),
        (_truncate, "is truncated (1,000,000 of"),
        (_break_json, "is not valid JSON"),
        (_lose_tensor, "`layers.3.mlp.up_proj.weight` is missing"),
        (_add_tensor, "tensor `extra` has no place"),
        (_unknown_family, "model_type 'rwkv' is not supported"),
        (_lose_tokenizer, "tokenizer.json is missing"),
        (_break_tokenizer, "is not a usable tokenizer"),
    ],
)
def test_a_damaged_model_is_told_in_one_line(
    damage: Callable[[Path], None], message: str, storyteller_copy: Path
) -> None:
    damage(storyteller_copy)
    assert_fails(inside("generate", "hi", "-m", str(storyteller_copy)), 4, message)


def test_a_poisoned_model_has_its_own_exit_code(storyteller_copy: Path) -> None:
    def poison(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"][3] = np.nan

    _edit_tensors(storyteller_copy, poison)
    for command in (["generate", "hi"], ["inspect-attention", "hi"], ["bench", "-p", "4", "-q"]):
        assert_fails(inside(*command, "-m", str(storyteller_copy)), 6, "not finite")


# --- bench and inspect-attention --------------------------------------------------------------


def test_bench_compares_both_arms() -> None:
    run = inside("bench", "--no-cache", "-p", "12", "-n", "4", "-r", "2", "--seed", "1")
    text = run.stdout.decode()
    assert run.returncode == 0, run.stderr
    assert "prompt: 12 random ids, seed 1 · medians of 2" in text
    for line in ("pp12 on", "tg4 @ d12 on", "tg4 @ d12 off"):
        assert line.replace(" ", "") in text.replace(" ", "")
    assert "\nverified: same tokens at 4 of 4 steps, logits differ by at most" in text
    words = " ".join(text.split())
    assert words.startswith("without the KV cache a token takes ")
    assert "of 12 kept rows in each of 7 layers a step needs every one of K and V" in words
    assert "84 of 84 visible rows matter" in words
    assert "0 of 84 rows matter; its own q does (7 of 7 layers)" in words
    details = inside(
        "bench", "--no-cache", "-p", "12", "-n", "4", "-r", "1", "--seed", "1", "--details"
    )
    words = " ".join(details.stdout.decode().split())
    assert "16 with the cache, 70 without" in words and "a kept row would be wrong" in words
    assert "what each step computed" in words and "91 scores" in words
    assert "time per token, logarithmic" in text
    n_totals = 3 * 2 * (LAST_LAYER + 1) * 4  # of K, V and old Q, by arm, layer and step
    assert f"rows of K, V and old Q read, as expected in {n_totals} totals" in text


def test_bench_runs_lists_and_other_arms() -> None:
    run = inside(
        "bench", "--no-cache", "--q-cache", "-p", "5,9", "-d", "3", "-n", "2", "-r", "1", "-s", "1",
        "--dtype", "f32,int8", "-o", "jsonl",
    )  # fmt: skip
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, run.stderr
    assert len(lines) == 2 * 2 * 4
    assert {(line["test"], line["cache"]) for line in lines[:4]} == {
        ("pp5 @ d3", "on"), ("tg2 @ d8", "on"), ("tg2 @ d8", "off"), ("tg2 @ d8", "on+q"),
    }  # fmt: skip
    assert {line["model_type"] for line in lines} == {"llama f32", "llama int8"}


def test_bench_leaves_the_cached_arm_out() -> None:
    run = inside(
        "bench", "--no-cache", "--no-baseline", "-p", "5", "-n", "2", "-r", "1", "-o", "md"
    )
    text = run.stdout.decode()
    assert "| off | tg2 @ d5 |" in text and "| on | tg2" not in text
    table = inside("bench", "--no-cache", "--no-baseline", "-p", "5", "-n", "2", "-r", "1")
    assert table.returncode == 0 and b"verified: same tokens at 2 of 2" in table.stdout


def test_bench_draws_a_figure_and_compares_reports(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{name}.json") for name in "ab"]
    for name in names:
        run = inside("bench", "-p", "5", "-n", "2", "-r", "2", "--out", name)
        assert run.returncode == 0, run.stderr
    run = inside("bench", "--compare", *names)
    assert run.returncode == 0 and run.stdout.count(b"the spread") == 2
    figure = tmp_path / "curve.svg"
    run = inside("bench", "-p", "5", "-n", "2", "-r", "1", "--plot", str(figure))
    if importlib.util.find_spec("matplotlib") is None:
        assert run.returncode == 2 and b"pip install 'kvgen[plot]'" in run.stderr
    else:
        assert run.returncode == 0 and figure.read_text().startswith("<?xml")


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_saved_recording_is_shown_without_a_model(kind: str, tmp_path: Path) -> None:
    file = str(tmp_path / f"saved.{kind}")
    prompt = ["inspect-attention", "The cat sat on the mat", "-n", "2", "--backend", "numpy"]
    assert inside(*prompt, "-o", file).returncode == 0
    for view in (
        [],
        ["-l", "2"],
        ["-l", "2", "-H", "3"],
        ["-l", "2", "-H", "3", "--explain", "last"],
    ):
        live, again = inside(*prompt, *view), inside("inspect-attention", file, *view, "-m", "none")
        assert again.returncode == 0, again.stderr
        # The last line is the verification: of what was recorded, and that was all layers.
        assert again.stdout.splitlines()[:-1] == live.stdout.splitlines()[:-1]
    assert_fails(
        inside("inspect-attention", file, "--probe"), 2, "a saved recording holds no model"
    )
    Path(file).write_bytes(b"broken")
    assert_fails(inside("inspect-attention", file), 1, "is no recording of attention")


def test_watching_needs_a_terminal_and_the_cache() -> None:
    assert_fails(inside("generate", "hi", "--watch", "2.3"), 2, "--watch draws on a terminal")
    assert_fails(inside("generate", "hi", "--watch", "2.3", "--no-cache"), 2, "leave out --json")


def test_a_head_is_watched_while_the_text_is_made() -> None:
    inner, outer = pty.openpty()
    command = [sys.executable, "-m", "kvgen", "generate", "Once upon a time", "-n", "6"]
    command += ["--greedy", "--backend", "numpy"]
    plain = subprocess.run(command, capture_output=True, check=True, timeout=120)
    run = subprocess.Popen(
        [*command, "--watch", "2.3"], stdout=outer, stderr=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
    )  # fmt: skip
    os.close(outer)
    shown = b""
    while True:
        try:
            part = os.read(inner, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    assert run.wait(timeout=60) == 0
    text = shown.decode()
    assert "q_4 is live" in text and "q_9 is live" in text
    assert "4 rows from the cache" not in text and "9 rows from the cache, 1 new" in text
    assert text.rstrip().endswith(plain.stdout.decode().strip())


def test_decode_steps_are_shown_one_after_another() -> None:
    prompt = ["inspect-attention", "The cat sat on", "--backend", "numpy", "-l", "2", "-H", "3"]
    for width in ("60", "100", "160"):
        run = inside(*prompt, "-n", "5", "--steps", "--width", width)
        lines = run.stdout.decode().splitlines()
        assert run.returncode == 0 and max(map(len, lines)) <= int(width)
    steps = [line for line in lines if " reads 0.." in line]
    assert [line.split()[0] for line in steps] == ["q_5", "q_6", "q_7", "q_8"]
    assert "prefill: 5 queries; k_0..4 and v_0..4 are kept" in lines[1]
    assert_fails(inside(*prompt, "--steps"), 2, "there are no decode steps")
    assert_fails(
        inside("inspect-attention", "The cat", "--steps"),
        2,
        "--steps shows the decode steps of one head",
    )


def test_an_inspection_is_written_as_text_json_and_figure(tmp_path: Path) -> None:
    prompt = ["inspect-attention", "The cat sat", "--backend", "numpy", "-l", "2", "-H", "3"]
    for kind in ("txt", "json", "svg"):
        run = inside(*prompt, "-o", str(tmp_path / f"map.{kind}"))
        if kind == "svg" and importlib.util.find_spec("matplotlib") is None:
            assert run.returncode == 2 and b"pip install 'kvgen[plot]'" in run.stderr
            continue
        assert run.returncode == 0 and run.stdout == b"", run.stderr
    assert (tmp_path / "map.txt").read_bytes() == inside(*prompt).stdout
    assert len(json.loads((tmp_path / "map.json").read_text())["maps"]) == 1


def test_verify_says_so_in_a_line_each() -> None:
    run = inside("verify", "--dtype", "f32,int8", "-p", "70")
    lines = run.stdout.decode().splitlines()
    assert run.returncode == 0 and len(lines) == 13
    assert all(": ok" in line for line in lines[:-1])
    assert lines[-1] == "verified: 12 checks over 70 positions agree"
    same = "token by token: the same bits with and without the cache"
    assert f"{same}: ok, all logits equal to the bit at 3 lengths" in lines[1]
    content = json.loads(inside("verify", "-p", "20", "--json").stdout)
    assert content["passed"] and len(content["checks"]) == 6
    (bits,) = [check for check in content["checks"] if check["check"] == same]
    assert bits["different_bits"] == 0 and bits["positions"] == 3
    assert {check["different_bits"] for check in content["checks"]} == {0, None}


def test_an_interrupted_bench_prints_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter(range(2))

    def calibrate(_: Engine) -> Calibration:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return Calibration(
            read_bytes_per_second=1e10, flops_per_second=1e11, attention_flops_per_second=1e10
        )

    monkeypatch.setattr("kvgen.bench.run.calibrate_with_overhead", calibrate)
    run = inside("bench", "--no-cache", "-p", "12", "-n", "2", "-r", "5", "--seed", "1")
    text = " ".join(run.stdout.decode().split())
    assert run.returncode == 130
    assert "interrupted: this is what had been measured by then" in text
    assert "seed 1 · medians of 2" in text


def test_bench_as_json_and_file(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    run = inside("bench", "The cat sat", "-n", "3", "-r", "1", "-o", "json", "--out", str(file))
    content = json.loads(run.stdout)
    assert content == json.loads(file.read_text())
    assert [result["test"] for result in content["results"]] == ["pp4", "tg3"]
    assert content["verification"] is None and content["environment"]["kvgen"]
    assert len(content["model_hash"]) == 16 and content["environment"]["load_average"] >= 0
    assert oct(file.stat().st_mode)[-3:] != "600"


def test_bench_without_a_length_reads_the_shipped_text() -> None:
    run = inside("bench", "-n", "2", "-r", "1")
    assert "512 tokens of the text that ships with the benchmark" in run.stdout.decode()


def test_bench_fits_a_small_context_and_needs_no_tokenizer(
    tiny_folder: Callable[..., Path],
) -> None:
    run = inside("bench", "-m", str(tiny_folder("gpt2")), "-r", "1", "-o", "json")
    content = json.loads(run.stdout)
    assert [result["test"] for result in content["results"]] == ["pp205", "tg51"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "0"], "'-p' / '--n-prompt': 0 is not in the range"),
        (["-p", "1000", "-n", "100"], "exceed the context of 1024"),
        (["some text", "-p", "5"], "leave them out, or leave out the text"),
        (["--out", "no/such/folder.json"], "there is no folder no/such"),
        (["--out", "."], ".: is a folder: name a file"),
        (["-n", "0", "--no-cache"], "--no-cache compares decode steps"),
        (["--no-baseline"], "--no-baseline leaves out the cached arm"),
        (["-p", "5,x"], "'x' is not a valid integer"),
        (["-d", "5", "a text"], "leave them out, or leave out the text"),
        (["--no-cache", "--prefill", "fast"], "--prefill fast rounds activations"),
        (["-l", "1"], "give both -l LAYER and -H HEAD"),
        (["-p", "5", "-l", "9", "-H", "0"], f"layer 9: this model has layers 0-{LAST_LAYER}"),
        (["--out", "report.txt"], "the file's name must end in .html, .json, .jsonl, .csv, .md"),
        (["--plot", "curve.gif"], "the file's name must end in .png, .svg, .pdf"),
        (["--no-cache", "-p", "900", "-n", "100", "--limit", "1"], "more than --limit 1"),
        (["--compare", "no.json", "other.json"], "no.json: No such file"),
        (["--compare", "README.md", "README.md"], "README.md: this is not JSON"),
        (["--compare", "a", "b", "-o", "c.html", "--open"], "leave out -o c.html"),
        (["--compare", "a", "b", "--plot", "c.png"], "leave out --plot"),
    ],
)
def test_a_benchmark_that_cannot_be_run_is_refused(arguments: list[str], message: str) -> None:
    assert_fails(inside("bench", *arguments), 2, message)


def test_inspection_gets_closer_index_by_index() -> None:
    base = ["inspect-attention", "The cat sat on the mat", "-n", "3"]
    summary = inside(*base).stdout.decode()
    best = re.search(r"strongest \(layer.head\): previous (\d+).(\d+) (?:0.[5-9]|1.00)", summary)
    assert best is not None
    layer, head, row = (
        inside(*base, "-l", best[1], *rest).stdout.decode()
        for rest in ([], ["-H", best[2]], ["-H", best[2], "--explain", "last"])
    )
    share = SHAPE["num_attention_heads"] // SHAPE["num_key_value_heads"]
    assert f"{best[1]}.{best[2]} previous" in layer and f"kv {int(best[2]) // share}" in layer
    assert "10 tokens (8 prompt + 2 decode)" in head and head.count("◂") == 3
    assert "5) share" in row and "q_9 is not kept" in row
    for text in (summary, layer, head, row):
        assert "verified: |recomputed - kernel| <= " in text
        assert "|decode rows - one full pass| <= " in text


def test_the_head_that_writes_most_is_explained_unless_another_is_named() -> None:
    base = ["inspect-attention", "The cat sat on the mat"]
    chosen = inside(*base, "--explain").stdout.decode()
    assert "the head that writes most for this query" in chosen and " · query 7 at · " in chosen
    place = re.match(r"layer (\d+) head (\d+) ", chosen)
    assert place is not None
    named = inside(*base, "--at", f"L{place[1]}H{place[2]}", "--explain", "last").stdout.decode()
    assert named == chosen.replace(chosen.splitlines()[1] + "\n", "").replace(
        chosen.splitlines()[-1], named.splitlines()[-1]
    )
    of_layer = inside(*base, "-l", "4", "--explain").stdout.decode()
    assert of_layer.startswith("layer 4 head ")


def test_maps_can_be_saved(tmp_path: Path) -> None:
    file = tmp_path / "maps.npz"
    run = inside(
        "inspect-attention", "The cat", "-n", "4", "-l", "1,3", "-H", "0-2", "-o", str(file)
    )
    assert run.returncode == 0 and run.stdout == b""
    with np.load(file, allow_pickle=False) as archive:
        assert archive["weights"].shape == (2, 3, 6, 6)
        np.testing.assert_allclose(archive["weights"].sum(axis=-1), 1, atol=1e-5)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-l", "80"], f"layer 80: this model has layers 0-{LAST_LAYER}"),
        (["-l", "-90"], f"layer -90: this model has layers 0-{LAST_LAYER}"),
        (["-l", "3-1"], "layer range 3-1 runs backwards: write 1-3"),
        (["-l", "-1-3"], "layer '-1-3' is not a number, a range like 0-3, or all"),
        (["-l", ""], "layer '' is not a number"),
        (["-l", "9" * 5000], "is not a number, a range"),
        (
            ["-l", "1", "-H", "1", "--explain", "last", "-o", "x.npz"],
            "--explain draws text: leave it",
        ),
        (
            ["-l", "1", "--show", "cos", "-o", "x.npz"],
            "a file of arrays holds the maps as they are: leave out --show",
        ),
        (["--what-if", "kq", "--show", "cos"], "--what-if draws maps of its own: leave out --show"),
        (["-l", "one"], "layer 'one' is not a number, a range like 0-3, or all"),
        (["-l", "1", "-H", "80"], f"head 80: this model has heads 0-{LAST_HEAD}"),
        (["-H", "1"], "-H names a head of a layer: add -l LAYER"),
        (["--at", "5,1"], "'5,1' is not an address: write a layer as 5, a head as 5.1 or L5H1"),
        (["--at", "2.90"], f"head 90: this model has heads 0-{LAST_HEAD}"),
        (["--at", "L2H3", "-l", "1"], "--at takes the place of -l and -H: leave out -l"),
        (["--show", "cos"], "--show applies to a map: add -l LAYER"),
        (["--queries", "0:2"], "--queries applies to a map: add -l LAYER"),
        (["--show", "rollout", "-H", "1", "-l", "2"], "it cannot be used with -H"),
        (
            ["-l", "2", "--metric", "sink"],
            "--metric applies to the summary of all layers: leave out -l",
        ),
        (["--metric", "warmth"], "'warmth' is not one of 'sink'"),
        (["-l", "2", "--keys", "a:b"], "'a:b' is not like 200:"),
        (["-l", "2", "--keys", "7:"], "--keys: this run has tokens 0-2, choose some of them"),
        (["-l", "2", "--range", "0"], "0.0 is not in the range x>0"),
        (["--ablate-all", "-n", "3"], "--ablate-all compares runs of the prompt: leave out -n"),
        (["-l", "1", "-H", "1", "--explain", "3"], "query 3: this run has queries 0-2"),
        (["-o", "maps.csv"], "must end in .npz, .safetensors, .html, .json"),
        (["-o", "no/folder/maps.npz"], "there is no folder no/folder"),
    ],
)
def test_an_inspection_out_of_range_names_the_range(arguments: list[str], message: str) -> None:
    assert_fails(inside("inspect-attention", "The cat", *arguments), 2, message)


def test_indices_may_count_from_the_end_or_name_all() -> None:
    base = ["inspect-attention", "The cat", "--width", "200"]
    last = inside(*base, "-l", "-1", "-H", "-1").stdout.decode()
    assert f"layer {LAST_LAYER} head {LAST_HEAD}" in last
    before = inside(*base, "-l", "-2", "-H", "-3").stdout.decode()
    assert f"layer {LAST_LAYER - 1} head {LAST_HEAD - 2}" in before
    everything = inside(*base, "-l", "all").stdout.decode()
    headings = [f"layer {layer} · {LAST_HEAD + 1} heads" for layer in range(LAST_LAYER + 1)]
    assert all(heading in everything for heading in headings)


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    base = ["inspect-attention", "The cat", "-l", "1", "-H", "1"]
    assert b"\x1b[" not in inside(*base).stdout
    with monkeypatch.context() as environment:
        environment.setenv("FORCE_COLOR", "1")
        assert b"\x1b[" not in inside(*base, "--color", "never").stdout
    monkeypatch.setenv("NO_COLOR", "1")
    colored = inside(*base, "--color", "always").stdout
    assert b"48;2;253;231;37m" in colored or b"48;5;" in colored


@pytest.mark.parametrize("encoding", ["cp1252", "koi8-r", "cp437", "latin-1", "ascii"])
def test_views_survive_any_code_page(encoding: str) -> None:
    for rest in ([], ["-l", "2", "-H", "1"], ["-l", "2", "-H", "1", "--explain", "last"]):
        run = inside("inspect-attention", "hi é 月", *rest, encoding=encoding)
        assert run.returncode == 0 and run.stdout, run.stderr


def test_a_formula_stays_one_in_ascii() -> None:
    run = inside("inspect-attention", "hi", "-l", "2", "-H", "1", "--explain", "last", "--ascii")
    assert b"softmax_j(q_2.k_j * scale)" in run.stdout and b"1) q.k_j" in run.stdout


def test_a_user_without_a_home_can_run() -> None:
    # That kernels run which are kept nowhere is a test of tests/test_kernel_cache.py.
    script = (
        "import os, sys\n"
        "os.path.expanduser = lambda path: path\n"
        "from kvgen.cli import run\n"
        "from kvgen.engine.fast import kernel_folder\n"
        "assert kernel_folder.FOLDER is None\n"
        "flags = ['-n', '2', '-q', '--greedy', '--backend', 'numpy']\n"
        f"sys.exit(run(['generate', {PROMPT!r}, *flags]))\n"
    )
    chosen = ("XDG", "KVGEN_CACHE_DIR")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(chosen)}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=environment, check=False
    )
    assert (run.returncode, run.stderr) == (0, b"")


def test_an_existing_file_keeps_its_rights(tmp_path: Path) -> None:
    file = tmp_path / "maps.npz"
    file.touch(mode=0o600)
    assert inside("inspect-attention", "hi", "-o", str(file)).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_closed_stderr_does_not_cost_the_text() -> None:
    process = subprocess.Popen(
        [*KVGEN, "generate", PROMPT, "-n", "5", "--greedy", "--top-k", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stderr.close()
    text = process.stdout.read()
    process.stdout.close()
    assert (process.wait(timeout=60), bool(text)) == (0, True)


def test_ascii_where_the_stream_holds_nothing_else() -> None:
    base = ["inspect-attention", "The cat", "-l", "2"]
    assert inside(*base, "--ascii").stdout.isascii()
    assert kvgen(*base, PYTHONIOENCODING="cp1252").stdout.isascii()


# --- streams and signals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [["generate", PROMPT, "-n", "300"], ["inspect-attention", PROMPT], ["--help"]],
    ids=lambda command: command[0],
)
def test_a_closed_pipe_ends_the_run_silently(command: list[str]) -> None:
    process = subprocess.Popen(
        [*KVGEN, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), message) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["generate", PROMPT, "-n", "5"], ["inspect-attention", "a"]])
def test_a_full_disk_is_told(command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(
            [*KVGEN, *command], stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr == b"kvgen: cannot write the output: No space left on device\n"


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_an_interrupted_run_keeps_its_text(
    sent: signal.Signals, code: int, flags: list[str]
) -> None:
    process = subprocess.Popen(
        [*KVGEN, "generate", PROMPT, "-n", "1000", "--greedy", "--no-cache", "-v", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    if not flags:
        process.stdout.read(20)
    else:  # nothing is printed before the end, but for the notes before the first token
        while not process.stderr.readline().startswith(b"sampling: ") and process.poll() is None:
            pass
        time.sleep(1)
    process.send_signal(sent)
    rest, message = process.communicate(timeout=60)
    assert process.returncode == code, message
    assert b"Traceback" not in message
    if flags:
        content = json.loads(rest)
        assert content["finish_reason"] == "interrupted" and content["text"]
    else:
        assert message.decode().splitlines()[-1] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_while_kernels_compile_is_not_lost(
    sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [*KVGEN, "generate", PROMPT, "-n", "5", "-q"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env=os.environ | {"KVGEN_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    while not list(tmp_path.glob("kernels/*")) and process.poll() is None:
        time.sleep(0.05)  # the folder is made right before the kernels are compiled
    time.sleep(0.5)
    process.send_signal(sent)
    text, message = process.communicate(timeout=60)
    assert (process.returncode, text) == (code, b"")
    assert message.count(b"\n") == 1 and b"Traceback" not in message


def test_nothing_loads_before_ctrl_c_is_caught() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(kvgen_package.__file__).parents[1])!r}); "
        "import importlib; before = set(sys.modules); import kvgen.__main__; "
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-S", "-c", program]
    run = subprocess.run(command, capture_output=True, check=True)
    assert run.stdout.split() == [b"__future__", b"kvgen", b"kvgen.__main__"], run.stdout


def test_on_a_terminal_the_text_ends_with_a_line_end() -> None:
    controller, terminal = pty.openpty()
    try:
        subprocess.run(
            [*KVGEN, "generate", PROMPT, "-n", "3", "-q", "--greedy"],
            stdout=terminal, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        assert os.read(controller, 1000).endswith(b"\n")
    finally:
        os.close(controller)
        os.close(terminal)


def test_an_unexpected_failure_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvgen import cli as command_line

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug\nof ours")

    monkeypatch.setattr(COMMANDS["generate"], "callback", fail)
    lines: list[str] = []
    monkeypatch.setattr(command_line.click, "echo", lambda text, **_: lines.append(text))
    assert command_line.run(["generate", "hi"]) == 1
    assert lines == [
        "kvgen: internal error: RuntimeError: a bug of ours; please report it "
        "(KVGEN_DEBUG=1 shows where)"
    ]


# --- help -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["generate"], ["bench"], ["inspect-attention"]])
def test_help_has_examples(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0 and "Examples:" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_no_command_prints_the_help_and_fails() -> None:
    run = inside()
    assert run.returncode == 2 and b"Commands:" in run.stderr


def test_the_version_is_told() -> None:
    version = kvgen_package.__version__
    assert kvgen("--version").stdout.decode() == f"kvgen, version {version}\n"


def test_tiny_configurations_are_all_runnable(tiny_folder: Callable[..., Path]) -> None:
    for name in CONFIGS:
        run = inside("bench", "-m", str(tiny_folder(name)), "-p", "5", "-n", "2", "-r", "1")
        assert run.returncode == 0, run.stderr
