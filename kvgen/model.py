"""Model: config, engine and tokenizer together; what `kvgen.load` gives."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Literal

import numpy as np

from kvgen.checkpoint.bind import bind
from kvgen.checkpoint.families import find
from kvgen.checkpoint.folder import Checkpoint, open_checkpoint
from kvgen.checkpoint.hub import locate
from kvgen.choices import (
    BackendChoice,
    CacheDTypeChoice,
    DTypeChoice,
    LoadOptions,
    PrefillName,
)  # fmt: skip
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import Engine, check_ids
from kvgen.engine.huge_pages import in_memory, pays
from kvgen.engine.open import open_engine
from kvgen.engine.params import Params
from kvgen.engine.tensors import FloatArray
from kvgen.errors import CheckpointError, UsageError
from kvgen.generate import (
    check_lengths,
    generate,
    positions_fed,
    require_finite,
    usual_new_tokens,
)
from kvgen.recommendation import read_recommendation, stop_ids
from kvgen.sampling import Sampler, SamplingOptions
from kvgen.session import Session
from kvgen.text.chat import Message, find_template, has_template, render
from kvgen.text.tokenizer import Tokenizer, find_tokenizer, missing_tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token: its text, and what it took.

    `text` holds whole characters only, so it may be empty; a token's text may come with a later
    token's. `finish_reason` is set on the last piece.
    """

    token: int
    text: str
    logprob: float  # natural logarithm, before any sampling filter
    seconds: float
    positions: int  # positions run through the model for it, those run again included
    finish_reason: FinishReason | None


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
            raise CheckpointError(f"{self.folder}: has no chat template; its prompts go in raw")
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

    def _as_ids(self, ids: Sequence[int]) -> list[int]:
        """Whole numbers of any kind as a list. Raises UsageError for anything else."""
        try:
            if isinstance(ids, (str, bytes)):
                raise TypeError
            numbers = [index(token) for token in ids]
        except TypeError:
            raise UsageError("token ids must be a sequence of whole numbers") from None
        check_ids(self.config, numbers)
        return numbers

    def output_weights(self, layer: int) -> FloatArray:
        """W_O of a layer, which brings the heads' outputs back to the model's width [C, H * D]."""
        return self.params.layers[layer].o.weight.dequantize()

    def sampler(self, options: SamplingOptions, *, seed: int | None = None) -> Sampler:
        """A sampler that keeps to the ids that the tokenizer knows."""
        n_tokens = self.tokenizer.n_tokens if self.tokenizer is not None else None
        return Sampler(options, n_tokens=n_tokens, seed=seed)

    def logits(self, ids: Sequence[int], *, cache: bool = True) -> FloatArray:
        """Every position's logits, float32 [T, V].

        With `cache` the first half is prefilled and the rest decoded one by one through the cache;
        without it everything is one full pass. Both agree to rounding, and to the bit where the
        model was loaded with `prefill="stepwise"`: every position is turned with the rotary
        frequencies of the whole length, where they depend on it. Raises UsageError for ids outside
        the vocabulary or more of them than the context holds.
        """
        ids = self._as_ids(ids)
        check_lengths(self.config, len(ids), 0)
        session = Session(self.engine, len(ids))
        half = max(1, len(ids) // 2) if cache else len(ids)
        parts = [ids[:half], *([token] for token in ids[half:])]
        logits = np.concatenate(
            [session.feed(part, all_logits=True, rope_length=len(ids)) for part in parts]
        )
        require_finite(logits)
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
        session: Session | None = None,
    ) -> Iterator[Piece]:
        """Continue a text or token ids, one record per token.

        Without `sampling` it follows generation_config.json where that asks for sampling, else it
        is greedy. The run ends at a stop id of the checkpoint, before the first `stop` text, or
        after `max_new_tokens` (None: 128, or as many as fit the context). A ready `sampler` takes
        the place of `sampling` and `seed`. A `session` that is given can be looked at between the
        records.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else self._as_ids(prompt)
        if max_new_tokens is None:
            max_new_tokens = usual_new_tokens(self.config, len(ids))
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
            raise UsageError(f"cannot generate {max_new_tokens!r} tokens")
        check_lengths(self.config, len(ids), max_new_tokens)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        stop_ids = self.stop_ids
        steps = generate(
            session or Session(self.engine, positions_fed(len(ids), max_new_tokens)),
            ids,
            sampler=sampler or self.sampler(sampling or self.sampling, seed=seed),
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            reuse_cache=cache,
        )
        stream = self.tokenizer.stream(ids, stops=stops) if self.tokenizer is not None else None
        for count, step in enumerate(steps, start=1):
            text = stream.push(step.token) if stream is not None else ""
            reason: FinishReason | None = None
            if step.token in stop_ids or (stream is not None and stream.stopped):
                reason = "stop"
            elif count == max_new_tokens:
                reason = "length"
            if reason is not None and stream is not None:
                text += stream.finish()
            yield Piece(step.token, text, step.logprob, step.seconds, step.positions, reason)
            if reason is not None:
                return


def default_model() -> Path:
    """The model that ships with kvgen: in a checkout's weights/, or inside the package."""
    package = Path(__file__).parent
    checkout = package.parent / "weights" / "storyteller"
    return checkout if checkout.exists() else package / "weights" / "storyteller"


def load(
    path_or_id: str | Path | None = None,
    *,
    backend: BackendChoice = "auto",
    dtype: DTypeChoice = "auto",
    cache_dtype: CacheDTypeChoice = "auto",
    prefill: PrefillName = "exact",
    threads: int | None = None,
    mmap: bool | None = None,
    revision: str | None = None,
) -> Model:
    """Load a model folder, a model of the Hugging Face Hub by its name, or the default model.

    `dtype` is the width in which weights are held, `auto` the stored one; arithmetic is float32
    throughout. `cache_dtype` is that of keys and values: `auto` is f32 where weights are f32 and on
    the numpy backend, else f16. `prefill="fast"` rounds activations to the width of bf16 or int8
    weights where several tokens run at once: faster, and no longer exact. `prefill="stepwise"` runs
    one position at a time, so that logits with and without the cache are equal to the bit; each
    position takes as long as a decode step. `threads` is one for each core unless given. With
    `mmap` weights are used where they lie in the mapped file, without it they are copied into
    memory, into huge pages where the system has them; unless given, small models are copied, which
    they gain from. `revision` is a branch, tag or commit of a model on the Hub. Raises
    ModelNotFoundError, CheckpointError or UsageError.
    """
    options = LoadOptions(
        backend=backend, dtype=dtype, cache_dtype=cache_dtype, prefill=prefill, threads=threads,
        mmap=mmap,
    )  # fmt: skip
    if path_or_id is not None and not (isinstance(path_or_id, (str, Path)) and str(path_or_id)):
        raise UsageError(f"{path_or_id!r} is not the name of a model")
    if path_or_id is None and revision is not None:
        raise UsageError("revision needs a Hub model: name the model too")
    folder = default_model() if path_or_id is None else locate(path_or_id, revision=revision)
    return load_folder(folder, options)


def load_folder(folder: Path, options: LoadOptions) -> Model:
    """Load a checkpoint folder. Raises CheckpointError, or UsageError for unfit options."""
    began = time.perf_counter()
    checkpoint = open_checkpoint(folder)
    dtype = None if options.dtype == "auto" else options.dtype
    params = bind(checkpoint, find(checkpoint.config), dtype=dtype)
    if not options.mmap and options.backend != "numpy":
        params = in_memory(params) if options.mmap is False or pays(params) else params
    notes: list[str] = []
    engine = open_engine(
        params,
        backend=options.backend,
        threads=options.threads,
        cache_dtype=options.cache_dtype,
        prefill=options.prefill,
        on_note=notes.append,
    )
    seconds = time.perf_counter() - began - engine.compile_seconds
    return Model(checkpoint, params, engine, load_seconds=seconds, notes=notes)
