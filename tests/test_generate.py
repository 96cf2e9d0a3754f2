"""Generation: what is run for each token, when it ends, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvgen
from kvgen import prompt_cache
from kvgen.errors import CheckpointError, UsageError
from kvgen.generate import generate, usual_new_tokens
from kvgen.model import Model
from kvgen.sampling import Sampler, SamplingOptions
from kvgen.session import Session
from tests import tiny
from tests.conftest import BACKENDS, Loader
from tests.sequences import GREEDY, fed, steps_of

PROMPT = tiny.make_ids(12, seed=3)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
SAMPLED = SamplingOptions(temperature=1.0, top_p=0.95)


def run(model: Model, *, use_cache: bool, options: SamplingOptions, seed: int = 0) -> list[int]:
    sampler = Sampler(options, seed=seed)
    steps = steps_of(model.engine, PROMPT, 20, sampler=sampler, reuse_cache=use_cache)
    return [step.token for step in steps]


@every_backend
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_tokens_are_the_same_without_the_cache(
    name: str, options: SamplingOptions, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend)
    assert run(model, use_cache=True, options=options) == run(
        model, use_cache=False, options=options
    )


def test_both_engines_choose_the_same_tokens(tiny_model: Loader) -> None:
    one, other = (tiny_model("llama3_mqa", backend=backend) for backend in BACKENDS)
    assert run(one, use_cache=True, options=SAMPLED) == run(other, use_cache=True, options=SAMPLED)


@pytest.fixture(scope="module")
def in_f32() -> dict[str, Model]:
    """The default model with all numbers in float32: what differs then is the order of sums."""
    ways: dict[str, dict[str, Any]] = {
        "numpy": {"backend": "numpy"},
        "numba": {"backend": "numba"},
        "numba, 2 threads, stepwise": {"backend": "numba", "threads": 2, "prefill": "stepwise"},
    }
    return {
        name: kvgen.load(dtype="f32", cache_dtype="f32", **options)
        for name, options in ways.items()
    }


@pytest.mark.parametrize(
    "options", [GREEDY, SamplingOptions(temperature=0.8, top_p=0.95)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize(
    "prompt", ["The old man said to the fox, 👋", "def add(a, b):\n    return"]
)
def test_the_text_is_the_same_whatever_computes_it(
    prompt: str, options: SamplingOptions, in_f32: dict[str, Model], tmp_path: Path
) -> None:
    texts, n_new = {}, 24
    for name, model in in_f32.items():
        ids, file = model.encode(prompt), tmp_path / "file"

        def text(
            session: Session | None = None, *, cache: bool = True, model: Model = model
        ) -> str:
            pieces = model.generate(
                prompt, max_new_tokens=n_new, sampling=options, seed=3, cache=cache, session=session
            )
            return "".join(piece.text for piece in pieces)

        texts[name, "cache"] = text()
        texts[name, "no cache"] = text(cache=False)
        for chunk in (1, 7):
            session = Session(model.engine, len(ids) + n_new)
            session.feed(ids[:-1], chunk=chunk)
            session.reuses_prefix = True
            texts[name, f"chunks of {chunk}"] = text(session)
        for cut in (1, len(ids) // 2, len(ids)):
            prompt_cache.save(file, model, fed(model.engine, ids[:cut]))
            session = Session(model.engine, len(ids) + n_new)
            prompt_cache.load(file, model, session, ids)
            texts[name, f"prompt cache of {cut}"] = text(session)
    assert texts == dict.fromkeys(texts, texts["numpy", "no cache"])


@every_backend
@pytest.mark.parametrize(
    ("use_cache", "expected"), [(True, [12, 1, 1, 1]), (False, [12, 13, 14, 15])]
)
def test_positions_count_the_work(
    use_cache: bool, expected: list[int], backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model("gpt2", backend=backend).engine
    steps = steps_of(engine, PROMPT, 4, reuse_cache=use_cache)
    assert [step.positions for step in steps] == expected


def test_logprobs_are_those_of_the_logits(tiny_model: Loader) -> None:
    model = tiny_model("gpt2")
    first, *_ = steps_of(model.engine, PROMPT, 2, sampler=Sampler(SAMPLED, seed=1))
    logits = model.logits(PROMPT)[-1].astype(np.float64)
    expected = logits[first.token] - np.log(np.exp(logits).sum())
    assert first.logprob == pytest.approx(expected, abs=1e-5)


def test_a_stop_id_is_yielded_and_ends_the_run(tiny_model: Loader) -> None:
    engine = tiny_model("gpt2").engine
    tokens = [step.token for step in steps_of(engine, PROMPT, 20)]
    stop = tokens[5]
    stopped = steps_of(engine, PROMPT, 20, stop_ids={stop})
    assert [step.token for step in stopped] == tokens[: tokens.index(stop) + 1]


def test_no_new_tokens_is_a_prefill_alone(tiny_model: Loader) -> None:
    engine = tiny_model("gpt2").engine
    session = Session(engine, 12)
    assert list(generate(session, PROMPT, sampler=Sampler(GREEDY), max_new_tokens=0)) == []
    assert list(session.ids) == PROMPT


@every_backend
def test_a_feed_tells_of_each_chunk_and_of_what_it_took(
    backend: str, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_model("llama_gqa", backend=backend).engine
    if backend == "numba":  # whose chunks hold more than 250
        monkeypatch.setattr(engine, "_chunk", 192)
    done: list[int] = []
    session = Session(engine, 251, on_progress=done.append)
    session.feed(tiny.make_ids(250))
    assert sum(done) == 250 and len(done) > 1
    assert session.positions_run == 250
    n_heads = engine.config.n_heads
    for rows in (session.rows_read.k, session.rows_read.v):
        assert set(rows) == {n_heads * 250 * 251 // 2}
    session.feed([5])
    assert session.positions_run == 1 and set(session.rows_read.k) == {n_heads * 251}
    assert done[-1] == 1
    session.rewind(4)
    assert list(session.ids) == tiny.make_ids(4)


def test_the_whole_context_can_be_used(tiny_model: Loader) -> None:
    engine = tiny_model("gpt2").engine
    ids = tiny.make_ids(250)
    steps = list(steps_of(engine, ids, 6))
    assert len(steps) == 6


@pytest.mark.parametrize(
    ("n_prompt", "n_new", "message"),
    [
        (0, 5, "the prompt is empty"),
        (250, 8, "250 prompt tokens and 8 new ones exceed the context of 256: at most 7 new"),
        (256, 2, "exceed the context of 256: at most 1 new token fits"),
        (257, 0, "exceed the context of 256: shorten the prompt"),
        (5, -1, "cannot generate -1 tokens"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(
    n_prompt: int, n_new: int, message: str, tiny_model: Loader
) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(UsageError, match=message):
        list(model.generate(tiny.make_ids(n_prompt), max_new_tokens=n_new))


def test_pieces_carry_text_and_reason(storyteller: Model) -> None:
    pieces = list(storyteller.generate("The cat", max_new_tokens=5, sampling=GREEDY))
    assert [piece.finish_reason for piece in pieces] == [None] * 4 + ["length"]
    assert storyteller.require_tokenizer().decode([piece.token for piece in pieces]) == "".join(
        piece.text for piece in pieces
    )


def test_a_stop_text_ends_the_run_before_it(storyteller: Model) -> None:
    full = _text(storyteller, stop=())
    stopped = _text(storyteller, stop=[full[20:26]])
    assert stopped == full[: full.index(full[20:26])]


def _text(model: Model, *, stop: Sequence[str]) -> str:
    return "".join(
        piece.text
        for piece in model.generate("The cat", max_new_tokens=40, sampling=GREEDY, stop=stop)
    )


def test_the_default_model_samples_as_it_recommends(storyteller: Model) -> None:
    assert storyteller.sampling == SamplingOptions(temperature=0.7, top_p=0.9)
    one, again, other = (
        [piece.token for piece in storyteller.generate("Once", max_new_tokens=12, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_model_without_tokenizer_takes_ids_only(tiny_model: Loader) -> None:
    model = tiny_model("gpt2")
    pieces = list(model.generate(PROMPT, max_new_tokens=3))
    assert [piece.text for piece in pieces] == ["", "", ""]
    with pytest.raises(CheckpointError, match=r"tokenizer.json is missing"):
        list(model.generate("text"))


@pytest.mark.parametrize("ids", [[], [1] * 300, [500]])
@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_of_ids_that_do_not_fit_are_refused(
    ids: list[int], use_cache: bool, tiny_model: Loader
) -> None:
    with pytest.raises(UsageError):
        tiny_model("gpt2").logits(ids, cache=use_cache)


@pytest.mark.parametrize("cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("name", ["gpt2", "llama_gqa"])  # learned positions, and RoPE
@every_backend
def test_the_last_new_token_needs_no_position(
    name: str, backend: str, cache: bool, tiny_model: Loader
) -> None:
    model = tiny_model(name, backend=backend)
    context = model.config.max_context
    ids = tiny.make_ids(context)
    for n_prompt, n_new in ((context, 1), (context - 1, 2)):
        pieces = list(model.generate(ids[:n_prompt], max_new_tokens=n_new, cache=cache))
        assert len(pieces) == n_new or pieces[-1].finish_reason == "stop"
        assert pieces[0].token == int(model.logits(ids[:n_prompt])[-1].argmax())
        with pytest.raises(UsageError, match=f"at most {n_new} new token"):
            list(model.generate(ids[:n_prompt], max_new_tokens=n_new + 1, cache=cache))


@pytest.mark.parametrize(("n_prompt", "n_new"), [(1, 128), (129, 128), (130, 127), (256, 1)])
def test_without_a_number_as_many_new_tokens_as_fit(
    n_prompt: int, n_new: int, tiny_model: Loader
) -> None:
    model = tiny_model("llama_gqa", backend="numba")
    assert usual_new_tokens(model.config, n_prompt) == n_new
    pieces = list(model.generate(tiny.make_ids(n_prompt)))
    assert len(pieces) == n_new or pieces[-1].finish_reason == "stop"


def test_a_prompt_beyond_the_context_is_refused_without_a_number_too(tiny_model: Loader) -> None:
    with pytest.raises(UsageError, match="shorten the prompt"):
        list(tiny_model("llama_gqa").generate(tiny.make_ids(257)))
