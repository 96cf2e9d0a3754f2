"""The prompt cache: a file of keys and values that a later run with the same beginning reuses."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import kvgen
from kvgen import prompt_cache
from kvgen.checkpoint.identity import model_identity
from kvgen.engine.trace import Capture
from kvgen.errors import CheckpointError, KvgenError, UsageError
from kvgen.model import Model
from kvgen.session import Session, shared_prefix
from tests import tiny
from tests.command import assert_fails, inside
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader
from tests.test_golden import TOLERANCE

IDS = tiny.make_ids(40, seed=5)
FIRST = IDS[:29]  # longer than the windows of the tiny models
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def generated(model: Model, ids: list[int], session: Session, n_new: int = 8) -> list[int]:
    pieces = model.generate(ids, max_new_tokens=n_new, temperature=0, session=session)
    return [piece.token for piece in pieces]


def saved(model: Model, path: Path, ids: list[int] = FIRST, n_new: int = 4) -> list[int]:
    """Write the file of a run, and give the ids in it."""
    session = Session(model.engine, len(ids) + n_new)
    generated(model, ids, session, n_new)
    prompt_cache.save(path, model, session)
    return list(session.ids)


def changed(path: Path, arrays: dict[str, object] | None = None, **facts: str) -> None:
    """Write the file again with other arrays or metadata."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file(load_file(path) | (arrays or {}), path, metadata | facts)


@every_backend
@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_goes_on_as_without_the_file(
    name: str, backend: str, tiny_model: Loader, tmp_path: Path
) -> None:
    model, file = tiny_model(name, backend=backend), tmp_path / "file"
    kept = saved(model, file)
    prompt = [*FIRST, *IDS[29:]]
    n_shared = shared_prefix(kept, prompt)
    whole, reusing = (Session(model.engine, 50) for _ in range(2))
    assert prompt_cache.load(file, model, reusing, prompt) == kept
    np.testing.assert_array_equal(reusing.ids, prompt[:n_shared])
    reusing.rewind_to_prompt(prompt)
    logits = reusing.feed(prompt[n_shared:])
    np.testing.assert_allclose(logits, whole.feed(prompt), rtol=0, atol=TOLERANCE)
    prompt_cache.load(file, model, reusing, prompt)
    assert generated(model, prompt, reusing) == generated(model, prompt, whole)


@pytest.mark.parametrize("cache_dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_stepwise_runs_agree_to_the_bit(
    backend: str, cache_dtype: str, tiny_model: Loader, tmp_path: Path
) -> None:
    model = tiny_model("llama_gqa", backend=backend, cache_dtype=cache_dtype, prefill="stepwise")
    file, reusing, whole = tmp_path / "file", Session(model.engine, 50), Session(model.engine, 50)
    prompt = [*saved(model, file), 7, 8]
    prompt_cache.load(file, model, reusing, prompt)
    for layer in range(model.config.n_layers):
        for kind, rows in reusing.cache.stored_rows(layer).items():
            np.testing.assert_array_equal(load_file(file)[f"{kind}.{layer}"], rows)
    reusing.rewind_to_prompt(prompt)
    np.testing.assert_array_equal(reusing.feed([7, 8]), whole.feed(prompt))


@pytest.mark.parametrize(("writer", "reader"), [BACKENDS, BACKENDS[::-1]])
def test_one_backend_reads_what_the_other_wrote(
    writer: str, reader: str, tiny_model: Loader, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    kept = saved(tiny_model("gpt2", backend=writer, cache_dtype="f32"), file)
    model = tiny_model("gpt2", backend=reader, cache_dtype="f32")
    reusing = Session(model.engine, 50)
    prompt_cache.load(file, model, reusing, [*kept, 3])
    whole = Session(model.engine, 50)
    assert generated(model, [*kept, 3], reusing) == generated(model, [*kept, 3], whole)


@every_backend
@pytest.mark.parametrize(("n_same", "n_run"), [(0, 30), (12, 18), (29, 1), (30, 1)])
def test_only_what_is_not_shared_runs(
    n_same: int, n_run: int, backend: str, tiny_model: Loader, tmp_path: Path
) -> None:
    model, file = tiny_model("llama_gqa", backend=backend), tmp_path / "file"
    kept = saved(model, file)
    prompt = kept[:n_same] + [(token + 1) % 131 for token in kept[n_same:30]]
    session = Session(model.engine, 30)
    prompt_cache.load(file, model, session, prompt)
    (piece,) = model.generate(prompt, max_new_tokens=1, session=session)
    assert piece.positions == session.cache.positions_run == n_run
    assert list(session.ids) == prompt


@pytest.mark.parametrize("name", [name for name in CONFIGS if "dynamic" in str(CONFIGS[name])])
def test_positions_run_again_where_rotary_frequencies_changed(
    name: str, tiny_model: Loader, tmp_path: Path
) -> None:
    model, file = tiny_model(name), tmp_path / "file"
    long = tiny.make_ids(100)
    saved(model, file, long)
    session = Session(model.engine, 130)
    prompt_cache.load(file, model, session, [*long, 5, 6])
    (piece,) = model.generate([*long, 5, 6], max_new_tokens=1, temperature=0, session=session)
    assert piece.positions == 102
    assert [piece.token] == generated(model, [*long, 5, 6], Session(model.engine, 130), 1)


def test_a_watched_row_is_the_same(tiny_model: Loader, tmp_path: Path) -> None:
    model, file = tiny_model("llama_gqa"), tmp_path / "file"
    prompt = [*saved(model, file), 9]
    rows = []
    for reuses in (True, False):
        session = Session(model.engine, 50, capture=Capture(model.config, [1], 50))
        if reuses:
            prompt_cache.load(file, model, session, prompt)
        generated(model, prompt, session, 1)
        rows.append(session.recording().layers[0].q[-1])
    np.testing.assert_allclose(*rows, rtol=0, atol=TOLERANCE)


def test_a_session_forgets_everything_unless_it_reuses(tiny_model: Loader) -> None:
    session = Session(tiny_model("gpt2").engine, 10)
    session.feed([1, 2, 3])
    session.rewind_to_prompt([1, 2, 3, 4])
    assert not session.ids
    session.feed([1, 2, 3])
    session.reuses_prefix = True
    session.rewind_to_prompt([1, 2, 3])
    assert list(session.ids) == [1, 2]


@pytest.fixture
def model(tiny_model: Loader) -> Model:
    return tiny_model("gpt2", backend="numpy")


@pytest.mark.parametrize(
    ("facts", "kind", "message"),
    [
        ({"format": "pt"}, UsageError, "is not a prompt cache of kvgen: name another file"),
        ({"version": "2"}, UsageError, "version 2 of the format"),
        ({"model": "0"}, UsageError, "was written for another model"),
        ({"dtype": "bf16"}, UsageError, "--dtype bf16, and this run has f32: add --dtype bf16"),
        ({"cache_dtype": "f16"}, UsageError, "was written with --cache-dtype f16"),
        ({"cache_dtype": "int8"}, UsageError, "was written with --cache-dtype int8"),
        ({"prefill": "fast"}, UsageError, "was written with --prefill fast"),
        ({"frequencies_from": "7"}, CheckpointError, "frequencies_from is 7"),
        ({"frequencies_from": "x"}, CheckpointError, "is not a whole prompt cache"),
        ({"frequencies_from": "9" * 5000}, CheckpointError, "is not a whole prompt cache"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    facts: dict[str, str], kind: type[KvgenError], message: str, model: Model, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    saved(model, file)
    changed(file, **facts)
    session = Session(model.engine, 50)
    with pytest.raises(kind, match=message):
        prompt_cache.load(file, model, session, IDS)
    assert not session.ids


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[3, 0, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("keys.1", with_nan),
        ("values.2", with_nan),
        ("keys.0", lambda array: array[:-1]),
        ("values.0", lambda array: array.astype(np.float16)),
        ("token_ids", lambda ids: ids + 131),
        ("token_ids", lambda ids: ids - 131),
        ("token_ids", lambda ids: ids.astype(np.int64)),
        ("token_ids", lambda ids: ids[None]),
        ("token_ids", lambda ids: ids[:0]),
        ("token_ids", lambda _: np.zeros(2**20, np.int32)),
        ("keys.9", lambda _: np.zeros(1)),
    ],
)
def test_arrays_that_cannot_be_are_refused(
    name: str, make: Callable[[object], np.ndarray], model: Model, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    saved(model, file)
    changed(file, {name: make(load_file(file).get(name))})
    session = Session(model.engine, 50)
    with pytest.raises(CheckpointError, match="is not a whole prompt cache"):
        prompt_cache.load(file, model, session, IDS)
    assert not session.ids


def test_a_part_of_a_file_is_refused(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "file"
    saved(model, file)
    content = file.read_bytes()
    for part in (b"", content[:5], content[:300], content[:-1], content + b"0", b"\xff" * 99):
        file.write_bytes(part)
        with pytest.raises(CheckpointError, match="is not a whole prompt cache"):
            prompt_cache.load(file, model, Session(model.engine, 50), IDS)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="is not a file but a named pipe"):
        prompt_cache.load(pipe, model, Session(model.engine, 50), IDS)


@pytest.mark.parametrize(
    ("place", "failure", "raised"),
    [
        ("os.fsync", OSError(errno.ENOSPC, "No space left on device"), KvgenError),
        ("os.fsync", KeyboardInterrupt(), KeyboardInterrupt),
        ("pathlib.Path.replace", OSError(errno.ENOSPC, "No space left on device"), KvgenError),
        ("pathlib.Path.replace", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    place: str,
    failure: BaseException,
    raised: type[BaseException],
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "file"
    saved(model, file)
    content = file.read_bytes()

    def fail(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(raised):
            saved(model, file, IDS)
    assert file.read_bytes() == content and list(tmp_path.iterdir()) == [file]


def test_an_empty_session_is_not_saved(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run a prompt first"):
        prompt_cache.save(tmp_path / "file", model, Session(model.engine, 5))


def test_the_identity_sees_weights_and_arithmetic_but_no_bookkeeping(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "one", "gpt2")
    identity = model_identity(folder)
    config = json.loads((folder / "config.json").read_text())
    same = dict(reversed(config.items())) | {"transformers_version": "9"}
    (folder / "config.json").write_text(json.dumps(same))
    assert model_identity(folder) == identity
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-6}))
    assert model_identity(folder) != identity
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tiny.make_tensors("gpt2")
    other = {name: tensor + np.float32(1e-6) for name, tensor in tensors.items()}
    tiny.write_checkpoint(folder, "gpt2", other)
    assert model_identity(folder) != identity
    shards = tiny.write_shards(tmp_path / "shards", "gpt2")
    assert len(model_identity(shards)) == 64
    next(shards.glob("*-00002-*")).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        model_identity(shards)


STORY = "Once upon a time there was a little cat"


def run_json(file: Path, prompt: str, n_new: int) -> dict[str, object]:
    result = inside(
        "generate", prompt, "--greedy", "--json", "-n", str(n_new), "--prompt-cache", str(file)
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


def test_the_command_writes_the_file_and_reuses_it(tmp_path: Path) -> None:
    file = tmp_path / "story.safetensors"
    first = run_json(file, STORY, 6)
    n = len(first["prompt_ids"])  # type: ignore[arg-type]
    assert first["prompt_cache"] == {"submitted": n, "processed": n, "reused": 0}
    assert len(load_file(file)["token_ids"]) == n + 5
    before = file.read_bytes()
    again = run_json(file, STORY, 6)
    assert again["prompt_cache"] == {"submitted": n, "processed": 1, "reused": n - 1}
    assert again["ids"] == first["ids"] and file.read_bytes() == before
    assert again["timings"]["positions_run"] == 6  # type: ignore[index]
    prefill = run_json(file, STORY, 0)
    assert prefill["timings"]["positions_run"] == 1  # type: ignore[index]
    run_json(file, STORY, 9)
    assert len(load_file(file)["token_ids"]) == n + 8


def test_the_file_is_written_where_it_lacks_the_prompt_or_the_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "file"
    long = run_json(file, STORY, 9)
    kept, bytes_before = load_file(file)["token_ids"].tolist(), file.read_bytes()
    assert inside("generate", STORY, "--temp", "1", "-n", "20", "--seed", "3", "--prompt-cache",
                  str(file)).returncode == 0  # fmt: skip
    assert file.read_bytes() == bytes_before  # the same prompt with another end
    other = run_json(file, "The king", 2)  # shorter, and another text
    ids = load_file(file)["token_ids"].tolist()
    assert ids == [*other["prompt_ids"], *other["ids"]][: len(ids)] != kept[: len(ids)]  # type: ignore[misc]
    assert long["ids"] == run_json(file, STORY, 9)["ids"]


def test_a_file_may_be_read_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    use = ("generate", "-n", "3", "-q", "--greedy", "--prompt-cache", str(file))
    missing = inside(*use, STORY, "--prompt-cache-ro")
    assert_fails(missing, 2, "there is no such file, and --prompt-cache-ro writes none")
    assert not file.exists()
    assert inside(*use, STORY).returncode == 0
    before = file.read_bytes()
    answer = inside(*use, STORY + " and a dog", "--prompt-cache-ro", "--json")
    assert json.loads(answer.stdout)["prompt_cache"]["reused"] > 5
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    assert_fails(inside("generate", STORY, "--prompt-cache-ro"), 2, "add it")


def test_the_timing_block_counts_positions(tmp_path: Path) -> None:
    arguments = ("generate", STORY, "-n", "1", "--prompt-cache", str(tmp_path / "file"))
    inside(*arguments)
    lines = inside(*arguments).stderr.decode().splitlines()
    n = len(kvgen.load().encode(STORY))
    assert f"prompt  submitted {n} · processed 1 · reused {n - 1} positions" in lines
    assert any(line.startswith("prefill    1 tokens") for line in lines)


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    use = ("generate", STORY, "-n", "1", "-q", "--prompt-cache")
    both = "--prompt-cache and --no-cache exclude each other: leave one out"
    assert_fails(inside(*use, str(file), "--no-cache"), 2, both)
    assert_fails(inside(*use, str(tmp_path)), 2, ": is a folder: name a file")
    assert_fails(inside(*use, str(tmp_path / "no" / "file")), 2, "there is no folder")
    assert inside(*use, str(file)).returncode == 0
    assert_fails(inside(*use, str(file), "--prefill", "stepwise"), 2, "this run has stepwise")
    file.write_bytes(file.read_bytes()[:-1])
    assert_fails(inside(*use, str(file)), 4, "is not a whole prompt cache")


def test_an_interruption_while_the_file_is_written_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    run = inside("generate", STORY, "-n", "3", "--json", "--prompt-cache", str(tmp_path / "file"))
    assert run.returncode == 130 and json.loads(run.stdout)["finish_reason"] == "length"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_the_file_but_not_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    run = inside("generate", STORY, "-n", "3", "-q", "--prompt-cache", str(tmp_path / "file"))
    assert run.returncode == 1 and run.stdout
    assert (
        run.stderr.decode().splitlines()[-1].endswith("cannot be written: No space left on device")
    )
    assert not list(tmp_path.iterdir())
