"""Models by their name on the Hub: the real client in a real process, and a Hub of our own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import kvgen
from kvgen.checkpoint.folder import INDEX, WEIGHTS
from kvgen.checkpoint.hub import locate
from kvgen.errors import ModelNotFoundError, UsageError
from kvgen.loading import default_model
from tests import tiny
from tests.hub import TOKEN, Files, Hub, Kind, Trouble, serve

Run = subprocess.CompletedProcess[str]

NAME = "org/tiny"
SAMPLED = b'{"do_sample": true, "temperature": 0.5}'
CONFIG = "llama_gqa"
# What is in many repositories and of no use to kvgen.
UNWANTED = (".gitattributes", "README.md", "onnx/model.onnx", "onnx/model.safetensors",
            "vocab.json", "merges.txt", "tokenizer.model", "additional_chat_templates/notes.txt",
            "pytorch_model.bin", "model-00001-of-00002.safetensors", INDEX)  # fmt: skip
# The client waits between its attempts: 1, 2, 4, 8, 8 seconds.
NO_WAITING = "import time; time.sleep = lambda _: None"
LOCATE_EACH = """
import sys
from kvgen.errors import ModelNotFoundError
from kvgen.checkpoint.hub import locate
for name in sys.argv[1:]:
    try:
        locate(name)
    except ModelNotFoundError as error:
        print(ascii(str(error)))
"""
UNREACHED = "there is no such folder, and the Hub cannot be reached or does not answer ("
FROM_CACHE = f"{NAME}: the Hub cannot be reached; taken from the cache\n"


@dataclass(frozen=True, slots=True)
class Client:
    """kvgen in processes of their own, with a cache of their own."""

    home: Path
    endpoint: str

    def start(self, *arguments: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
        """The command in the background; `before` is Python that runs before it."""
        code = f"{before}\nfrom kvgen.__main__ import main\nmain()"
        return subprocess.Popen(
            [sys.executable, *(["-c", code] if before else ["-m", "kvgen"]), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=self.environment() | environment,
        )

    def run(self, *arguments: str, before: str = "", **environment: str) -> Run:
        """The command to its end."""
        return finish(self.start(*arguments, before=before, **environment))

    def info(self, *options: str, name: str = NAME, before: str = "", **environment: str) -> Run:
        """`kvgen info` of the model as JSON, without notes."""
        return self.run("info", name, "-q", "--json", *options, before=before, **environment)

    def locate(self, *names: str) -> Run:
        """All of these fetched by one process, which prints why one is not."""
        return subprocess.run(
            [sys.executable, "-c", LOCATE_EACH, *names],
            env=self.environment(),
            capture_output=True,
            encoding="utf-8",
            check=True,
        )

    def environment(self) -> dict[str, str]:
        """That of the tests without anything that speaks to the Hub's client."""
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().startswith(("hf_", "hugging", "transformers_"))
            and not name.lower().endswith("_proxy")
        }
        return ours | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_TELEMETRY": "1",  # it asks the Hub for more than the model
        }


def finish(process: subprocess.Popen[str]) -> Run:
    """What a process in the background has come to."""
    out, err = process.communicate(timeout=60)
    return Run(process.args, process.returncode, out, err)


def assert_fails(run: Run, code: int, message: str) -> None:
    """One clear line on stderr, nothing on stdout, the documented exit code."""
    assert run.returncode == code, run.stderr
    assert message in run.stderr
    assert run.stderr.startswith("kvgen: ") and run.stderr.count("\n") == 1
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def folder_of(run: Run) -> Path:
    """Where `kvgen info` found the model."""
    assert (run.returncode, run.stderr) == (0, "")
    return Path(json.loads(run.stdout)["folder"])


def read_files(folder: Path) -> Files:
    """All files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a folder, with a tokenizer of as many words as there are rows."""
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("local") / "tiny", CONFIG)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(131)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256}')
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    return folder


@pytest.fixture
def files(local: Path) -> Files:
    """The same model's files, to be published."""
    return read_files(local)


@pytest.fixture(scope="session")
def filled(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with that model in it."""
    home = tmp_path_factory.mktemp("filled")
    with serve() as hub:
        hub.publish(NAME, read_files(local))
        folder_of(Client(home, hub.url).info())
    return home


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub without models."""
    with serve() as hub:
        yield hub


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    """kvgen with an empty cache and this Hub."""
    return Client(tmp_path / "home", hub.url)


@pytest.fixture
def again(hub: Hub, files: Files, filled: Path, tmp_path: Path) -> Client:
    """kvgen with a cache that has the model, which this Hub has too."""
    hub.publish(NAME, files)
    shutil.copytree(filled, tmp_path / "filled", symlinks=True)
    return Client(tmp_path / "filled", hub.url)


# --- What is fetched --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, "tiny"])
def test_a_model_of_the_hub_is_the_same_as_its_folder(
    name: str, hub: Hub, client: Client, files: Files, local: Path
) -> None:
    hub.publish(name, files)
    run = client.info(name=name)
    fetched = folder_of(run)
    there, here = json.loads(run.stdout), json.loads(client.info(name=str(local)).stdout)
    assert (there.pop("name"), here.pop("name")) == (name, "tiny")
    del there["folder"], here["folder"]
    assert there == here
    ids = tiny.make_ids(9)
    loaded, same = (kvgen.load(folder, backend="numpy") for folder in (fetched, local))
    np.testing.assert_array_equal(loaded.logits(ids), same.logits(ids))


def test_generate_takes_a_model_of_the_hub(
    hub: Hub, client: Client, files: Files, local: Path
) -> None:
    hub.publish(NAME, files)
    arguments = ["generate", "w1 w2 w3", "-n", "9", "--greedy", "-q", "--backend", "numpy"]
    there, here = (client.run(*arguments, "-m", model) for model in (NAME, str(local)))
    assert there.returncode == 0 and there.stderr == ""
    assert there.stdout == here.stdout != ""


def test_only_the_files_that_are_needed_are_fetched(hub: Hub, client: Client, files: Files) -> None:
    hub.publish(NAME, files | dict.fromkeys(UNWANTED, b"of no use"))
    folder = folder_of(client.info())
    assert sorted(hub.sent()) == sorted(files)
    assert hub.sent()[-1] == WEIGHTS  # what is there with its weights is there as a whole
    assert read_files(folder) == files
    assert hub.asked("api") == 1


# Files beside the others, and those of them that are fetched.
TOKENIZERS = [
    (["tokenizer.json", "vocab.json", "merges.txt"], ["tokenizer.json"]),
    (["tokenizer.json", "added_tokens.json", "special_tokens_map.json"],
     ["tokenizer.json", "added_tokens.json", "special_tokens_map.json"]),
    (["additional_chat_templates/rag.jinja"], ["additional_chat_templates/rag.jinja"]),
    (["vocab.json", "merges.txt", "tokenizer.model"], ["vocab.json", "merges.txt"]),
    (["vocab.json", "merges.txt", "added_tokens.json"],
     ["vocab.json", "merges.txt", "added_tokens.json"]),
    (["vocab.json", "tokenizer.model"], ["tokenizer.model"]),
    (["vocab.json"], []),
    (["chat_template.jinja", "chat_template.json"], ["chat_template.jinja"]),
]  # fmt: skip


def test_a_tokenizer_is_fetched_in_the_best_form_there_is(
    hub: Hub, client: Client, files: Files
) -> None:
    del files["tokenizer.json"]
    small = files.keys() - {WEIGHTS}
    names = [f"org/model{number}" for number in range(len(TOKENIZERS))]
    for name, (there, _) in zip(names, TOKENIZERS, strict=True):
        hub.publish(name, files | {file: file.encode() for file in there})
    client.locate(*names)
    for name, (_, fetched) in zip(names, TOKENIZERS, strict=True):
        got = [
            request.fields["file"]
            for request in hub.log
            if (request.kind, request.method) == ("file", "GET") and request.fields["name"] == name
        ]
        assert sorted(got) == sorted([*small, *fetched]), name
    assert hub.asked("cdn") == len(names)


def test_shards_are_fetched_by_their_index(hub: Hub, client: Client, tmp_path: Path) -> None:
    files = read_files(tiny.write_shards(tmp_path / "shards", CONFIG))
    hub.publish(NAME, files | {"model-00001-of-00002.safetensors": b"of another index"})
    folder = folder_of(client.info())
    assert sorted(hub.sent()) == sorted(files)
    loaded, same = (kvgen.load(path, backend="numpy") for path in (folder, tmp_path / "shards"))
    np.testing.assert_array_equal(loaded.logits([1, 2, 3]), same.logits([1, 2, 3]))
    assert folder_of(client.info(HF_HUB_OFFLINE="1")) == folder


@pytest.mark.parametrize(
    ("instead", "message"),
    [("pytorch_model.bin", "to convert: python -c"), ("model.gguf", "kvgen does not read")],
)
def test_nothing_is_fetched_of_a_model_without_weights_that_can_be_read(
    instead: str, message: str, hub: Hub, client: Client, files: Files
) -> None:
    files[instead] = files.pop(WEIGHTS)
    hub.publish(NAME, files)
    run = client.info()
    assert_fails(run, 4, f"{NAME}: {WEIGHTS} is missing (found {instead}")
    assert message in run.stderr
    assert len(hub.log) == 1


@pytest.mark.parametrize("missing", ["model-00003-of-00003.safetensors", "config.json"])
def test_nothing_large_is_fetched_where_a_file_is_missing(
    missing: str, hub: Hub, client: Client, tmp_path: Path
) -> None:
    files = read_files(tiny.write_shards(tmp_path / "shards", CONFIG))
    del files[missing]
    hub.publish(NAME, files)
    assert_fails(client.info(), 4, f"{NAME}: {missing} is missing")
    assert hub.asked("cdn") == 0


def test_nothing_large_is_fetched_of_a_family_that_kvgen_does_not_know(
    hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files | {"config.json": b'{"model_type": "mamba"}'})
    assert_fails(client.info(), 4, "model_type 'mamba' is not supported")
    assert hub.asked("cdn") == 0


def test_a_broken_index_is_reported(hub: Hub, client: Client, files: Files) -> None:
    del files[WEIGHTS]
    hub.publish(NAME, files | {INDEX: b'{"weight_map": {"lm_head.weight": "../../config.json"}}'})
    assert_fails(client.info(), 4, "is not the name of a file beside it")


def test_a_shard_whose_name_would_act_on_the_terminal_is_not_fetched(
    hub: Hub, client: Client, files: Files
) -> None:
    shard = "\x1b]0;owned\x07.safetensors"
    index = {"weight_map": {"lm_head.weight": shard}}
    files[shard] = files.pop(WEIGHTS)
    hub.publish(NAME, files | {INDEX: json.dumps(index).encode()})
    run = client.info()
    assert_fails(run, 4, f"{shard!r} is no name for a file")
    assert hub.asked("cdn") == 0


# --- The cache --------------------------------------------------------------------------------


def test_a_second_run_asks_only_whether_the_model_has_changed(hub: Hub, again: Client) -> None:
    folder = folder_of(again.info())
    assert folder.is_relative_to(again.home)
    assert [request.kind for request in hub.log] == ["api"]
    hub.log.clear()
    assert folder_of(again.info(HF_HUB_OFFLINE="1")) == folder
    assert hub.log == []


def test_a_new_commit_brings_the_files_that_changed(hub: Hub, again: Client, files: Files) -> None:
    old = hub.models[NAME].branches["main"]
    new = hub.publish(NAME, files | {"generation_config.json": SAMPLED})
    run = again.info()
    folder = folder_of(run)
    assert folder.name == new
    assert "temperature 0.5" in json.loads(run.stdout)["sampling"]
    assert hub.sent() == ["generation_config.json"]
    assert read_files(folder.parent / old) == files


def test_offline_and_not_in_the_cache_is_said_so(hub: Hub, client: Client) -> None:
    assert_fails(client.info(HF_HUB_OFFLINE="1"), 3, "or unset HF_HUB_OFFLINE to download it")
    assert hub.log == []


@pytest.mark.parametrize(
    "trouble",
    [
        500,
        pytest.param(503, marks=pytest.mark.slow),
        pytest.param(429, marks=pytest.mark.slow),
        "page",
        "stall",
        "closed",
    ],
)
def test_where_the_hub_does_not_answer_a_cached_model_is_taken(
    trouble: Trouble | Literal["closed"], hub: Hub, client: Client, again: Client
) -> None:
    soon = {"HF_HUB_ETAG_TIMEOUT": "1"}
    if trouble == "closed":
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            soon["HF_ENDPOINT"] = f"http://127.0.0.1:{unused.getsockname()[1]}"
    else:
        hub.troubles["api"] = repeat(trouble)
    run = client.info(**soon)
    assert_fails(run, 3, f"{NAME}: {UNREACHED}")
    assert "[Errno" not in run.stderr
    assert run.stderr.endswith("): check the name and the connection\n")
    run = again.run("info", NAME, "--json", **soon)
    assert (run.returncode, run.stderr) == (0, FROM_CACHE)
    assert Path(json.loads(run.stdout)["folder"]).is_relative_to(again.home)


def test_quiet_does_not_say_that_the_cache_was_taken(hub: Hub, again: Client) -> None:
    hub.troubles["api"] = repeat(503)
    assert folder_of(again.info()).is_relative_to(again.home)


def test_a_model_that_is_cached_in_part_is_not_taken(
    hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files)
    hub.troubles["cdn"] = repeat(500)
    assert_fails(client.info(), 3, UNREACHED)
    assert_fails(client.info(HF_HUB_OFFLINE="1"), 3, "unset HF_HUB_OFFLINE to download it")
    hub.troubles = {"api": repeat(500)}
    assert_fails(client.info(), 3, UNREACHED)


# --- Revisions and names ----------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["feature/x", "commit"])
def test_a_revision_can_be_a_branch_a_tag_or_a_commit(
    revision: str, hub: Hub, client: Client, files: Files
) -> None:
    old = hub.publish(NAME, files, branch=revision)
    hub.publish(NAME, files | {"generation_config.json": SAMPLED})
    options = ["--revision", old if revision == "commit" else revision]
    assert folder_of(client.info(*options)).name == old
    assert folder_of(client.info(*options, HF_HUB_OFFLINE="1")).name == old


@pytest.mark.parametrize("revision", ["../../main", "0" * 40])
def test_an_unknown_revision_is_said_so(
    revision: str, hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files)
    assert_fails(client.info("--revision", revision), 3, f"has no revision '{revision}' on the Hub")
    assert len(hub.log) == 1


def test_a_model_that_changes_while_it_is_fetched_is_not_mixed(
    hub: Hub, client: Client, files: Files
) -> None:
    def change() -> Iterator[Trouble]:
        yield from repeat(None, 3)
        hub.publish(NAME, files | {"README.md": b"a new text"})

    hub.publish(NAME, files)
    hub.troubles["file"] = change()
    assert_fails(client.info(), 1, f"{NAME} has just changed on the Hub; run the command again")
    assert folder_of(client.info()).name == hub.models[NAME].branches["main"]


def test_a_model_is_found_by_its_former_name(hub: Hub, client: Client, files: Files) -> None:
    hub.publish("org/new", files)
    hub.renamed[NAME] = "org/new"
    folder = folder_of(client.info())
    assert read_files(folder) == files
    hub.log.clear()
    assert folder_of(client.info()) == folder
    assert hub.asked("file") == hub.asked("cdn") == 0


def test_a_folder_of_that_name_wins(
    hub: Hub, client: Client, files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.publish(NAME, files)
    monkeypatch.chdir(tmp_path)
    tiny.write_checkpoint(tmp_path / NAME, "gpt2")
    paths = str(Path(kvgen.__file__).parents[1])
    run = client.info(PYTHONPATH=paths)
    assert json.loads(run.stdout)["family"] == "gpt2"
    assert hub.log == []
    assert_fails(
        client.info("--revision", "main", PYTHONPATH=paths),
        2,
        f"{NAME} is a folder, and --revision needs a Hub model: leave it out",
    )
    with pytest.raises(UsageError):
        locate(Path(NAME), revision="main")


def test_only_what_can_be_a_name_is_asked_for(hub: Hub, client: Client) -> None:
    long = "x" * 96
    names = ["tiny", "org/tiny-1.1B_v1.0", "_1/2", f"{long}/{long}"]
    others = ["org/tiny/more", "org//tiny", "org/", "/tiny", "../tiny", "./org/tiny", "org/..",
              "org/ti--ny", "org/ti..ny", "-org/tiny", "org/-tiny", "org/tiny-", "org/tiny.",
              "org/tiny.git", f"org/{long}x", f"{long}x/tiny", long * 3, "org/tïny", "org/ti ny",
              "org/tiny\n", "org/tiny?x=1", "org/tiny#x", "org/tiny@main", "org/%2e%2e",
              "org\\tiny", "~/tiny", "hf://org/tiny", f"{hub.url}/{NAME}", ":", "☃"]  # fmt: skip
    run = client.locate(*names, *others)
    assert run.stderr == "" and run.stdout.count("\n") == len(names) + len(others)
    assert [request.fields["name"] for request in hub.log] == names
    assert_fails(client.info(name="org/tiny-"), 3, "org/tiny-: there is no such model folder")


def test_a_path_is_never_a_name_on_the_hub() -> None:
    with pytest.raises(ModelNotFoundError, match="there is no such model folder"):
        locate(Path(NAME))


# --- Who may read -----------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_model_that_is_not_there_is_said_so(token: str | None, hub: Hub, client: Client) -> None:
    run = client.info(**{"HF_TOKEN": token} if token else {})
    assert_fails(run, 3, f"{NAME}: there is no such folder, and no such model on the Hub")
    assert len(hub.log) == 1


def test_a_bad_token_is_said_so(hub: Hub, client: Client, files: Files) -> None:
    hub.publish(NAME, files)
    run = client.info(HF_TOKEN="hf_bad")
    assert_fails(run, 3, f"{NAME}: the Hub refuses the token (401): check HF_TOKEN")


@pytest.mark.parametrize("place", ["variable", "file"])
def test_a_token_opens_a_private_model_and_stays_with_the_hub(
    place: str, hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files)
    hub.models[NAME].private = True
    assert_fails(client.info(), 3, "(for a private one set HF_TOKEN)")
    hub.log.clear()
    if place == "file":  # where `hf auth login` leaves it
        client.home.mkdir(exist_ok=True)
        (client.home / "token").write_text(TOKEN)
    folder_of(client.info(**{"HF_TOKEN": TOKEN} if place == "variable" else {}))
    assert hub.asked("cdn") == 1
    for request in hub.log:  # weights come from another host, by an address that is signed
        assert request.token == (None if request.kind == "cdn" else f"Bearer {TOKEN}")


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_gated_model_is_said_so(
    token: str | None, hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files)
    hub.models[NAME].gated = True
    run = client.info(**{"HF_TOKEN": token} if token else {})
    assert_fails(run, 3, f"{NAME}: is gated: accept its terms on the Hub and set HF_TOKEN")


def test_a_cached_model_that_may_no_longer_be_read_is_not_taken(hub: Hub, again: Client) -> None:
    hub.models[NAME].private = True
    assert_fails(again.info(), 3, "no such model on the Hub")


# --- What goes wrong on the way ---------------------------------------------------------------


def test_a_download_that_breaks_is_taken_up_where_it_broke(hub: Hub, client: Client) -> None:
    files = read_files(default_model())  # the client keeps whole pieces of 10 MiB
    hub.publish(NAME, files)
    hub.troubles["cdn"] = iter(["cut"])
    run = client.info(before=NO_WAITING)
    if run.returncode:  # older clients leave the rest to the next run
        assert_fails(run, 3, UNREACHED)
        run = client.info()
    assert read_files(folder_of(run)) == files
    ranges = [request.range for request in hub.log if request.kind == "cdn"]
    assert ranges == [None, f"bytes={10 * 2**20}-"]
    assert len(hub.sent()) == len(files) + 1


def test_a_connection_that_breaks_every_time_ends_in_one_line(
    hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files)
    hub.troubles["cdn"] = repeat("cut")
    assert_fails(client.info(before=NO_WAITING), 3, UNREACHED)
    hub.troubles.clear()
    hub.log.clear()
    assert read_files(folder_of(client.info())) == files
    assert hub.sent() == [WEIGHTS]


@pytest.mark.parametrize(("kind", "status"), [("file", 500), ("cdn", 503)])
def test_a_file_that_the_hub_fails_to_give_ends_in_one_line(
    kind: Kind, status: int, hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files)
    hub.troubles[kind] = repeat(status)
    assert_fails(client.info(before=NO_WAITING), 3, f"{NAME}: {UNREACHED}")


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_what_is_there_when_a_download_is_interrupted_is_not_fetched_again(
    number: signal.Signals, code: int, message: str, hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files)
    hub.troubles["cdn"] = iter(["stall"])
    process = client.start("info", NAME, "-q", "--json")
    hub.wait_until(lambda: hub.asked("cdn") == 1)
    process.send_signal(number)
    assert_fails(finish(process), code, message)
    hub.log.clear()
    assert read_files(folder_of(client.info())) == files
    assert hub.sent() == [WEIGHTS]


def test_two_processes_may_fetch_a_model_at_the_same_time(
    hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files)
    hub.troubles["cdn"] = iter(["stall"])
    processes = [client.start("info", NAME, "-q", "--json") for _ in range(2)]
    hub.wait_until(lambda: hub.asked("api") == 2 and hub.asked("cdn") > 0)
    hub.go_on.set()
    folders = [folder_of(finish(process)) for process in processes]
    assert folders[0] == folders[1] and read_files(folders[0]) == files


@pytest.mark.parametrize("problem", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_is_said_so(problem: str, hub: Hub, client: Client, files: Files) -> None:
    hub.publish(NAME, files)
    fails = (
        "import errno\nimport huggingface_hub.file_download as client\n"
        f"def full(*_, **__): raise OSError(errno.{problem}, 'no space')\n"
        "client.http_get = full"
    )
    assert_fails(client.info(before=fails), 1, f"{NAME}: the disk is full; what is downloaded")


def test_a_cache_that_cannot_be_written_is_said_so(
    hub: Hub, client: Client, files: Files, tmp_path: Path
) -> None:
    hub.publish(NAME, files)
    (tmp_path / "file").write_text("")
    run = client.info(HF_HOME=str(tmp_path / "file"))
    assert_fails(run, 1, f"{tmp_path / 'file'}")
    assert "Hub" not in run.stderr


def test_an_endpoint_that_is_no_address_is_said_so(client: Client) -> None:
    assert_fails(client.info(HF_ENDPOINT="localhost"), 3, UNREACHED)


# --- stderr -----------------------------------------------------------------------------------


def test_the_warnings_of_the_client_are_not_shown(hub: Hub, client: Client, files: Files) -> None:
    hub.publish(NAME, files)
    no_links_no_space = (
        "import os, shutil\nfrom types import SimpleNamespace\n"
        "def fail(*_, **__): raise OSError('no links')\n"
        "os.symlink = fail\nshutil.disk_usage = lambda _: SimpleNamespace(free=0)"
    )
    run = client.run("info", NAME, "--json", before=no_links_no_space)
    assert (run.returncode, run.stderr) == (0, "")
    assert read_files(Path(json.loads(run.stdout)["folder"])) == files


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_is_shown_on_a_terminal(
    quiet: bool, hub: Hub, client: Client, files: Files
) -> None:
    hub.publish(NAME, files)
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    subprocess.run(
        [sys.executable, "-m", "kvgen", "info", NAME, "--json", *["-q"] * quiet],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env=client.environment(),
        check=True,
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal so
        while piece := os.read(controller, 4096):
            shown += piece
    os.close(controller)
    assert (b"model.safetensors: 100%" in shown) is not quiet
    assert (shown == b"") is quiet
