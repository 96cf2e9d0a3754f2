"""Text that has to match is whole also where -n or the context ends the run."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import kvgen
from kvgen.model import Model
from kvgen.text.closing import LONGEST_WAY
from kvgen.text.constraint import Constraint, ConstraintRun, make_constraint
from kvgen.text.example_text import example_text
from kvgen.text.tokenizer import Tokenizer
from tests import vocabularies
from tests.command import PROMPT, inside
from tests.test_structured import SCHEMAS, tokenizer_of

TEXT = {"type": "string"}


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


UNBOUNDED: dict[str, Any] = {
    "free string": TEXT,
    "min length": an_object(a={"type": "string", "minLength": 30}, b=TEXT),
    "min items": {"type": "array", "items": TEXT, "minItems": 3},
    "required": an_object(a=an_object(b=TEXT, c=an_object(d={"type": "integer"}, e=TEXT))),
    "minimum": an_object(n={"type": "integer", "minimum": 18}, x={"type": "number", "minimum": 7}),
    "any of": {"anyOf": [an_object(a=TEXT), {"type": "array", "items": {"type": "number"}}]},
    "recursive": {
        "$defs": {
            "node": an_object(v=TEXT, kids={"type": "array", "items": {"$ref": "#/$defs/node"}})
        },
        "$ref": "#/$defs/node",
    },
    "optional": {"type": "object", "properties": {"a": an_object(b=TEXT, c=TEXT, d=TEXT)}},
    "anything": {},
    "pattern at the end": {"type": "string", "pattern": "bar$"},
    "patterns within": an_object(
        a={"type": "string", "pattern": "[0-9]"},
        b={"type": "array", "items": {"type": "string", "pattern": "(foo|bär)+"}, "minItems": 2},
        c={"type": "string", "pattern": r"^.*@example\.com$"},
    ),
}
ALL = SCHEMAS | UNBOUNDED
EMAIL = {"type": "string", "format": "email"}


def valid(text: str, schema: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def run_of(
    constraint: Constraint, tokenizer: Tokenizer, n: int, *, seed: int, closing: bool = True
) -> tuple[str, ConstraintRun]:
    """A text of at most n random tokens of those allowed, of which 0 ends it."""
    run, stream, text = constraint.start([0]), tokenizer.stream([]), ""
    random = np.random.default_rng(seed)
    for step in range(n):
        logits = run.mask(random.standard_normal(tokenizer.n_tokens).astype(np.float32))
        token = run.take(int(np.argmax(logits)), n - step - 1 if closing else None)
        text += stream.push(token) if token else ""
        if run.complete:
            break
    return text + stream.finish(), run


@pytest.fixture(scope="module")
def model() -> Model:
    return kvgen.load()


@pytest.mark.parametrize("name", ALL)
def test_from_the_shortest_text_on_every_length_gives_a_whole_text(model: Model, name: str) -> None:
    constraint, tokenizer = model.constraint(json_schema=ALL[name]), model.require_tokenizer()
    shortest = constraint.n_shortest()
    assert shortest is not None
    for n in range(shortest, 81):
        text, run = run_of(constraint, tokenizer, n, seed=n)
        assert run.whole and valid(text, ALL[name]), (n, text)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_texts_of_the_default_model_are_whole(model: Model, name: str) -> None:
    constraint = model.constraint(json_schema=UNBOUNDED[name])
    for seed in range(3):
        n = (constraint.n_shortest() or 0) + 5 * seed
        pieces = list(
            model.generate(
                PROMPT, constraint=constraint, seed=seed, max_new_tokens=n, temperature=1
            )
        )
        assert pieces[-1].whole and len(pieces) <= n
        assert valid("".join(piece.text for piece in pieces), UNBOUNDED[name])
        assert pieces[-1].finish_reason == "length" or not pieces[-1].closed_early


# unigram has no piece for most of the signs of JSON
KINDS = [name for name in (*vocabularies.KINDS, *vocabularies.MERGES) if name != "unigram"]


@pytest.mark.parametrize("name", ["min length", "recursive"])
def test_a_long_text_is_closed_too(model: Model, name: str) -> None:
    constraint, tokenizer = model.constraint(json_schema=UNBOUNDED[name]), model.require_tokenizer()
    for seed in range(2):
        text, run = run_of(constraint, tokenizer, LONGEST_WAY + 40, seed=seed)
        assert run.whole and valid(text, UNBOUNDED[name])


@pytest.mark.parametrize("name", KINDS)
def test_with_every_tokenizer_texts_are_closed_in_time(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(name, tmp_path)
    for schema in ALL.values():
        constraint = make_constraint(tokenizer, json_schema=schema)
        shortest = constraint.n_shortest()
        assert shortest is not None
        for n in (shortest, shortest + 3, shortest + 17):
            text, run = run_of(constraint, tokenizer, n, seed=n)
            assert run.whole and valid(text, schema), (schema, n, text)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_run_with_room_enough_is_not_changed(model: Model, name: str) -> None:
    constraint, tokenizer = model.constraint(json_schema=SCHEMAS[name]), model.require_tokenizer()
    for seed in range(3):
        free, run = run_of(constraint, tokenizer, 200, seed=seed, closing=False)
        if run.complete:
            assert run_of(constraint, tokenizer, 300, seed=seed)[0] == free
            assert run_of(constraint, tokenizer, 3000, seed=seed)[0] == free


def test_a_text_closed_early_is_the_same_with_and_without_the_cache(model: Model) -> None:
    constraint = model.constraint(json_schema=UNBOUNDED["required"])
    options: dict[str, Any] = {"seed": 3, "temperature": 1, "max_new_tokens": 60, "logprobs": 400}
    runs = [
        list(model.generate(PROMPT, constraint=constraint, cache=cache, **options))
        for cache in (True, False)
    ]
    texts = ["".join(piece.text for piece in pieces) for pieces in runs]
    assert texts[0] == texts[1] and runs[0][-1].closed_early
    for piece in runs[0]:  # of the token that was taken, not of the sampler's
        assert dict(piece.top).get(piece.token, piece.logprob) == pytest.approx(piece.logprob)


@pytest.mark.parametrize(
    ("pattern", "n"),
    [
        ("[a-z ]*;", 1), ("(ab)*c", 5), (r"[A-Z][a-z ]+\.", 9), ("(a{40}|b)", 40),
        ("( zebra){9}", 54), ("[a-z]+@[a-z]+", 40), (r"[\s\S]*end", 6), (".*foo.*bar", 8),
    ],
)  # fmt: skip
def test_texts_of_a_pattern_are_closed_in_time(model: Model, pattern: str, n: int) -> None:
    constraint, tokenizer = model.constraint(regex=pattern), model.require_tokenizer()
    for seed in range(8):
        text, run = run_of(constraint, tokenizer, n, seed=seed)
        assert run.whole and re.fullmatch(pattern, text), text


def test_texts_of_a_grammar_are_closed_in_time(model: Model) -> None:
    grammar = 'start: item+\nitem: "(" start ")" | /[a-z]+/ ";"'
    constraint, tokenizer = model.constraint(grammar=grammar), model.require_tokenizer()
    for seed in range(20):
        assert run_of(constraint, tokenizer, 12, seed=seed)[1].whole


def test_the_shortest_text_of_a_pattern_is_short(model: Model) -> None:
    for pattern, most in {"[0-9]": 3, "a": 3, "bar$": 4, r"^.*@example\.com$": 9}.items():
        shortest = model.constraint(json_schema=TEXT | {"pattern": pattern}).n_shortest()
        assert shortest is not None and shortest <= most


@pytest.mark.parametrize(
    "pattern",
    ["bar$", "(foo|bär)+", r"^.*@example\.com$", "[0-9]", r"^[A-Z]{3}-\d+$", "(?i)foo", r"\W\w\D\S",
     r"[^a-c\d]x", "[^a]{2,}", "(?:ab)*?c", "x+?|y{3}", "[[:alpha:]]]", r"\s\\.", "a|"],
)  # fmt: skip
def test_an_example_matches_its_pattern(pattern: str) -> None:
    text = example_text(pattern)
    assert text is not None and len(text) < 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert re.search(pattern, text)


@pytest.mark.parametrize(
    "pattern", [r"\p{L}", "(", r"(a)\1", "a{500}", "a{99999999999}", "(" * 9999, r"\uD800"]
)
def test_a_pattern_that_python_does_not_know_has_no_example(pattern: str) -> None:
    assert example_text(pattern) is None


def test_a_format_is_closed_though_letters_lead_nowhere(model: Model) -> None:
    constraint, tokenizer = model.constraint(json_schema=EMAIL), model.require_tokenizer()
    shortest = constraint.n_shortest()
    assert shortest is not None
    text, run = run_of(constraint, tokenizer, shortest, seed=1)
    assert run.whole and "@" in text


def test_where_no_token_may_follow_in_time_the_text_ends_at_once(model: Model) -> None:
    tokenizer = model.require_tokenizer()
    run = model.constraint(regex="a( zebra)?").start([0])
    run.take(tokenizer.single_id("a"), 1)
    assert run.whole and not run.complete
    assert run.take(tokenizer.single_id(" "), 0) == 0
    assert run.complete and run.closed_early and run.whole


@pytest.mark.parametrize("pattern", ["(ab|cd)+", "a*(bcd)?", "[a-z ]+"])
def test_where_no_token_may_end_the_text_the_last_one_makes_it_whole(
    model: Model, pattern: str
) -> None:
    for seed in range(6):
        pieces = list(
            model.generate(PROMPT, constraint=model.constraint(regex=pattern), seed=seed,
                           max_new_tokens=7, temperature=1.0,
                           logit_bias=dict.fromkeys(model.stop_ids, -np.inf))
        )  # fmt: skip
        assert pieces[-1].whole and re.fullmatch(pattern, "".join(each.text for each in pieces))


# --- the command ------------------------------------------------------------------------------

ASK = ["generate", PROMPT, "--seed", "1", "--temperature", "1"]
SCHEMA = json.dumps(UNBOUNDED["required"])


def test_a_banned_token_does_not_close_a_text(model: Model) -> None:
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 2}
    constraint = model.constraint(json_schema=schema)
    quotes = [i for i in range(model.config.vocab_size) if b'""' in model.tokenizer.token_bytes(i)]  # type: ignore[union-attr]
    for banned in ({}, dict.fromkeys(quotes, -np.inf)):
        pieces = list(
            model.generate(PROMPT, constraint=constraint, max_new_tokens=14, seed=1,
                           temperature=1.0, logit_bias=banned)
        )  # fmt: skip
        assert pieces[-1].whole and not {piece.token for piece in pieces} & set(banned)
        assert valid("".join(piece.text for piece in pieces), schema)


def test_the_command_says_that_a_text_was_closed_early() -> None:
    run = inside(*ASK, "-n", "60", "--json-schema", SCHEMA)
    assert run.returncode == 0 and valid(run.stdout.decode(), UNBOUNDED["required"])
    said = (
        "-n 60 was reached: the text was closed early to match the JSON schema; raise -n for more"
    )
    assert said in run.stderr.decode()
    run = inside(*ASK, "-n", "60", "--json-schema", SCHEMA, "-q", "--json")
    answer = json.loads(run.stdout)
    assert run.returncode == 0 and not run.stderr
    assert answer["whole"] is answer["closed_early"] is True
    assert answer["finish_reason"] == "length"


def test_too_few_tokens_are_told_with_how_many_it_takes(model: Model) -> None:
    shortest = model.constraint(json_schema=SCHEMA).n_shortest()
    assert shortest is not None
    run = inside(*ASK, "-q", "-n", str(shortest // 2), "--json-schema", SCHEMA)
    assert run.returncode == 1
    said = f"raise -n; the shortest text known takes {shortest} tokens"
    assert said in run.stderr.decode()
    assert inside(*ASK, "-q", "-n", str(shortest), "--json-schema", SCHEMA).returncode == 0


def test_a_full_context_closes_the_text_too(model: Model) -> None:
    prompt = model.require_tokenizer().decode(model.encode("The cat sat on the mat. " * 200)[:980])
    run = inside("generate", prompt, "--temperature", "1", "--json-schema", json.dumps(TEXT))
    assert run.returncode == 0 and valid(run.stdout.decode(), TEXT)
