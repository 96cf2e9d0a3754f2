"""Files of a model folder that are damaged, made up, or not files at all."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvgen
from kvgen.checkpoint import files
from kvgen.checkpoint.files import read_json
from kvgen.checkpoint.folder import fingerprint, open_checkpoint
from kvgen.errors import CheckpointError
from tests import tiny

NAME = "llama_gqa"
IDS = tiny.make_ids(20)
WEIGHTS = "model.safetensors"


def refuse(load: Callable[[], object], message: str) -> None:
    """One line that says why."""
    with pytest.raises(CheckpointError, match=message) as failure:
        load()
    assert str(failure.value).isprintable()


# --- safetensors ------------------------------------------------------------------------------


def tensor(**changes: Any) -> dict[str, Any]:
    """What a header says of four float32 numbers that come first, but for the changes."""
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes


def safetensors(header: object, *, n_bytes: int = 16, pad: bytes = b"", length: int = -1) -> bytes:
    """A file with that header, an object or as it is, and so many zeros behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += pad
    return (len(text) if length < 0 else length).to_bytes(8, "little") + text + bytes(n_bytes)


ENTRY = json.dumps(tensor()).encode()
READ = {
    "as it should be": safetensors({"a": tensor()}),
    "padded with spaces": safetensors({"a": tensor()}, pad=b"   "),
    "padded with NULs": safetensors({"a": tensor()}, pad=b"\0\0\0"),
    "in another order": safetensors(
        {"b": tensor(data_offsets=[16, 32]), "a": tensor()}, n_bytes=32
    ),
    "no numbers": safetensors({"b": tensor(shape=[0, 4], data_offsets=[0, 0]), "a": tensor()}),
    "one number": safetensors({"a": tensor(shape=[], data_offsets=[0, 4])}, n_bytes=4),
    "100 dimensions": safetensors({"a": tensor(shape=[1] * 100 + [4])}),
    "half bytes": safetensors({"a": tensor(dtype="F4", shape=[32])}),
    "a key more": safetensors({"a": tensor(note="x")}),
    "notes": safetensors({"__metadata__": {"format": "pt"}, "a": tensor()}),
    "no notes": safetensors({"__metadata__": None, "a": tensor()}),
}
REFUSED = {
    "name twice": (
        safetensors(b'{"a": %b, "a": %b}' % (ENTRY, ENTRY)),
        "header is broken: 'a' comes twice",
    ),
    "key twice": (safetensors(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' comes twice"),
    "overlap": (safetensors({"a": tensor(), "b": tensor()}), "`b` begins at byte 0, .* ends at 16"),
    "backwards": (safetensors({"a": tensor(data_offsets=[16, 0])}), "do not fit its shape"),
    "hole": (
        safetensors({"a": tensor(), "b": tensor(data_offsets=[20, 36])}, n_bytes=36),
        "tensor `b` begins at byte 20, and the one before it ends at 16",
    ),
    "hole in front": (
        safetensors({"a": tensor(data_offsets=[4, 20])}, n_bytes=20),
        "tensor `a` begins at byte 4",
    ),
    "beyond the end": (safetensors({"a": tensor()}, n_bytes=8), r"is truncated \(78 of 86 bytes\)"),
    "far beyond the end": (
        safetensors({"a": tensor(shape=[2**40], data_offsets=[0, 2**42])}),
        "is truncated",
    ),
    "bytes too many": (safetensors({"a": tensor()}, n_bytes=17), "has 1 bytes behind its last"),
    "bytes of nothing": (safetensors({}), "has 16 bytes behind its last tensor"),
    "wraps 64 bits": (
        safetensors({"a": tensor(shape=[2**32, 2**32], data_offsets=[0, 0])}, n_bytes=0),
        "do not fit its shape",
    ),
    "negative size": (safetensors({"a": tensor(shape=[-4])}), "shape should be a list of whole"),
    "negative sizes": (safetensors({"a": tensor(shape=[-2, -2])}), "shape should be a list"),
    "size with a point": (safetensors({"a": tensor(shape=[4.0])}), "shape should be a list"),
    "truth for a size": (safetensors({"a": tensor(shape=[True, 4])}), "shape should be a list"),
    "huge size": (safetensors({"a": tensor(shape=[10**30])}), "shape should be a list"),
    "nested size": (safetensors({"a": tensor(shape=[[4]])}), "shape should be a list"),
    "size for a shape": (safetensors({"a": tensor(shape=4)}), "shape should be a list"),
    "no shape": (safetensors({"a": {"dtype": "F32"}}), "shape should be a list"),
    "negative offset": (safetensors({"a": tensor(data_offsets=[-16, 0])}), "two whole numbers"),
    "offset with a point": (safetensors({"a": tensor(data_offsets=[0, 16.0])}), "two whole"),
    "three offsets": (safetensors({"a": tensor(data_offsets=[0, 8, 16])}), "two whole numbers"),
    "unknown dtype": (safetensors({"a": tensor(dtype="F33")}), "`a` has an unknown dtype"),
    "dtype of no kind": (safetensors({"a": tensor(dtype=["F32"])}), "has an unknown dtype"),
    "part of a byte": (safetensors({"a": tensor(dtype="F4", shape=[31])}), "do not fit its shape"),
    "no header": (safetensors(b""), "header is broken: Expecting value"),
    "header beyond the end": (safetensors({"a": tensor()}, length=10**4), "is truncated"),
    "list": (safetensors([1]), "it is not a JSON object"),
    "null": (safetensors(b"null"), "it is not a JSON object"),
    "two objects": (safetensors(b"{}{}"), "header is broken: Extra data"),
    "deeply nested": (safetensors(b'{"a":' * 50_000), "it is nested too deeply"),
    "NaN": (safetensors(b'{"a": NaN}'), "NaN is not JSON"),
    "tensor of no kind": (safetensors({"a": [1]}), "tensor `a` should be an object"),
    "note of no kind": (safetensors({"__metadata__": "x"}), "__metadata__ should be an object"),
    "list of notes": (safetensors({"__metadata__": []}), "__metadata__ should be an object"),
    "number in notes": (safetensors({"__metadata__": {"x": 3}}), "__metadata__ should be an"),
    "not UTF-8": (safetensors(b'{"a\xff": {}}'), "header is broken: 'utf-8' codec can't decode"),
    "half a character": (safetensors(b'{"a\\ud800": {}}'), "is not a name for a tensor"),
    "line break in a name": (safetensors({"a\nb": tensor()}), r"'a\\nb' is not a name"),
    "escape in a name": (safetensors({"a\x1b[2J": tensor()}), r"'a\\x1b\[2J' is not a name"),
    "endless name": (safetensors({"a" * 10_000: tensor()}), "'a{80}' is not a name for a tensor"),
}


@pytest.mark.parametrize("case", [*READ, *REFUSED])
def test_a_safetensors_file_is_read_right_or_refused_in_one_line(case: str, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    content, message = REFUSED.get(case) or (READ[case], "")
    (folder / WEIGHTS).write_bytes(content)
    if message:
        refuse(lambda: open_checkpoint(folder), message)
    else:
        stored = open_checkpoint(folder).tensors["a"]
        assert stored.mapped.nbytes == (4 if case == "one number" else 16)


def test_a_header_of_more_than_100_megabytes_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    with (folder / WEIGHTS).open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{}")
        file.truncate(100_000_100)
    refuse(lambda: open_checkpoint(folder), "header is broken: it is 100,000,001 bytes long")


@pytest.mark.parametrize("pad", [b" " * 5, b"\0" * 5, b"\n \0\0\0"])
def test_a_padded_header_gives_the_same_numbers(pad: bytes, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    expected = kvgen.load(folder).logits(IDS)
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + pad
    (folder / WEIGHTS).write_bytes(
        len(header).to_bytes(8, "little") + header + content[8 + length :]
    )
    np.testing.assert_array_equal(kvgen.load(folder).logits(IDS), expected)


def test_a_file_that_becomes_shorter_while_it_is_mapped_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    memmap = np.memmap

    def memmap_and_cut(file: Any, *arguments: Any, **options: Any) -> object:
        mapped = memmap(file, *arguments, **options)
        os.truncate(folder / WEIGHTS, 1000)
        return mapped

    monkeypatch.setattr(np, "memmap", memmap_and_cut)
    refuse(lambda: open_checkpoint(folder), r"is truncated \(1,000 of [\d,]+ bytes\)")


# --- What is not a file -----------------------------------------------------------------------


def make_folder(place: Path) -> None:
    place.mkdir()


def make_pipe(place: Path) -> None:
    os.mkfifo(place)


def make_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place.name)  # the whole path may be too long for a socket


def make_link_to_device(place: Path) -> None:
    place.symlink_to("/dev/zero")


MAKERS = {
    "a folder": make_folder,
    "a named pipe": make_pipe,
    "a socket": make_socket,
    "a device": make_link_to_device,
}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "name",
    [
        "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
        "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja", WEIGHTS,
        "model.safetensors.index.json", "model-00002-of-00003.safetensors",
    ],
)  # fmt: skip
def test_what_is_not_a_file_is_never_opened(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_shards(tmp_path, NAME)
    if name in ("vocab.json", "merges.txt", "added_tokens.json"):
        settings = {"tokenizer_class": "GPT2Tokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
        (folder / "merges.txt").write_text("#version: 0.2\n")
    monkeypatch.chdir(folder)
    (folder / name).unlink(missing_ok=True)
    MAKERS[kind](folder / name)
    message = f"{name}: is not a file but {kind}"
    if name == "generation_config.json":
        assert message in kvgen.load(folder).notes[-1]
    elif name == "chat_template.jinja":
        model = kvgen.load(folder)
        refuse(lambda: model.render_chat([{"role": "user", "content": "hi"}]), message)
    else:
        refuse(lambda: kvgen.load(folder), message)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
def test_a_stray_pipe_plays_no_part_in_a_fingerprint(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    expected = fingerprint(folder)
    make_pipe(folder / "other.safetensors")
    assert fingerprint(folder) == expected
    (folder / "another.safetensors").write_bytes(b"\xff" * 20)  # and this is no header
    assert fingerprint(folder) != expected


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_files_may_be_links_out_of_the_folder(tmp_path: Path) -> None:
    blobs = tiny.write_shards(tmp_path / "blobs", NAME)
    folder = tmp_path / "snapshots" / "main"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(blobs.iterdir())):
        blob = path.rename(blobs / f"{number:064x}")
        (folder / path.name).symlink_to(Path("../../blobs") / blob.name)
    expected = kvgen.load(tiny.write_checkpoint(tmp_path / "whole", NAME)).logits(IDS)
    np.testing.assert_array_equal(kvgen.load(folder).logits(IDS), expected)
    (blobs / f"{0:064x}").unlink()
    refuse(lambda: kvgen.load(folder), "config.json is missing")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read all")
@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_file_that_may_not_be_read_is_named(name: str, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    (folder / name).chmod(0)
    refuse(lambda: kvgen.load(folder), f"{name}: cannot be read: Permission denied")


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    (folder / "modeling_own.py").write_text("raise SystemExit('run')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    model = kvgen.load(folder)
    assert "modeling_own" not in sys.modules
    assert "auto_map" in model.ignored_keys


# --- JSON -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON: Expecting value"),
        (b"\xef\xbb\xbf{}", "is not valid JSON: Unexpected UTF-8 BOM"),  # as in transformers
        ('{"a": 1}'.encode("utf-16"), "is not valid JSON: 'utf-8' codec can't decode"),
        (b'{"a": "\xff"}', "is not valid JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "is not valid JSON: "),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not valid JSON: "),
        (b"null", "should hold a JSON object"),
        (b'"text"', "should hold a JSON object"),
        (b"3", "should hold a JSON object"),
        (b"{} {}", "is not valid JSON: Extra data"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_json_that_is_not_an_object_is_named(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    (folder / name).write_bytes(content)
    refuse(lambda: kvgen.load(folder), f"{name}: {message}")


def test_json_is_read_as_the_reference_implementation_does(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1, "b": NaN, "c": -Infinity, "a": 2}')
    content = read_json(path)
    assert content["a"] == 2 and content["b"] != content["b"] and content["c"] == -np.inf


def test_a_text_has_one_kind_of_line_end(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("é\r\nb\rc\n".encode())
    assert files.read_text(tmp_path / "text") == "é\nb\nc\n"


def test_a_file_beyond_all_measure_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_checkpoint(tmp_path, NAME)
    size = (folder / "config.json").stat().st_size
    monkeypatch.setattr(files, "LONGEST", size)
    kvgen.load(folder)
    monkeypatch.setattr(files, "LONGEST", size - 1)
    refuse(lambda: kvgen.load(folder), rf"config.json: is larger than {size - 1:,} bytes")
