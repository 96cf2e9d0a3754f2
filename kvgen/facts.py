"""What a checkpoint is, without running it: what `kvgen info` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvgen.checkpoint.bind import bind
from kvgen.checkpoint.families import find
from kvgen.checkpoint.folder import open_checkpoint
from kvgen.choices import DTypeName
from kvgen.engine.config import ModelConfig, RopeConfig
from kvgen.errors import CheckpointError
from kvgen.recommendation import read_recommendation, stop_ids
from kvgen.text.chat import has_template
from kvgen.text.tokenizer import find_tokenizer, missing_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """Text to ids, as far as a user asks."""

    kind: str  # the algorithm: BPE, Unigram, ...
    n_tokens: int
    start: str | None  # what every text begins with
    end: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A checkpoint at a glance."""

    name: str
    folder: Path
    family: str
    config: ModelConfig
    n_parameters: int  # each stored number once, a tied head with the embedding
    tied: bool
    dtype: DTypeName
    stored: dict[str, int]  # bytes of the tensors by the file's word for their type
    file_bytes: int
    weight_bytes: int  # the large tensors in memory, mapped from the files where they can be
    tokenizer: TokenizerFacts | None
    no_tokenizer: str | None  # why there is none
    has_chat_template: bool
    stop_ids: tuple[int, ...]
    sampling: str  # the chain that generation_config.json recommends
    notes: tuple[str, ...]
    ignored_keys: tuple[str, ...]  # of config.json
    ignored_generation_keys: tuple[str, ...]

    @property
    def kv_sharing(self) -> list[list[int]]:
        """The query heads that read each key/value head."""
        shared = self.config.n_heads // self.config.n_kv_heads
        return [list(range(g * shared, (g + 1) * shared)) for g in range(self.config.n_kv_heads)]

    @property
    def ropes(self) -> list[tuple[RopeConfig | None, list[int]]]:
        """Each kind of position that there is, with its layers."""
        kinds = dict.fromkeys(self.config.rope)
        layers = range(self.config.n_layers)
        return [(kind, [i for i in layers if self.config.rope[i] == kind]) for kind in kinds]


def read_facts(folder: Path) -> ModelFacts:
    """The facts of a checkpoint folder. Raises CheckpointError where kvgen could not run it."""
    checkpoint = open_checkpoint(folder)
    family = find(checkpoint.config)
    params = bind(checkpoint, family)
    files = {tensor.file for tensor in checkpoint.tensors.values()}
    stored: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        stored[tensor.kind] = stored.get(tensor.kind, 0) + tensor.mapped.nbytes
    tokenizer = find_tokenizer(folder, usual_class=family.tokenizer)
    recommendation = read_recommendation(folder)
    notes = [*params.notes, *(tokenizer.notes if tokenizer else ()), *recommendation.notes]
    facts, ends, sampling = None, frozenset[int](), "unknown"
    try:
        ends = stop_ids(params.config, recommendation, tokenizer)
        sampling = recommendation.sampling().describe()
    except CheckpointError as problem:
        notes.append(str(problem))
    if tokenizer is not None:
        start = tokenizer.encode("")
        facts = TokenizerFacts(
            kind=tokenizer.kind,
            n_tokens=tokenizer.n_tokens,
            start=tokenizer.name(start[0]) if start else None,
            end=tokenizer.name(tokenizer.eos_id) if tokenizer.eos_id is not None else None,
        )
    return ModelFacts(
        name=checkpoint.name,
        folder=folder,
        family=family.model_type,
        config=params.config,
        n_parameters=params.n_parameters,
        tied=params.head.weight is params.embed,
        dtype=params.dtype,
        stored=stored,
        file_bytes=sum(file.stat().st_size for file in files),
        weight_bytes=params.nbytes,
        tokenizer=facts,
        no_tokenizer=missing_tokenizer(folder) if tokenizer is None else None,
        has_chat_template=has_template(folder),
        stop_ids=tuple(sorted(ends)),
        sampling=sampling,
        notes=tuple(notes),
        ignored_keys=params.ignored_keys,
        ignored_generation_keys=recommendation.ignored_keys,
    )
