"""`kvgen score`: log-probabilities by hand, and the command's output and errors."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import kvgen
from kvgen import scoring
from kvgen.errors import UsageError
from kvgen.loading import default_model
from kvgen.model import Model
from kvgen.render.score import ScoredModel, ScoredText, compared_view, score_view
from kvgen.scoring import Score, Sizes, positions_run, score, scores, sizes_for
from tests import tiny
from tests.command import assert_fails, inside
from tests.conftest import BACKENDS, Loader

IDS = tiny.make_ids(50)
TEXT = "Once upon a time there was a girl. She had a café, and = 1 + 1 was 2."
# Windows cut elsewhere add up float32 numbers in another order.
ROUNDING = 2e-4


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """By its formula, in float64."""
    exponentials = np.exp(logits.astype(np.float64))
    return np.log(exponentials / exponentials.sum(axis=1, keepdims=True))


def by_hand(model: Model, ids: list[int], window: int, stride: int) -> np.ndarray:
    """For each token the logits of the first window that reaches it, in one full pass."""
    expected = []
    for token in range(1, len(ids)):
        begin = 0
        while token > begin + window:
            begin += stride
        part = ids[begin : min(begin + window, len(ids) - 1)]
        row = log_softmax(model.logits(part, cache=False))[token - 1 - begin]
        expected.append(row[ids[token]])
    return np.array(expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "mistral", "llama_dynamic"])
@pytest.mark.parametrize(
    ("window", "stride"), [(64, 32), (49, 1), (16, 8), (16, 16), (7, 3), (1, 1)]
)
def test_a_token_is_scored_by_the_first_window_that_reaches_it(
    name: str, backend: str, window: int, stride: int, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend)
    got = model.score(IDS, window=window, stride=stride)
    assert got.shape == (49,) and got.dtype == np.float64
    np.testing.assert_allclose(got, by_hand(model, IDS, window, stride), atol=ROUNDING)


def test_totals_are_sums_over_windows_without_overlap(tiny_model: Loader) -> None:
    model, window, nats = tiny_model("llama_gqa", backend="numpy"), 16, 0.0
    for begin in range(0, len(IDS) - 1, window):
        targets = IDS[begin + 1 : begin + window + 1]
        logits = model.logits(IDS[begin : begin + len(targets)], cache=False).astype(np.float64)
        nats += (np.log(np.exp(logits).sum(-1)) - logits[range(len(targets)), targets]).sum()
    (total,) = scores([model.engine], IDS, Sizes(window, window))
    assert total.nats == pytest.approx(nats, abs=1e-3)
    assert total.nats_per_token == pytest.approx(nats / 49, abs=1e-5)
    assert total.perplexity == pytest.approx(np.exp(nats / 49), rel=1e-5)
    assert total.bits_per_byte(300) == pytest.approx(nats / np.log(2) / 300, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "window", "stride"), [(2, 1, 1), (100, 9, 4), (100, 10, 10), (9, 8, 1)]
)
def test_each_token_is_predicted_once_with_enough_before_it(
    n: int, window: int, stride: int
) -> None:
    windows = list(Sizes(window, stride).windows(n))
    assert [token for each in windows for token in range(each.first, each.end + 1)] == [
        *range(1, n)
    ]
    for number, each in enumerate(windows):
        assert each.begin == number * stride and each.end - each.begin <= window
        assert not number or each.first - each.begin >= window - stride + 1


def test_logits_are_never_in_memory_together(
    tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama_gqa", backend="numpy")
    expected = score(model.engine, IDS, window=32, stride=16)
    forward, most = model.engine.forward, []

    def watched(*args: object, **options: object) -> np.ndarray:
        logits = forward(*args, **options)  # type: ignore[arg-type]
        most.append(1 if logits.ndim == 1 else len(logits))
        return logits

    monkeypatch.setattr(model.engine, "forward", watched, raising=False)
    monkeypatch.setattr(scoring, "rows_at_once", lambda _: 3)
    got = score(model.engine, IDS, window=32, stride=16)
    assert max(most) == 3
    np.testing.assert_allclose(got, expected, atol=ROUNDING)


@pytest.mark.parametrize("backend", BACKENDS)
def test_types_are_compared_by_divergence_and_choice(
    backend: str, tiny_folder: Callable[..., Path]
) -> None:
    models = [
        kvgen.load(tiny_folder("llama_gqa"), backend=backend, dtype=dtype)
        for dtype in ("int8", "f32")
    ]
    logs = [log_softmax(model.logits(IDS[:-1], cache=False)) for model in models]
    heard: list[int] = []
    got = scores(
        [model.engine for model in models],
        IDS,
        Sizes(64, 32),
        reference=1,
        on_progress=heard.append,
    )
    kl = (np.exp(logs[1]) * (logs[1] - logs[0])).sum(axis=1).mean()
    same = (logs[0].argmax(axis=1) == logs[1].argmax(axis=1)).mean()
    assert got[0].mean_kl == pytest.approx(kl, rel=0.02) and kl > 0
    assert got[0].same_choice == pytest.approx(same, abs=0.021)  # one near-tie may fall elsewhere
    assert got[1].mean_kl == 0 and got[1].same_choice == 1
    assert sum(heard) == 2 * positions_run(len(IDS), Sizes(64, 32)) == 98


def test_sizes_that_do_not_fit_are_refused(tiny_model: Loader) -> None:
    model = tiny_model("llama_gqa", backend="numpy")
    context = model.config.max_context
    assert sizes_for(model.config) == (min(1024, context), min(1024, context) // 2)
    assert sizes_for(model.config, window=1) == (1, 1)
    for window, stride, message in (
        (context + 1, None, f"give 1 to {context}"),
        (0, None, "does not fit"),
        (8, 9, "a stride of 9 does not fit a window of 8: give 1 to 8"),
        (8, 0, "give 1 to 8"),
    ):
        with pytest.raises(UsageError, match=message):
            sizes_for(model.config, window=window, stride=stride)
    for ids, message in (([], "no tokens"), ([3], "one token"), ([3, 999], "outside")):
        with pytest.raises(UsageError, match=message):
            score(model.engine, ids)


def test_a_perplexity_beyond_every_float_is_infinite_and_said_in_words() -> None:
    score = Score(log_probabilities=np.array([-1e6]), mean_kl=0.0, same_choice=1.0)
    assert np.isinf(score.perplexity)
    assert "perplexity      above 1e304" in drawn(view_of(score), 80)


# --- views ----------------------------------------------------------------------------------------


def view_of(score: Score) -> object:
    what = ScoredText(model="tiny", engine="numpy", n_tokens=2, n_bytes=4, sizes=Sizes(8, 4))
    return score_view(what, scored(score))


def scored(score: Score, dtype: str = "f32") -> ScoredModel:
    return ScoredModel(
        score=score, name=dtype, dtype=dtype, cache_dtype="f32", weight_bytes=3 * 2**19
    )


def drawn(view: object, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(view)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


@pytest.mark.parametrize("width", [80, 120])
def test_the_view_of_one_model(width: int) -> None:
    score = Score(log_probabilities=np.array([-2.0]), mean_kl=0.0, same_choice=1.0)
    assert drawn(view_of(score), width) == (
        "tiny: f32 weights, f32 cache, numpy\n"
        "4 bytes, 2 tokens, all but the first scored; windows of 8, stride 4\n"
        "nats per token  2.0000\n"
        "perplexity      7.3891\n"
        "bits per byte   0.7213\n"
    )


def test_the_table_of_types_at_80_columns_and_in_parts_where_it_does_not_fit() -> None:
    what = ScoredText(model="tiny", engine="numpy", n_tokens=2, n_bytes=4, sizes=Sizes(8, 4))
    one, other = (
        Score(log_probabilities=np.array([nats]), mean_kl=kl, same_choice=0.5)
        for nats, kl in ((-2.0, 0.0), (-2.5, 0.0125))
    )
    view = compared_view(what, [scored(one), scored(other, "int8")], reference=0)
    text = drawn(view, 80)
    assert text == drawn(view, 120).replace("per token; same choice", "per token;\nsame choice")
    assert text.splitlines()[3:6] == [
        "dtype  cache  nats/token  perplexity  bits/byte   mean KL  same choice  weights",
        "f32    f32        2.0000      7.3891     0.7213         -            -  1.5 MiB",
        "int8   f32        2.5000     12.1825     0.9017  1.25e-02       50.00%  1.5 MiB",
    ]
    narrow = drawn(view, 50)
    assert len(re.findall("dtype +cache", narrow)) == 2 and max(map(len, narrow.splitlines())) <= 50


def test_a_hostile_name_of_a_model_is_written_out() -> None:
    score = Score(log_probabilities=np.array([-2.0]), mean_kl=0.0, same_choice=1.0)
    what = ScoredText(
        model="x\x1b]0;owned\x07[red]", engine="numpy", n_tokens=2, n_bytes=4, sizes=Sizes(8, 4)
    )
    for view in (
        score_view(what, scored(score)),
        compared_view(what, [scored(score), scored(score, "bf16")], reference=0),
    ):
        text = drawn(view, 80)
        assert "\x1b" not in text and text.startswith("x\\x1b]0;owned\\x07[red]: ")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def story(tmp_path: Path) -> str:
    path = tmp_path / "story.txt"
    path.write_text(TEXT + "\n", encoding="utf-8")  # the final line end is dropped
    return str(path)


@pytest.fixture(scope="module")
def model() -> Model:
    return kvgen.load(backend="numpy")


def test_the_json_holds_totals_and_tokens(story: str, model: Model) -> None:
    run = inside("score", story, "--backend", "numpy", "--window", "8", "--stride", "4", "--json")
    content = json.loads(run.stdout)
    ids = model.encode(TEXT)
    expected = by_hand(model, ids, 8, 4)
    tokens = content.pop("tokens")
    assert [each["position"] for each in tokens] == [*range(1, len(ids))]
    assert [each["id"] for each in tokens] == ids[1:]
    assert "".join(each["text"] for each in tokens[:6]) in TEXT
    np.testing.assert_allclose([each["logprob"] for each in tokens], expected, atol=ROUNDING)
    assert content == {
        "model": "storyteller", "backend": "numpy", "prefill": "exact", "window": 8, "stride": 4,
        "bytes": len(TEXT.encode()), "tokens_scored": len(ids) - 1, "dtype": "bf16",
        "cache_dtype": "f32", "weight_bytes": model.weight_bytes,
        "nats": pytest.approx(-expected.sum(), abs=1e-2),
        "nats_per_token": pytest.approx(-expected.mean(), abs=ROUNDING),
        "perplexity": pytest.approx(np.exp(-expected.mean()), rel=1e-3),
        "bits_per_byte": pytest.approx(
            -expected.sum() / np.log(2) / len(TEXT.encode()), rel=1e-3
        ),
    }  # fmt: skip


def test_the_csv_has_a_row_for_each_token_and_no_formula(story: str, model: Model) -> None:
    run = inside("score", story, "--backend", "numpy", "--csv")
    rows = list(csv.DictReader(io.StringIO(run.stdout.decode())))
    ids = model.encode(TEXT)
    assert [int(row["id"]) for row in rows] == ids[1:]
    assert all(row["text"].startswith('"') for row in rows)
    assert json.loads(rows[0]["text"]) == model.token_bytes(ids[1]).decode()
    got = [float(row["logprob"]) for row in rows]
    np.testing.assert_allclose(got, score(model.engine, model.encode(TEXT)), atol=ROUNDING)
    assert b"nats per token, perplexity " in run.stderr
    assert inside("score", story, "--backend", "numpy", "--csv", "-q").stderr == b""


def test_types_are_compared_in_a_table_in_json_and_in_csv(story: str) -> None:
    command = ["score", story, "--backend", "numpy", "--compare-dtypes", "int8,f32"]
    lines = inside(*command).stdout.decode().splitlines()
    table = [re.split(" +", line.strip()) for line in lines if line[:4] in ("int8", "f32 ")]
    content = json.loads(inside(*command, "--json").stdout)
    assert content["reference"] == "f32"
    int8, f32 = content["dtypes"]
    assert int8["mean_kl"] > 0 and f32["mean_kl"] == 0 and f32["same_choice"] == 1
    assert int8["weight_bytes"] < f32["weight_bytes"]
    assert table == [
        ["int8", "f32", f"{int8['nats_per_token']:.4f}", f"{int8['perplexity']:.4f}",
         f"{int8['bits_per_byte']:.4f}", f"{int8['mean_kl']:.2e}", f"{int8['same_choice']:.2%}",
         f"{int8['weight_bytes'] / 2**20:.1f}", "MiB"],
        ["f32", "f32", f"{f32['nats_per_token']:.4f}", f"{f32['perplexity']:.4f}",
         f"{f32['bits_per_byte']:.4f}", "-", "-", f"{f32['weight_bytes'] / 2**20:.1f}", "MiB"],
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(inside(*command, "--csv", "-q").stdout.decode())))
    first = content["tokens"][0]["logprobs"]
    assert float(rows[0]["logprob_int8"]) == pytest.approx(first["int8"])
    assert float(rows[0]["logprob_f32"]) == pytest.approx(first["f32"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_types_of_the_cache_are_compared(backend: str, story: str) -> None:
    command = ["score", story, "--backend", backend, "--compare-dtypes", "f32,f32+f16,f32+int8"]
    content = json.loads(inside(*command, "--json").stdout)
    assert content["reference"] == "f32"
    assert [row["cache_dtype"] for row in content["dtypes"]] == ["f32", "f16", "int8"]
    assert {row["dtype"] for row in content["dtypes"]} == {"f32"}
    f32, f16, int8 = (row["mean_kl"] for row in content["dtypes"])
    assert 0 == f32 < f16 < int8 < 1e-2
    assert set(content["tokens"][0]["logprobs"]) == {"f32", "f32+f16", "f32+int8"}
    assert b"logprob_f32+int8" in inside(*command, "--csv", "-q").stdout


def test_the_model_card_says_what_the_command_prints() -> None:
    root = Path(__file__).parents[1]
    card = (root / "weights" / "README.md").read_text(encoding="utf-8")
    text, dtypes = "kvgen/bench/text.txt", "f32,bf16,f16,int8"
    assert f"`kvgen score {text} --compare-dtypes {dtypes}`" in card
    run = inside("score", str(root / text), "--compare-dtypes", dtypes, "--json")
    rows = json.loads(run.stdout)["dtypes"]
    lines = [line.strip("| ").split(" | ") for line in card.splitlines()]
    written = {cells[0]: cells[1:5] for cells in lines if len(cells) == 8 and cells[0] != "dtype"}
    assert list(written) == [row["dtype"] for row in rows]
    for row in rows:
        cache, *numbers = written[row["dtype"]]
        printed = [row["nats_per_token"], row["perplexity"], row["bits_per_byte"]]
        assert cache == row["cache_dtype"]
        # The last digit may differ where another CPU adds up in another order.
        assert [float(number) for number in numbers] == pytest.approx(printed, rel=1e-4)


def test_a_rounded_prefill_is_named(story: str) -> None:
    run = inside("score", story, "--prefill", "fast", "--backend", "numba")
    assert run.returncode == 0, run.stderr
    assert b"numba, fast prefill" in run.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "2000"], "a window of 2000 tokens does not fit: give 1 to 1024"),
        (["--window", "8", "--stride", "9"], "a stride of 9 does not fit a window of 8"),
        (["--json", "--csv"], "give one of them"),
        (["--compare-dtypes", "f32"], "takes two types or more"),
        (["--compare-dtypes", "f32,bf16", "--dtype", "f32"], "leave out --dtype"),
        (["--compare-dtypes", "f32,int9"], "Did you mean 'int8'?"),
        (["--compare-dtypes", "f32,f32+int9"], "Did you mean 'int8'?"),
        (["--compare-dtypes", "f32,f32+bf16"], "'bf16' is not one of"),
    ],
)
def test_options_that_do_not_fit_are_told_in_one_line(
    options: list[str], message: str, story: str
) -> None:
    assert_fails(inside("score", story, "--backend", "numpy", *options), 2, message)


def test_a_text_that_cannot_be_scored_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    assert_fails(inside("score", str(path)), 2, "cannot be read")
    for content, message in ((b"", "the text is empty"), (b"\n", "is empty"), (b"\xff", "UTF-8")):
        path.write_bytes(content)
        assert_fails(inside("score", str(path)), 2, message)


def copied(folder: Path) -> Path:
    """The default model's files, to be damaged."""
    folder.mkdir()
    for file in default_model().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_one_token_without_a_start_token_cannot_be_scored(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"post_processor": None}
    path.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "text.txt").write_text("a", encoding="utf-8")
    run = inside("score", str(tmp_path / "text.txt"), "-m", str(folder), "--backend", "numpy")
    assert_fails(run, 2, "the text has one token")


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_that_are_not_finite_have_their_own_exit_code(
    backend: str, story: str, tmp_path: Path
) -> None:
    folder = copied(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    options = ["-m", str(folder), "--backend", backend]
    for more in ([], ["--json"], ["--csv"], ["--compare-dtypes", "f32,bf16"]):
        assert_fails(inside("score", story, *options, *more), 6, "not finite")
