"""Mutated files of recordings: each is read and shown, or refused in one line; nothing else."""

from __future__ import annotations

import io
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from kvgen.errors import KvgenError
from kvgen.recording import Recording
from kvgen.render.canvas import Canvas
from kvgen.render.contributions import contributions_view
from kvgen.render.draw import draw
from kvgen.render.lens import lens_view
from tests.conftest import Loader

N_FILES = 300
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2.5, 10**40, float("nan"), float("inf"), "", "a\x1b[2J", [], [1], [[]],
    [10**40], {}, {"a": 1}, -(10**9), 10**9,
]  # fmt: skip
TYPES = (np.float64, np.int64, np.uint8, np.float16, np.bool_)
CANVAS = Canvas(80, "glyphs")
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def seen(tiny_model: Loader) -> Recording:
    recording = tiny_model("llama_gqa", backend="numpy").inspect(range(7), max_new_tokens=3)
    recording.lens()
    recording.contributions(token=3, against=5)
    return recording


@pytest.fixture(scope="module")
def files(seen: Recording, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a whole file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in ("npz", "safetensors"):
        seen.save(folder / f"whole.{kind}")
    return {file.suffix[1:]: file.read_bytes() for file in folder.iterdir()}


def arrays_of(files: dict[str, bytes]) -> Arrays:
    with np.load(io.BytesIO(files["npz"])) as opened:
        return {name: opened[name] for name in opened.files}


def flip_bytes(content: bytes, rng: random.Random) -> bytes:
    """Other bytes at some places, most of them in the header; sometimes the end is lost."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 3000)
        changed[rng.randrange(end)] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed)


def change_meta(meta: dict[str, Any], rng: random.Random) -> None:
    """Another value, or none, for a key of meta or of a part in it, or for an item of a list."""
    place: Any = meta
    key: Any = rng.choice(list(meta))
    while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.6:
        place = place[key]
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(VALUES)


def change_array(arrays: Arrays, rng: random.Random) -> None:
    """An array that is missing, shorter, turned, empty, of another type, or with another number."""
    name = rng.choice([name for name in arrays if name != "meta"])
    array = arrays.pop(name)
    changes = ["missing", "shorter", "deeper", "turned", "empty", "scalar"]
    if array.dtype.kind in "fiu" and array.size:
        changes += ["type", "number", "number"]
    change = rng.choice(changes)
    if change == "shorter":
        arrays[name] = array[:-1]
    elif change == "deeper":
        arrays[name] = array[None]
    elif change == "turned":
        arrays[name] = array.T.copy()
    elif change == "empty":
        arrays[name] = array[:0]
    elif change == "scalar":
        arrays[name] = np.array(3)
    elif change == "type":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # casts of NaN
            arrays[name] = array.astype(rng.choice(TYPES))
    elif change == "number":
        floats, ids = [np.nan, np.inf, -np.inf, 1e38], [-1, 0, 5, 10**9, 2**31 - 1]
        few = [0, 1, 100, 127]
        array = array.copy()
        numbers = {"f": floats, "i": ids, "u": few}[array.dtype.kind]
        array.flat[rng.randrange(array.size)] = rng.choice(numbers)
        arrays[name] = array


def mutated(files: dict[str, bytes], kind: str, rng: random.Random) -> bytes:
    """The bytes of a broken file of that kind."""
    if rng.random() < 0.2:
        return flip_bytes(files[kind], rng)
    arrays = arrays_of(files)
    meta = json.loads(str(arrays.pop("meta")))
    for _ in range(rng.randint(1, 2)):
        change_meta(meta, rng) if rng.random() < 0.5 else change_array(arrays, rng)
    if kind == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays, meta=np.array(json.dumps(meta)))
        return buffer.getvalue()
    arrays.pop("tokens", None)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(whole, metadata={"meta": json.dumps(meta)})


def use(seen: Recording, folder: Path) -> None:
    """Draw and write all that a recording has."""
    repr(seen)
    if seen.saved_lens is not None:
        draw(lens_view(seen.saved_lens, seen.token_bytes, seen.names, CANVAS), CANVAS)
    if seen.saved_contributions is not None:
        found = seen.saved_contributions
        draw(contributions_view(found, seen.token_bytes, seen.names, CANVAS), CANVAS)
    for name in ("all.txt", "all.json", "all.npz", "all.html"):
        seen.save(folder / name)
    seen.save(folder / "one.txt", layers=seen.layers[:1], heads=seen.heads[:1])
    seen.explain(seen.layers[0], seen.heads[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a map of NaN and infinities
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_broken_file_is_read_or_refused_in_one_line(
    kind: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    refused, file = 0, tmp_path / f"broken.{kind}"
    for number in range(N_FILES // 2):
        file.write_bytes(mutated(files, kind, random.Random(f"{kind} {number}")))
        try:
            use(Recording.open(file), tmp_path)
        except KvgenError as error:
            assert str(error).startswith(f"{file}: ") or "recording" in str(error), number
            refused += 1
    assert N_FILES // 8 < refused < N_FILES // 2


def test_a_probe_longer_than_the_text_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    """It would ask for as many rows."""
    arrays = arrays_of(files)
    meta = json.loads(str(arrays["meta"])) | {"probe": 10**9}
    np.savez(tmp_path / "broken.npz", **arrays | {"meta": np.array(json.dumps(meta))})
    with pytest.raises(KvgenError, match=r"is no recording of attention \(probe is 1000000000\)"):
        Recording.open(tmp_path / "broken.npz")


@pytest.mark.parametrize("name", ["lens_ids", "lens_ranks", "k", "token_offsets"])
def test_an_array_of_another_size_is_named(
    name: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    arrays = arrays_of(files)
    arrays[name] = arrays[name][..., :-1]
    if name == "lens_ids":
        arrays[name] = arrays[name][:, :-1]
    file = tmp_path / "broken.npz"
    np.savez(file, allow_pickle=False, **arrays)
    with pytest.raises(KvgenError, match=rf"is no recording of attention \({name} is "):
        Recording.open(file)
