"""What generation_config.json recommends: how to choose tokens, and where a text ends.

The file is optional: nothing in it stops what does not need it. Each value is checked where it is
used, as transformers does (generation/utils.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kvgen.checkpoint.families import Keys
from kvgen.checkpoint.files import read_json
from kvgen.engine.config import ModelConfig
from kvgen.errors import CheckpointError, UsageError
from kvgen.sampling import SamplingOptions
from kvgen.text.tokenizer import Tokenizer

_FILE = "generation_config.json"
_FILTERS = ("temperature", "top_k", "top_p", "min_p")
_READ = frozenset({*_FILTERS, "do_sample", "repetition_penalty", "eos_token_id"})
# Keys by which transformers would choose other tokens, with the value that changes nothing (None
# aside).
_NOT_APPLIED: Mapping[str, Any] = {
    "bad_words_ids": [], "begin_suppress_tokens": [], "dola_layers": None, "epsilon_cutoff": 0,
    "eta_cutoff": 0, "exponential_decay_length_penalty": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "guidance_scale": 1, "min_length": 0, "min_new_tokens": 0,
    "no_repeat_ngram_size": 0, "num_beams": 1, "penalty_alpha": 0, "sequence_bias": [],
    "stop_strings": [], "suppress_tokens": [], "top_h": None, "typical_p": 1,
    "watermarking_config": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A checkpoint's generation_config.json, empty where there is none."""

    content: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # what a user should know of it

    @property
    def ignored_keys(self) -> tuple[str, ...]:
        """Keys that play no part."""
        return tuple(name for name in self.content if name not in _READ)

    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text. Raises CheckpointError where they are no ids."""
        return Keys(self.content, where=_FILE).token_ids("eos_token_id")

    def sampling(self, **said: Any) -> SamplingOptions:
        """The recommended options, with what was said in place of them.

        Greedy unless the file asks for sampling; filters count only where tokens are sampled.
        Raises CheckpointError where a recommended value that is used cannot be.
        """
        samples = self.content.get("do_sample") is True
        chosen: dict[str, Any] = {"temperature": 1.0 if samples else 0.0}
        names = [*(_FILTERS if samples else ()), "repetition_penalty"]
        chosen |= {name: self.content[name] for name in names if self._is_given(name)}
        chosen |= said
        if chosen["temperature"] == 0:
            chosen = {name: v for name, v in chosen.items() if name not in _FILTERS or name in said}
        for name in chosen.keys() - said.keys():
            chosen[name] = _usable(name, chosen[name])
        return SamplingOptions(**chosen)

    def chosen(
        self, options: SamplingOptions | None, fields_: Mapping[str, Any], **usual: float
    ) -> SamplingOptions:
        """The options, or the recommended ones with single fields, such as temperature, said.

        `usual` stands where a field was not said. Raises UsageError for a field that there is not,
        and where both are given.
        """
        known = [field.name for field in fields(SamplingOptions)]
        if unknown := [name for name in fields_ if name not in known]:
            raise UsageError(f"{unknown[0]} is not an option of sampling: {', '.join(known)}")
        if options is not None and fields_:
            raise UsageError(f"sampling= and {next(iter(fields_))}= contradict: give one of them")
        return options or self.sampling(**{**usual, **fields_})

    def _is_given(self, name: str) -> bool:
        return self.content.get(name) is not None


def read_recommendation(folder: Path) -> Recommendation:
    """Read generation_config.json; a broken file is named in a note and counts as absent."""
    try:
        content = read_json(folder / _FILE, required=False)
    except CheckpointError as error:
        return Recommendation({}, (f"{error}; it is ignored",))
    active = [
        f"{name} = {content[name]!r}"
        for name, neutral in _NOT_APPLIED.items()
        if content.get(name) not in (None, neutral)
    ]
    if not active:
        return Recommendation(content)
    return Recommendation(content, (f"{_FILE}: kvgen does not apply {', '.join(active)}",))


def stop_ids(
    config: ModelConfig, recommendation: Recommendation, tokenizer: Tokenizer | None
) -> frozenset[int]:
    """The ids that end a text: what config, generation_config.json and tokenizer call the end.

    Raises CheckpointError where generation_config.json names no ids.
    """
    ids = {*config.eos_ids, *recommendation.eos_ids()}
    if tokenizer is not None and tokenizer.eos_id is not None:
        ids.add(tokenizer.eos_id)
    return frozenset(ids)


def _usable(name: str, value: Any) -> Any:
    """A value as SamplingOptions takes it: -1 and 0 turn a filter off, 20.0 is 20."""
    if name in ("top_k", "top_p") and not isinstance(value, bool) and value in (-1, 0):
        return {"top_k": 0, "top_p": 1.0}[name]
    if name == "top_k" and isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        SamplingOptions(**{name: value})
    except UsageError as error:
        option = f"--{name.replace('_', '-')}"
        raise CheckpointError(f"{_FILE}: {error}; {option} sets another value") from None
    return value
