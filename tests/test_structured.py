"""Text that has to match a JSON schema, a regular expression or a grammar."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

import kvgen
from kvgen.errors import CheckpointError, KvgenError, UsageError
from kvgen.model import Model
from kvgen.sampling import Sampler, SamplingOptions
from kvgen.text.constraint import Constraint, ConstraintRun, make_constraint
from kvgen.text.grammar import as_lark
from kvgen.text.tokenizer import Tokenizer, find_tokenizer
from tests import vocabularies
from tests.command import PROMPT, assert_fails, inside

WORD = {"type": "string", "maxLength": 12}
PERSON = {
    "type": "object",
    "properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
}
SCHEMAS: dict[str, Any] = {
    "enum": {"enum": ["yes", "no", "</s>", "<|endoftext|>", 3, None, "naïve 月"]},
    "nested": {
        "type": "object",
        "properties": {"who": PERSON, "tall": {"type": "boolean"}},
        "required": ["who", "tall"],
    },
    "array": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 4},
    "numbers": {
        "type": "array",
        "items": {"type": "number", "minimum": -2.5, "maximum": 100},
        "minItems": 3,
        "maxItems": 3,
    },
    "string": WORD,
    "pattern": {"type": "string", "pattern": '^[é月"\\\\]{3,6}$'},
    "anyOf": {"anyOf": [{"type": "null"}, PERSON, {"type": "integer", "multipleOf": 7}]},
    "oneOf": {"oneOf": [{"type": "boolean"}, WORD]},
    "ref": {
        "$defs": {"leaf": {"type": "object", "properties": {"a": WORD}, "required": ["a"]}},
        "type": "array",
        "items": {"$ref": "#/$defs/leaf"},
        "minItems": 1,
        "maxItems": 2,
    },
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
            {"type": "object", "properties": {"b": WORD}, "required": ["b"]},
        ],
        "additionalProperties": False,
    },
    "format": {"type": "string", "format": "date"},
}
del SCHEMAS["allOf"]["additionalProperties"]
OPEN_ENDED = ("allOf", "numbers")  # further properties, any number of digits


def valid(text: str, schema: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def drive(constraint: Constraint, tokenizer: Tokenizer, *, seed: int, most: int = 400) -> str:
    """A text of random tokens that the constraint allows; "" where it does not come to its end."""
    run, stream, text = constraint.start(()), tokenizer.stream([]), ""
    random = np.random.default_rng(seed)
    for _ in range(most):
        logits = run.mask(random.standard_normal(tokenizer.n_tokens).astype(np.float32))
        token = int(np.argmax(logits))
        run.take(token)
        text += stream.push(token)
        if run.complete or (run.whole and random.random() < 0.3):
            return text + stream.finish()
    return ""


# --- tokenizers of every kind -----------------------------------------------------------------


def tokenizer_of(name: str, folder: Path) -> Tokenizer:
    if name in vocabularies.KINDS:
        return Tokenizer(vocabularies.KINDS[name](), {})
    vocabularies.write_merges(folder, name)
    tokenizer = find_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize(
    "name", [*vocabularies.KINDS, *vocabularies.MERGES]
)  # fmt: skip
def test_with_every_tokenizer_texts_match(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(name, tmp_path)
    if name == "unigram":  # it has no piece for most of the signs of JSON
        constraint = make_constraint(tokenizer, regex="(the|a) cat sat( on)?")
        for seed in range(5):
            assert re.fullmatch("(the|a) cat sat( on)?", drive(constraint, tokenizer, seed=seed))
        return
    n_texts = 0
    for schema in SCHEMAS.values():
        constraint = make_constraint(tokenizer, json_schema=schema)
        for seed in range(4):
            text = drive(constraint, tokenizer, seed=seed)
            n_texts += bool(text)
            assert not text or valid(text, schema), text
    assert n_texts > 30


def test_a_tokenizer_without_the_signs_of_json_is_told_so() -> None:
    tokenizer = Tokenizer(vocabularies.unigram(), {})
    constraint = make_constraint(tokenizer, json_schema={"type": "array"})
    with pytest.raises(UsageError, match="allows no token of this model at the beginning"):
        drive(constraint, tokenizer, seed=0)


def test_a_tokenizer_that_puts_spaces_between_tokens_is_refused() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"the": 0, "cat": 1}, unk_token="the"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="its texts are not its tokens in a row"):
        make_constraint(Tokenizer(words, {}), regex="thecat")


# --- masks against brute force ----------------------------------------------------------------

ALPHABET = "abc"
TEXTS = ["".join(each) for n in (1, 2, 3) for each in itertools.product(ALPHABET, repeat=n)]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """All texts of one to three letters; a second token for "a", one for nothing, a special one."""
    names = ["<s>", *TEXTS, "<0x61>", ""]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, "<s>"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(tokenizer, {})


def random_pattern(random: np.random.Generator, depth: int = 3) -> str:
    """A regular expression that texts of up to eight letters match."""
    kind = random.integers(5) if depth else 0
    if kind == 0:
        return str(random.choice([*ALPHABET, "[ab]"]))
    parts = [random_pattern(random, depth - 1) for _ in range(2)]
    if kind <= 2:
        return "".join(parts)
    if kind == 3:
        return f"({parts[0]}|{parts[1]})"
    return f"({parts[0]}){random.choice(['?', '{0,2}', '{1,2}'])}"


@pytest.mark.parametrize("seed", range(30))
def test_a_token_is_allowed_exactly_where_a_text_can_go_on_with_it(
    small: Tokenizer, seed: int
) -> None:
    random = np.random.default_rng(seed)
    pattern = random_pattern(random)
    texts = {
        text
        for n in range(1, 9)
        for text in map("".join, itertools.product(ALPHABET, repeat=n))
        if re.fullmatch(pattern, text)
    }
    beginnings = {text[:n] for text in texts for n in range(len(text) + 1)}
    constraint = make_constraint(small, regex=pattern)
    for _ in range(5):
        run, text = constraint.start([0]), ""
        while not run.complete:
            allowed = np.isfinite(run.mask(np.zeros(small.n_tokens, np.float32)))
            for token in range(1, small.n_tokens):
                piece = small.token_bytes(token).decode()
                expected = bool(piece) and text + piece in beginnings
                assert allowed[token] == expected, (pattern, text, piece)
            may_end = bool(re.fullmatch(pattern, text))
            assert allowed[0] == run.whole == may_end
            token = int(random.choice([each for each in np.flatnonzero(allowed) if each]))
            run.take(token)
            text += small.token_bytes(token).decode()
        assert text in texts


# --- the default model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return kvgen.load()


@pytest.mark.parametrize("name", SCHEMAS)
def test_texts_of_the_default_model_match(model: Model, name: str) -> None:
    constraint = model.constraint(json_schema=SCHEMAS[name])
    for seed in range(4):
        options = {"temperature": 0} if seed == 0 else {"temperature": 1.5, "top_k": 50}
        pieces = list(
            model.generate(PROMPT, constraint=constraint, seed=seed, max_new_tokens=120, **options)
        )
        text = "".join(piece.text for piece in pieces)
        whole = pieces[-1].whole
        assert whole or (name in OPEN_ENDED and pieces[-1].finish_reason == "length")
        assert not whole or valid(text, SCHEMAS[name]), text


def test_the_same_seed_gives_the_same_text_with_and_without_the_cache(model: Model) -> None:
    constraint = model.constraint(json_schema=PERSON)
    texts = {
        "".join(
            piece.text
            for piece in model.generate(PROMPT, constraint=constraint, seed=5, cache=cache)
        )
        for cache in (True, False, True)
    }
    assert len(texts) == 1 and valid(texts.pop(), PERSON)


def test_two_runs_of_one_constraint_do_not_disturb_each_other(model: Model) -> None:
    constraint = model.constraint(json_schema=PERSON)
    runs = [model.generate(PROMPT, constraint=constraint, seed=seed) for seed in (1, 2)]
    texts = ["", ""]
    for pieces in itertools.zip_longest(*runs):
        for n, piece in enumerate(pieces):
            texts[n] += piece.text if piece is not None else ""
    assert all(valid(text, PERSON) for text in texts)


def test_log_probabilities_are_those_before_the_mask(model: Model) -> None:
    free = next(model.generate(PROMPT, temperature=0, logprobs=3))
    bound = next(
        model.generate(
            PROMPT, temperature=0, logprobs=3, constraint=model.constraint(regex="zebra")
        )
    )
    assert bound.top == free.top and bound.logprob < free.logprob and free.whole is None


def test_a_run_without_any_stop_id_ends_where_nothing_can_follow(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "stop_ids", frozenset())
    pieces = list(model.generate(PROMPT, constraint=model.constraint(regex="[ab]{3}")))
    assert re.fullmatch("[ab]{3}", "".join(piece.text for piece in pieces))
    assert pieces[-1].finish_reason == "stop" and pieces[-1].whole


def test_every_stop_id_may_end_a_text_and_only_where_it_may_end(model: Model) -> None:
    tokenizer = model.require_tokenizer()
    stops = [tokenizer.single_id("."), 0, tokenizer.n_tokens + 7]
    run = model.constraint(regex="a.b?").start(stops)
    logits = np.zeros(tokenizer.n_tokens, np.float32)
    for text in ("a", "x"):
        masked = run.mask(logits)
        assert not np.isfinite(masked[stops[:2]]).any()  # also the text of a stop id
        run.take(tokenizer.single_id(text))
    assert run.whole and not run.complete
    assert np.isfinite(run.mask(logits)[stops[:2]]).all()
    run.take(stops[0])
    assert run.whole and run.complete


@pytest.mark.parametrize("name", [".", "<|endoftext|>"])
@pytest.mark.parametrize("stop", [(), (".", "<|endoftext|>")])
def test_the_stop_id_that_ends_a_text_is_no_part_of_it(
    name: str, stop: tuple[str, ...], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = model.require_tokenizer().single_id(name)
    monkeypatch.setattr(Model, "stop_ids", frozenset({end}))
    constraint = model.constraint(regex="[ab]+")
    options: dict[str, Any] = {"logit_bias": {end: 100}, "stop": stop, "constraint": constraint}
    pieces = list(model.generate(PROMPT, **options))
    assert pieces[-1].token == end
    assert re.fullmatch("[ab]+", "".join(piece.text for piece in pieces))
    assert pieces[-1].finish_reason == "stop" and pieces[-1].whole


@pytest.mark.parametrize("extra", [-1000, 0, 1, 300])
def test_logits_may_be_more_or_fewer_than_tokens(model: Model, extra: int) -> None:
    n_tokens = model.require_tokenizer().n_tokens
    run = model.constraint(regex="[a-z]{2,4}").start(model.stop_ids)
    logits = np.random.default_rng(0).standard_normal(n_tokens + extra).astype(np.float32)
    masked = run.mask(logits)
    assert len(masked) == min(n_tokens, n_tokens + extra)
    kept = np.isfinite(masked)
    assert kept.any() and np.array_equal(masked[kept], logits[: len(masked)][kept])


def test_a_bias_that_bans_every_allowed_token_is_told(model: Model) -> None:
    token = model.require_tokenizer().single_id("z")
    constraint = model.constraint(regex="z")
    with pytest.raises(UsageError, match="ban every token that may follow"):
        list(model.generate(PROMPT, constraint=constraint, logit_bias={token: -np.inf}))


def test_a_token_that_is_not_allowed_ends_the_run(model: Model) -> None:
    run = model.constraint(regex="ab").start(())
    with pytest.raises(KvgenError, match="cannot go on"):
        run.take(model.require_tokenizer().single_id("z"))


def test_penalties_and_filters_never_choose_a_masked_token(model: Model) -> None:
    run = model.constraint(regex="[ab]+").start(())
    masked = run.mask(np.zeros(5000, np.float32))
    allowed = set(np.flatnonzero(np.isfinite(masked)).tolist())
    for options in (
        {"top_k": 4000}, {"top_p": 0.99}, {"min_p": 0.5}, {"repetition_penalty": 3.0},
        {"presence_penalty": 5.0, "temperature": 0.0}, {"temperature": 1e-30},
    ):  # fmt: skip
        sampler = Sampler(SamplingOptions(**{"temperature": 1.0, **options}), seed=1)
        assert {sampler(masked, [*allowed] * 2) for _ in range(20)} <= allowed


# --- grammars ---------------------------------------------------------------------------------


def test_a_grammar_in_larks_syntax_is_followed(model: Model) -> None:
    grammar = 'start: "The " animal " sat" ("." | "!")\nanimal: "cat" | /d[aeiou]g/'
    pieces = model.generate(PROMPT, constraint=model.constraint(grammar=grammar), seed=1)
    text = "".join(piece.text for piece in pieces)
    assert re.fullmatch(r"The (cat|d[aeiou]g) sat[.!]", text)


def test_schemas_are_closed_where_that_changes_no_meaning() -> None:
    def closed(schema: Any) -> int:
        return as_lark("json-schema", schema, "here").count('"additionalProperties": false')

    assert closed(PERSON) == 1 and closed(SCHEMAS["nested"]) == 2 and closed(SCHEMAS["ref"]) == 1
    assert closed({"enum": [{"properties": {}}]}) == 0  # a constant, no schema
    assert closed({"properties": {"properties": {"type": "object"}}}) == 1
    assert closed(SCHEMAS["allOf"]) == 0
    assert closed(PERSON | {"additionalProperties": WORD}) == 0
    assert closed(PERSON | {"required": ["other"]}) == 0
    assert closed(PERSON | {"minProperties": 1}) == 0
    assert closed({"anyOf": [PERSON], "required": ["name"]}) == 0
    assert closed({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": PERSON}}) == 2


def test_a_schema_may_ask_for_other_white_space(model: Model) -> None:
    schema = {"enum": [[1, 2]], "x-guidance": {"item_separator": ","}}
    pieces = model.generate(PROMPT, constraint=model.constraint(json_schema=schema))
    assert "".join(piece.text for piece in pieces) == "[1,2]"


def test_a_schema_may_say_that_items_need_not_differ(model: Model) -> None:
    schema = {"type": "array", "items": {"const": 1}, "uniqueItems": False, "minItems": 2}
    schema |= {"maxItems": 2}
    pieces = model.generate(PROMPT, constraint=model.constraint(json_schema=schema))
    assert "".join(piece.text for piece in pieces) == "[1, 1]"
    assert "uniqueItems" in as_lark("json-schema", {"const": {"uniqueItems": False}}, "")


# --- messages ---------------------------------------------------------------------------------

DEEP = '{"type": "array", "items": ' * 5000 + "{}" + "}" * 5000
CHAIN = {
    "$ref": "#/$defs/a0",
    "$defs": {
        f"a{n}": {"type": "array", "items": {"$ref": f"#/$defs/a{min(n + 1, 4000)}"}}
        for n in range(4001)
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"json_schema": "{"}, "is not JSON: "),
        ({"json_schema": '{"a": NaN}'}, "is not JSON: NaN"),
        ({"json_schema": {"a": {1}}}, "is not JSON: Object of type set"),
        ({"json_schema": "[1]"}, "schema must be an object or boolean"),
        ({"json_schema": False}, "schema is false"),
        ({"json_schema": {"type": "strin"}}, "Invalid type: strin"),
        ({"json_schema": {"not": {}}}, 'Unimplemented keys: ["not"]'),
        ({"json_schema": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}, "use anyOf"),
        ({"json_schema": {"type": "string", "pattern": "(?=a)"}}, "look-around"),
        ({"json_schema": {"items": {"minProperties": 2}}}, "names may come twice: list"),
        ({"json_schema": {"$ref": "https://example.org/x"}}, "Resource 'https://example.org/x'"),
        ({"json_schema": {"type": "integer", "multipleOf": 1000000007}}, "fuel exhausted"),
        ({"json_schema": DEEP}, "nested too deeply"),
        ({"json_schema": {"enum": ["x" * 300_000]}}, "it may have 262,144"),
        ({"json_schema": {"type": "string", "pattern": "a?" * 5000}}, "a pattern has 10,000"),
        ({"regex": "["}, "unclosed character class"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": "a" * 9000}, "a pattern has 9,000 characters; it may have 8,192"),
        ({"regex": 3}, "is int; it must be text"),
        ({"grammar": 'strt: "a"'}, "no start rule found"),
        ({"grammar": 'start: "a" | b'}, 'line 1, column 8: unknown name: "b"'),
        ({"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "too deeply nested"),
        ({}, "one of json_schema, regex and grammar"),
        ({"regex": "a", "grammar": 'start: "a"'}, "one of json_schema, regex and grammar"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else next(iter(value), "none"),
)
def test_what_cannot_be_used_is_told_in_one_line(
    model: Model, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        model.constraint(**wrong)
    assert message in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "endless", [{"json_schema": {"$ref": "#"}}, {"grammar": "start: start"}]
)  # fmt: skip
def test_a_grammar_without_any_text_is_told_at_the_beginning(
    model: Model, endless: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="allows no token of this model at the beg"):
        list(model.generate(PROMPT, constraint=model.constraint(**endless)))


def test_a_long_chain_of_references_does_not_end_the_process(model: Model) -> None:
    constraint = model.constraint(json_schema=CHAIN)
    pieces = model.generate(PROMPT, constraint=constraint, temperature=0, max_new_tokens=3)
    assert "".join(piece.text for piece in pieces).startswith("[")


@pytest.mark.parametrize("pattern", ["(a{1000}){1000}b", "(a|b)*a(a|b){2000}", "(a*)*b"])
def test_a_pattern_that_would_explode_does_not(model: Model, pattern: str) -> None:
    pieces = model.generate(
        "A", constraint=model.constraint(regex=pattern), max_new_tokens=5, temperature=0
    )
    assert set("".join(piece.text for piece in pieces)) <= {"a", "b"}


# --- the command ------------------------------------------------------------------------------

ASK = ["generate", PROMPT, "--seed", "1"]


def test_a_schema_may_come_from_a_file_or_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text("\ufeff" + json.dumps(PERSON), encoding="utf-8")
    runs = [inside(*ASK, "-v", "--json-schema", value) for value in (str(file), json.dumps(PERSON))]
    for run in runs:
        assert run.returncode == 0 and valid(run.stdout.decode(), PERSON)
        said = run.stderr.decode()
        assert "sampling: JSON schema > top-p 0.9 > temperature 0.7" in said
        assert re.search(r"^schema +\d+ tokens +\S+ m?s   \(\S+ ms/token, part of", said, re.M)
    assert runs[0].stdout == runs[1].stdout


def test_the_json_names_the_constraint() -> None:
    said = json.loads(inside(*ASK, "--json", "--regex", "yes|no").stdout)
    assert said["text"] in ("yes", "no") and said["finish_reason"] == "stop"
    assert said["constraint"] == "regex" and said["whole"] is True
    assert said["timings"]["constraint_seconds"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "3"], "has cut it after 3 tokens: raise -n; the shortest text known takes 16"),
        (["--stop", "name"], "a --stop text has cut it: leave --stop out"),
    ],
)
def test_a_text_that_is_cut_is_kept_and_told(options: list[str], message: str) -> None:
    run = inside(*ASK, "-q", "--json-schema", json.dumps(PERSON), *options)
    assert run.returncode == 1 and run.stdout.startswith(b'{"')
    assert message in run.stderr.decode() and run.stderr.count(b"\n") == 1


def test_a_text_that_the_context_cuts_is_told(model: Model) -> None:
    prompt = model.require_tokenizer().decode(model.encode("The cat sat on the mat. " * 200)[:990])
    run = inside("generate", prompt, "-q", "--regex", "( zebra){300}")
    assert run.returncode == 1 and run.stdout.startswith(b" zebra")
    said = run.stderr.decode()
    assert re.search(r"the context ends after \d\d tokens: shorten the prompt, or let the", said)


def test_a_text_that_may_end_where_it_is_cut_is_whole() -> None:
    run = inside(*ASK, "-q", "-n", "3", "--regex", "[a-z ]*")
    assert run.returncode == 0 and re.fullmatch("[a-z ]*", run.stdout.decode())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--regex", "a", "--grammar", "x"], "--regex and --grammar exclude each other"),
        (["--json-schema", "x", "--regex", "a"], "--json-schema and --regex exclude each other"),
        (["--regex", "a", "--ignore-eos"], "--regex and --ignore-eos exclude each other"),
        (["--json-schema", "no.json"], "no.json: cannot be read: No such file"),
        (["--grammar", "."], ".: cannot be read: Is a directory"),
        (["--json-schema", "{"], "--json-schema: is not JSON: "),
        (["--regex", "["], "--regex: unclosed character class"),
    ],
)
def test_options_that_cannot_be_are_told(options: list[str], message: str) -> None:
    assert_fails(inside(*ASK, "-q", *options), 2, message)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    for content, message in ((b"hello", "is not JSON: Expecting"), (b"\xff", "is not valid UTF-8")):
        file.write_bytes(content)
        assert_fails(inside(*ASK, "-q", "--json-schema", str(file)), 2, f"{file}: {message}")


def test_without_the_library_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    run = inside(*ASK, "-q", "--regex", "a")
    assert_fails(run, 2, "structured output needs llguidance: pip install 'kvgen[structured]'")


def test_the_prompt_cache_works_with_a_schema(tmp_path: Path) -> None:
    file = str(tmp_path / "kept.safetensors")
    arguments = [*ASK, "--json", "--json-schema", json.dumps(PERSON), "--prompt-cache", file]
    first, second = (json.loads(inside(*arguments).stdout) for _ in range(2))
    assert first["text"] == second["text"] and valid(first["text"], PERSON)
    assert second["prompt_cache"]["reused"] > 0


def test_a_run_holds_the_state_not_the_constraint(model: Model) -> None:
    constraint = model.constraint(regex="ab")
    token = model.require_tokenizer().single_id("ab")
    for _ in range(2):
        run: ConstraintRun = constraint.start(())
        run.take(token)
        assert run.complete
