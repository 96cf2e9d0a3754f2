"""Text to ids and back: every kind of tokenizer, whole characters, start tokens, broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import kvgen
from kvgen.errors import CheckpointError, UsageError
from kvgen.loading import default_model
from kvgen.sampling import SamplingOptions
from kvgen.text.tokenizer import Tokenizer, open_tokenizer
from tests import tiny
from tests.command import assert_fails, inside
from tests.vocabularies import KINDS, MERGES, write_merges
from tests.vocabularies import TEXTS as AWKWARD

FILE = default_model() / "tokenizer.json"
TEXTS = ["The cat sat.", " two  spaces\n\ttab", "naïve café — 月の光 🐈‍⬛ ok", "", "\x00\x1b[2J"]


def opened(path: Path, settings: dict[str, Any]) -> Tokenizer:
    tokenizer = open_tokenizer(path.parent, settings)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return opened(FILE, {"eos_token": "<|endoftext|>"})


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def of_kind(kind: str) -> Tokenizer:
    """A tokenizer of each kind."""
    start = "<|endoftext|>" if kind == "byte_level" else "<s>"
    return Tokenizer(KINDS[kind](), {"bos_token": start, "eos_token": "</s>"})


def changed(tmp_path: Path, change: dict[str, Any]) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(FILE.read_text(encoding="utf-8")) | change))
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_token_bytes_join_to_the_text(text: str, tokenizer: Tokenizer) -> None:
    start, *ids = tokenizer.encode(text)
    assert tokenizer.token_bytes(start) == b"<|endoftext|>"
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_an_unknown_id_stands_for_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(99_999) == b""


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_yields_whole_characters_that_join_to_the_text(
    text: str, tokenizer: Tokenizer
) -> None:
    stream = tokenizer.stream(tokenizer.encode("A start."))
    pieces = [stream.push(token) for token in tokenizer.encode(text)[1:]]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.finish() == text


def test_a_character_cut_off_at_the_end_comes_out_as_a_replacement(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream([])
    *most, _ = tokenizer.encode("a月")[1:]
    assert "".join(map(stream.push, most)) + stream.finish() == "a\ufffd"


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ((), "The cat sat on the mat."),
        (("sat",), "The cat "),
        (("t sat o",), "The ca"),  # straddles tokens
        (("mat.", "on"), "The cat sat "),
        (("mat!",), "The cat sat on the mat."),  # held back, then released
        (("T",), ""),
    ],
)
def test_a_stream_ends_before_a_stop_text(
    stops: tuple[str, ...], expected: str, tokenizer: Tokenizer
) -> None:
    stream = tokenizer.stream([], stops=stops)
    text = ""
    for token in tokenizer.encode("The cat sat on the mat.")[1:]:
        text += stream.push(token)
        if stream.stopped:
            break
    assert text + stream.finish() == expected
    assert stream.stopped == (expected != "The cat sat on the mat.")


def test_an_empty_stop_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="must not be empty"):
        tokenizer.stream([], stops=("a", ""))


def test_text_that_is_not_utf8_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="not valid UTF-8"):
        tokenizer.encode(b"\xff".decode(errors="surrogateescape"))


def test_padding_and_truncation_of_a_training_run_are_dropped(tmp_path: Path) -> None:
    path = changed(
        tmp_path,
        {
            "truncation": {
                "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
            },
            "padding": {
                "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
            },
        },
    )  # fmt: skip
    plain = opened(FILE, {}).encode("The cat sat on the mat again")
    assert opened(path, {}).encode("The cat sat on the mat again") == plain


@pytest.mark.parametrize("eos", ["<|endoftext|>", {"content": "<|endoftext|>", "lstrip": False}])
def test_the_end_token_is_found_in_either_form(eos: object) -> None:
    assert opened(FILE, {"eos_token": eos}).eos_id == 0
    assert opened(FILE, {}).eos_id is None


def test_a_start_token_is_added_once(tmp_path: Path) -> None:
    settings = {"bos_token": "<|endoftext|>", "add_bos_token": True}
    bare = changed(tmp_path, {"post_processor": None})
    assert opened(bare, {}).encode("cat")[:1] != [0]
    assert opened(bare, settings).encode("cat")[:1] == [0]
    assert opened(FILE, settings).encode("cat") == opened(FILE, {}).encode("cat")


# --- each kind --------------------------------------------------------------------------------

SENTENCES = [
    "The cat sat on the mat.",
    "it is  here",
    "a \n b",
    "naïve — 月の光 🐈\u200d⬛",
    "x \ufffd y",
]
STARTS = {"sentencepiece": 1, "metaspace": 1, "no_prefix": 1, "unigram": None, "byte_level": 0}


@pytest.mark.parametrize("text", SENTENCES)
def test_every_kind_gives_the_text_back(text: str, kind: str, of_kind: Tokenizer) -> None:
    if kind == "unigram":  # it knows letters only
        text = "".join(letter for letter in text if letter.isascii() and letter.isprintable())
    ids = of_kind.encode(text)
    assert of_kind.decode(ids) == text
    start = STARTS[kind]
    assert ids[:1] == ([start] if start is not None else ids[:1]) and start not in ids[1:]
    in_bytes = b"".join(map(of_kind.token_bytes, ids[start is not None :]))
    space = b"" if kind in ("no_prefix", "byte_level") else b" "
    assert in_bytes == space + text.encode()


@pytest.mark.parametrize("text", SENTENCES)
def test_a_stream_yields_what_decoding_adds_to_the_prompt(text: str, of_kind: Tokenizer) -> None:
    ids = of_kind.encode(text)
    special = 0 if of_kind.eos_id is None else of_kind.eos_id
    for split in range(len(ids) + 1):
        prompt = ids[:split]
        for new in (ids[split:], [*ids[split : split + 1], special, *ids[split + 1 :]]):
            before, whole = of_kind.decode(prompt), of_kind.decode(prompt + new)
            if not whole.startswith(before):  # the prompt ends within a character
                texts = (of_kind.decode(ids[:end]) for end in range(split, -1, -1))
                before = next(text for text in texts if not text.endswith("\ufffd"))
            stream = of_kind.stream(prompt)
            assert "".join(map(stream.push, new)) + stream.finish() == whole[len(before) :]


def test_the_space_between_prompt_and_text_is_kept(of_kind: Tokenizer) -> None:
    prompt, whole = of_kind.encode("The cat"), of_kind.encode("The cat sat")
    assert whole[: len(prompt)] == prompt
    stream = of_kind.stream(prompt)
    assert "".join(map(stream.push, whole[len(prompt) :])) + stream.finish() == " sat"


def test_a_prompt_that_ends_in_a_replacement_is_not_said_again(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream(tokenizer.encode("What is \ufffd"))
    new = tokenizer.encode(" this?")[1:]
    assert "".join(map(stream.push, new)) + stream.finish() == " this?"


def test_a_character_that_the_prompt_began_comes_out_whole(tokenizer: Tokenizer) -> None:
    *prompt, last = tokenizer.encode("The 月")
    stream = tokenizer.stream(prompt)
    new = [last, *tokenizer.encode(" ok")[1:]]
    assert "".join(map(stream.push, new)) + stream.finish() == "月 ok"


def test_special_tokens_are_no_text(of_kind: Tokenizer, kind: str) -> None:
    name = "<|endoftext|>" if kind == "byte_level" else "</s>"
    (number,) = of_kind.encode(name, special_tokens=False)
    stream = of_kind.stream(of_kind.encode("a"))
    assert (of_kind.name(number), of_kind.decode([number])) == (name, "")
    assert stream.push(number) + stream.finish() == ""


def test_tokens_that_the_settings_name_are_special(tmp_path: Path) -> None:
    """In some checkpoints only tokenizer_config.json knows that its end token is one."""
    path = changed(tmp_path, {"added_tokens": [], "post_processor": None})
    assert opened(path, {}).decode([0]) == "<|endoftext|>"
    for settings in ({"eos_token": "<|endoftext|>"}, {"unk_token": {"content": "<|endoftext|>"}}):
        tokenizer = opened(path, settings)
        assert tokenizer.encode("a<|endoftext|>") == [*tokenizer.encode("a"), 0]
        assert tokenizer.decode([0]) == ""


# --- start tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "settings", "starts"),
    [
        (True, {}, True),  # Llama 3, Gemma
        (True, {"add_bos_token": True}, True),
        (True, {"add_bos_token": False}, True),  # tokenizer.json says what it does
        (False, {}, False),  # Qwen, GPT-2
        (False, {"add_bos_token": True}, True),
        (False, {"add_bos_token": False}, False),
        (False, {"add_bos_token": None}, False),
        (False, {"add_bos_token": True, "bos_token": None}, False),
        (False, {"add_bos_token": True, "bos_token": "<nothing>"}, False),
        (True, {"add_eos_token": True}, True),
        (False, {"add_eos_token": True}, False),  # a prompt has no end
    ],
)
@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace", "no_prefix"])
def test_a_text_starts_with_at_most_one_start_token(
    kind: str, template: bool, settings: dict[str, Any], starts: bool
) -> None:
    library = KINDS[kind]()
    if not template:
        library = _without_template(library)
    tokenizer = Tokenizer(library, {"bos_token": "<s>", "eos_token": "</s>"} | settings)
    plain = tokenizer.encode("The cat", special_tokens=False)
    assert plain[0] not in (1, 2) and plain[-1] not in (1, 2)
    assert tokenizer.encode("The cat") == ([1, *plain] if starts else plain)
    assert tokenizer.encode("") == ([1] if starts else [])


def _without_template(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    content = json.loads(library.to_str()) | {"post_processor": None}
    return tokenizers.Tokenizer.from_str(json.dumps(content))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_every_kind_equals_transformers(kind: str, tmp_path: Path) -> None:
    """transformers 5 leaves add_bos_token and add_eos_token aside where tokenizer.json is there."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind == "byte_level":
        settings = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    for flags in ({}, {"add_bos_token": False}, {"add_eos_token": True}):
        content = settings | flags | {"tokenizer_class": "PreTrainedTokenizerFast"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
        reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
        tokenizer = opened(tmp_path / "tokenizer.json", content)
        for text in [*SENTENCES, *AWKWARD]:
            ids = tokenizer.encode(text)
            assert ids == reference(text)["input_ids"]
            assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


# --- vocab.json and merges.txt ----------------------------------------------------------------

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text("utf-8"))


@pytest.mark.parametrize("name", MERGES)
def test_vocabulary_and_merges_equal_the_reference_implementation(
    name: str, tmp_path: Path
) -> None:
    tokenizer = opened(write_merges(tmp_path, name) / "vocab.json", MERGES[name])
    ids = [tokenizer.encode(text) for text in AWKWARD]
    assert ids == GOLDEN[name]["ids"]
    assert [tokenizer.decode(each) for each in ids] == GOLDEN[name]["texts"]


@pytest.mark.parametrize("name", MERGES)
def test_vocabulary_and_merges_equal_the_same_in_one_file(name: str, tmp_path: Path) -> None:
    two = opened(write_merges(tmp_path / "two", name) / "vocab.json", MERGES[name])
    two._tokenizer.save(str(tmp_path / "tokenizer.json"))
    one = opened(tmp_path / "tokenizer.json", MERGES[name])
    for text in AWKWARD:
        assert one.encode(text) == two.encode(text)
        assert one.decode(two.encode(text)) == two.decode(two.encode(text))
    assert (one.n_tokens, one.kind, two.kind) == (two.n_tokens, "BPE", "BPE")


def test_one_file_comes_before_two(tmp_path: Path) -> None:
    path = write_merges(changed(tmp_path, {}).parent, "gpt2")
    assert opened(path / "tokenizer.json", MERGES["gpt2"]).encode("cat")[:1] == [0]


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "BloomTokenizerFast", None, 3])
def test_two_files_of_an_unknown_class_are_no_tokenizer(kind: object, tmp_path: Path) -> None:
    assert open_tokenizer(write_merges(tmp_path, "gpt2"), {"tokenizer_class": kind}) is None


GOOD = {"vocab.json": '{"a": 0, "b": 1, "ab": 2}', "merges.txt": "#version: 0.2\na b\n"}
BROKEN: list[tuple[dict[str, str], dict[str, Any], str]] = [
    ({"vocab.json": "{"}, {}, "EOF while parsing"),
    ({"vocab.json": ""}, {}, "EOF while parsing"),
    ({"vocab.json": "[]"}, {}, "Bad vocabulary json file"),
    ({"vocab.json": "{}", "merges.txt": ""}, {}, "it has no tokens"),
    ({"merges.txt": "a c"}, {}, "Token `c` out of vocabulary"),
    ({"merges.txt": "one\n"}, {}, "Merges text file invalid at line 1"),
    ({"merges.txt": "\udcff"}, {}, "did not contain valid UTF-8"),
]


@pytest.mark.parametrize(("files", "settings", "message"), BROKEN)
def test_broken_files_are_named(
    files: dict[str, str], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    for name, content in (GOOD | files).items():
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError) as raised:
        open_tokenizer(tmp_path, {"tokenizer_class": "GPT2Tokenizer"} | settings)
    text = str(raised.value)
    assert text.startswith(f"{tmp_path}: vocab.json with merges.txt: is not a usable tokenizer: ")
    assert message in text and "\n" not in text


def test_settings_may_list_no_added_tokens(tmp_path: Path) -> None:
    for name, content in GOOD.items():
        (tmp_path / name).write_text(content)
    settings = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": None}
    assert opened(tmp_path / "vocab.json", settings).encode("ab") == [2]


# --- within a checkpoint ----------------------------------------------------------------------


def generate(folder: Path, *arguments: str) -> list[str]:
    return ["generate", "ab", "-m", str(folder), "--backend", "numpy", "-n", "60", *arguments]


def test_a_checkpoint_with_two_files_runs(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path, "gpt2")
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "add_bos_token": True}
    files = {"tokenizer_config.json": json.dumps(settings)}
    files["vocab.json"] = '{"a": 0, "b": 1, "ab": 2, "<s>": 3}'
    for name, content in (GOOD | files).items():
        (folder / name).write_text(content)
    run = inside(*generate(folder, "--greedy", "--json"))
    assert json.loads(run.stdout)["prompt_ids"] == [3, 2]
    (folder / "merges.txt").write_text("a c")
    assert_fails(inside(*generate(folder)), 4, "Token `c` out of vocabulary")


def test_ids_beyond_the_tokenizer_are_never_generated(tmp_path: Path) -> None:
    """The tiny model has 131 ids, this tokenizer 3."""
    folder = tiny.write_checkpoint(tmp_path, "llama_gqa")
    for name, content in GOOD.items():
        (folder / name).write_text(content)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    run = inside(*generate(folder, "--temperature", "5", "--seed", "1", "--json"))
    assert set(json.loads(run.stdout)["ids"]) == {0, 1, 2}
    pieces = kvgen.load(folder, backend="numpy").generate(
        [0], max_new_tokens=60, sampling=SamplingOptions(temperature=5.0), seed=2
    )
    assert {piece.token for piece in pieces} == {0, 1, 2}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tokenizer.model", "tokenizer.json is missing (found tokenizer.model; to convert: python"),
        ("vocab.json", "tokenizer.json is missing (found vocab.json; to convert: python -c"),
        (None, "tokenizer.json is missing"),
    ],
)
def test_a_model_without_a_tokenizer_computes_and_tells_how_to_convert(
    file: str | None, message: str, tmp_path: Path
) -> None:
    folder = tiny.write_checkpoint(tmp_path, "llama_gqa")
    if file is not None:
        (folder / file).write_bytes(b"\x0a\x07")
    for command in ("generate", "inspect-attention"):
        assert_fails(inside(command, "Hi", "-m", str(folder), "--backend", "numpy"), 4, message)
    model = kvgen.load(folder, backend="numpy")
    assert model.logits([1, 2, 3]).shape == (3, 131)
    pieces = list(model.generate([1, 2, 3], max_new_tokens=4, sampling=SamplingOptions()))
    assert "".join(piece.text for piece in pieces) == ""


def byte_fallback(tmp_path: Path) -> Tokenizer:
    """A SentencePiece kind of tokenizer: unknown characters are spelled as tokens of one byte."""
    pieces = ["<unk>", "▁", "a", "b", "▁a", "▁b", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True
        )
    )
    library.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    library.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    return opened(tmp_path / "tokenizer.json", {})


def test_tokens_of_one_byte_stream_as_characters(tmp_path: Path) -> None:
    tokenizer = byte_fallback(tmp_path)
    ids = tokenizer.encode("a 月 b 🐈 a")
    assert b"".join(map(tokenizer.token_bytes, ids)) == " a 月 b 🐈 a".encode()
    stream = tokenizer.stream([])
    assert "".join(map(stream.push, ids)) + stream.finish() == "a 月 b 🐈 a"


def test_stray_bytes_never_stop_a_stream(tmp_path: Path) -> None:
    tokenizer = byte_fallback(tmp_path)
    cat = tokenizer.encode("🐈")[1:]
    random = np.random.RandomState(0)
    for prompt in ([], tokenizer.encode("a 🐈")):
        for _ in range(300):
            stream = tokenizer.stream(prompt)
            ids = [*cat, *random.randint(1, 262, 12).tolist(), 4, 5]
            text = "".join(map(stream.push, ids)) + stream.finish()
            assert text.endswith(("a b", "ab")), text


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": 3}'])
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: is not a usable tokenizer"):
        opened(path, {})
