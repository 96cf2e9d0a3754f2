"""Model: config, engine and tokenizer together; what `kvgen.load` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvgen.checkpoint.families import find
from kvgen.checkpoint.folder import Checkpoint
from kvgen.choices import ArmName, PatchSite
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import Engine, as_ids
from kvgen.engine.params import Params
from kvgen.engine.tensors import FloatArray
from kvgen.errors import CheckpointError
from kvgen.generate import check_lengths, generate, positions_fed, usual_new_tokens
from kvgen.piece import Piece, pieces_of
from kvgen.recommendation import read_recommendation, stop_ids
from kvgen.sampling import Sampler, SamplingOptions, check_logprobs
from kvgen.session import Session
from kvgen.source import Source
from kvgen.text.chat import Message, find_template, has_template, render
from kvgen.text.constraint import Constraint, make_constraint
from kvgen.text.tokenizer import Tokenizer, find_tokenizer, missing_tokenizer

if TYPE_CHECKING:  # they import what draws, which generating does not need
    from kvgen.attention.patch import PatchMap
    from kvgen.experiment import Experiment
    from kvgen.recording import Recording


class Model:
    """A loaded model. Made by `load`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        params: Params,
        engine: Engine,
        *,
        load_seconds: float,
        notes: Sequence[str] = (),  # what a user should know about the engine
    ) -> None:
        self.folder = checkpoint.folder
        self.name = checkpoint.name
        self.family = str(checkpoint.config.get("model_type"))
        self.params = params
        self.config: ModelConfig = engine.config
        self.engine = engine
        self.load_seconds = load_seconds  # reading and binding; kernels are counted by the engine
        self.ignored_keys = params.ignored_keys
        self.weight_bytes = params.nbytes
        usual_class = find(checkpoint.config).tokenizer
        self.tokenizer = find_tokenizer(checkpoint.folder, usual_class=usual_class)
        self.has_chat_template = has_template(checkpoint.folder)
        self.recommendation = read_recommendation(checkpoint.folder)
        self.notes = (
            *notes,
            *params.notes,
            *(self.tokenizer.notes if self.tokenizer is not None else ()),
            *self.recommendation.notes,
        )

    def __repr__(self) -> str:
        engine, millions = self.engine, self.params.n_parameters / 1e6
        threads = f"{engine.threads} thread{'s' if engine.threads > 1 else ''}"
        return (
            f"<Model {self.name}: {self.family}, {millions:,.1f} M parameters as {engine.dtype}, "
            f"{engine.backend} on {threads}>"
        )

    @property
    def sampling(self) -> SamplingOptions:
        """How the checkpoint recommends to choose tokens.

        Raises CheckpointError where what it recommends cannot be.
        """
        return self.recommendation.sampling()

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a text. Raises CheckpointError where the checkpoint names no ids."""
        return stop_ids(self.config, self.recommendation, self.tokenizer)

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises CheckpointError where the checkpoint has none."""
        if self.tokenizer is None:
            raise CheckpointError(missing_tokenizer(self.folder))
        return self.tokenizer

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a conversation by the checkpoint's chat template, ready for the answer.

        Encode it without special tokens: the template brings its own. Raises CheckpointError where
        there is no template, UsageError where it turns the messages down.
        """
        template = find_template(self.folder)
        if template is None:
            advice = "leave out --chat and --system, or use an instruct model"
            raise CheckpointError(f"{self.folder}: has no chat template: {advice}")
        return render(template, messages, tokens=self.require_tokenizer().named)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """The text's ids, with the start token that the tokenizer adds.

        Raises CheckpointError where the tokenizer is for another model.
        """
        ids = self.require_tokenizer().encode(text, special_tokens=special_tokens)
        if ids and max(ids) >= self.config.vocab_size:
            raise CheckpointError(
                f"{self.folder}: the tokenizer gives id {max(ids)}, but the model has "
                f"{self.config.vocab_size}"
            )
        return ids

    def _ids_of(self, prompt: str | Sequence[int]) -> list[int]:
        return self.encode(prompt) if isinstance(prompt, str) else as_ids(self.config, prompt)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; without a tokenizer its number in brackets."""
        if self.tokenizer is None:
            return f"<{token}>".encode()
        return self.tokenizer.token_bytes(token)

    def token_text(self, token: int) -> str:
        r"""A token as text; bytes that are no characters are written out as \xe6."""
        return self.token_bytes(token).decode("utf-8", "backslashreplace")

    def token_id(self, token: int | str | None) -> int | None:
        """An id that there is, or that of a text of one token; None for None.

        Raises UsageError for any other.
        """
        if isinstance(token, str):
            return self.require_tokenizer().single_id(token)
        return None if token is None else as_ids(self.config, [token])[0]

    @property
    def source(self) -> Source:
        """What a recording needs of the model in order to look further."""
        return Source(
            self.name, self.family, self.folder, self.engine, self.params, self.token_id,
            self.token_bytes,
        )  # fmt: skip

    def sampler(self, options: SamplingOptions, *, seed: int | None = None) -> Sampler:
        """A sampler that keeps to the ids that the tokenizer knows.

        Raises UsageError for a logit bias of an id outside the vocabulary.
        """
        as_ids(self.config, list(options.logit_bias))
        n_tokens = self.tokenizer.n_tokens if self.tokenizer is not None else None
        stops = self.stop_ids if options.ignore_eos else ()
        return Sampler(options, n_tokens=n_tokens, seed=seed, stop_ids=stops)

    def constraint(self, **grammar: Any) -> Constraint:
        """A `json_schema`, `regex` or `grammar` for `generate`: see `make_constraint`."""
        return make_constraint(self.require_tokenizer(), **grammar)

    def logits(self, ids: Sequence[int], *, cache: bool = True) -> FloatArray:
        """Every position's logits, float32 [T, V].

        With `cache` the first half is prefilled and the rest decoded one by one through the cache;
        without it everything is one full pass. Both agree to rounding, and to the bit where the
        model was loaded with `prefill="stepwise"`: every position is turned with the rotary
        frequencies of the whole length, where they depend on it. Raises UsageError for ids outside
        the vocabulary or more of them than the context holds.
        """
        ids = as_ids(self.config, ids)
        check_lengths(self.config, len(ids), 0)
        session = Session(self.engine, len(ids))
        half = max(1, len(ids) // 2) if cache else len(ids)
        parts = [ids[:half], *([token] for token in ids[half:])]
        logits = np.concatenate(
            [session.feed(part, all_logits=True, rope_length=len(ids)) for part in parts]
        )
        session.require_finite(logits)
        return logits

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int | None = None,
        sampling: SamplingOptions | None = None,
        seed: int | None = None,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        cache: bool = True,
        logprobs: int = 0,
        constraint: Constraint | None = None,
        session: Session | None = None,
        **options: Any,
    ) -> Iterator[Piece]:
        """Continue a text or token ids, one record per token.

        `options` are single fields of SamplingOptions, such as temperature=0.8 or top_k=40. Without
        them and `sampling` it follows generation_config.json where that asks for sampling, else it
        is greedy. The run ends at a stop id of the checkpoint, before the first `stop` text, or
        after `max_new_tokens` (None: 128, or as many as fit the context). A ready `sampler` takes
        the place of these and `seed`. With `logprobs` a record's `top` holds that many likeliest
        tokens: (id, log-probability). With a `constraint` the text matches it, closed early if need
        be; else the last record is not `whole`. A `session` can be looked at between the records.
        """
        ids = self._ids_of(prompt)
        sampler = sampler or self.sampler(self.recommendation.chosen(sampling, options), seed=seed)
        if max_new_tokens is None:
            max_new_tokens = usual_new_tokens(self.config, len(ids), constrained=bool(constraint))
        check_lengths(self.config, len(ids), max_new_tokens)
        steps = generate(
            session or Session(self.engine, positions_fed(len(ids), max_new_tokens)),
            ids,
            sampler=sampler,
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            reuse_cache=cache,
            n_likeliest=check_logprobs(logprobs),
            constraint=constraint.start(self.stop_ids, sampler.banned) if constraint else None,
        )
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        stream = None if self.tokenizer is None else self.tokenizer.stream(ids, stops=stops)
        return pieces_of(steps, stream, most=max_new_tokens)

    def patch(
        self,
        prompt: str | Sequence[int],
        source: str | Sequence[int],
        *,
        site: PatchSite = "head",
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        token: int | str | None = None,
        against: int | str | None = None,
        on_patch: Callable[[int], None] = lambda _: None,
    ) -> PatchMap:
        """Run a prompt with activations of another's run: see `kvgen.attention.patch.patch`.

        A token is an id or a text of one token.
        """
        from kvgen.attention.patch import patch

        return patch(
            self.engine, self.params, self._ids_of(prompt), self._ids_of(source),
            site=site, layers=layers, heads=heads, positions=positions,
            token=self.token_id(token), against=self.token_id(against),
            on_patch=on_patch, token_text=lambda token: repr(self.token_text(token)),
        )  # fmt: skip

    def score(
        self, text: str | Sequence[int], *, window: int | None = None, stride: int | None = None
    ) -> npt.NDArray[np.float64]:
        """The log-probability of each token but the first: see `kvgen.scoring`."""
        from kvgen.scoring import score

        return score(self.engine, self._ids_of(text), window=window, stride=stride)

    def inspect(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 0,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        states: bool = True,
        sampling: SamplingOptions | None = None,
        seed: int | None = None,
        sampler: Sampler | None = None,
        probe: int | None = None,
        on_progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Recording:
        """Run a text or token ids, and keep what there is to look at: see `Recording`.

        All layers and heads are kept unless some are chosen, and the residual stream (`states`),
        which `Recording.lens` and `Recording.contributions` need. Greedy unless told; for
        `sampling`, `seed`, `sampler` and `options` see `generate`. With `probe` the ids end in so
        many random tokens, twice: see `kvgen.attention.record.probe_ids`. `on_progress` hears of
        the prefill, by numbers of positions.
        """
        from kvgen.inspection import run_and_record

        ids = self._ids_of(prompt)
        check_lengths(self.config, len(ids), max_new_tokens)
        if sampler is None:
            chosen = self.recommendation.chosen(sampling, options, temperature=0.0)
            sampler = self.sampler(chosen, seed=seed)
        return run_and_record(
            self.source, ids, layers=layers, heads=heads, states=states,
            sampler=sampler, max_new_tokens=max_new_tokens, stop_ids=self.stop_ids,
            probe=probe, on_progress=on_progress,
        )  # fmt: skip

    def bench(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 16,
        arms: Sequence[ArmName] = ("on", "off"),
        repetitions: int = 3,
        seed: int = 0,
    ) -> Experiment:
        """Time the prompt and decode steps behind it with the cache, without it, or with Q kept.

        The arms take turns; "on", "off" and "on+q" are those of `kvgen bench`, which says what is
        measured besides. `seed` is that of the rows that kept ones are replaced by.
        """
        from kvgen.experiment import run_experiment

        return run_experiment(
            self.source,
            self._ids_of(prompt),
            n_gen=max_new_tokens,
            arms=arms,
            repetitions=repetitions,
            seed=seed,
        )
