"""What a family declares: how to read its config.json, and under which names its tensors lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvgen.checkpoint.families.keys import Keys
from kvgen.engine.config import ModelConfig

# Rows of the stored tensor, and which of them belong to the slot.
Take = Callable[[ModelConfig], tuple[int, "slice | npt.NDArray[np.intp]"]]


class Source(NamedTuple):
    """Where one canonical slot lies in a checkpoint.

    `{layer}` and `{head}` in the name stand for their numbers.
    """

    name: str  # without prefix and without `.weight`
    bias: bool = False
    transposed: bool = False  # stored (in, out), as GPT-2's Conv1D
    take: Take | None = None  # where a tensor holds several slots, or rows in another order
    plus_one: bool = False  # a norm that is stored as what is added to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One naming scheme. The core never sees it: only `Keys` goes in, only data comes out."""

    model_type: str
    config: Callable[[Keys], ModelConfig]
    sources: Callable[[Keys], Mapping[str, Source]]  # by slot of kvgen.engine.params
    # Keys by which the reference implementation computes: its configuration and modelling files.
    reads: frozenset[str]
    tied: bool  # tie_word_embeddings where config.json does not say, as in the reference's class
    inert: frozenset[str] = frozenset()  # keys that sound like arithmetic and are not, here
    renamed: tuple[tuple[str, str], ...] = ()  # other beginnings of tensor names, and ours
    text_key: str | None = None  # where config.json describes the text model
    ignored: tuple[str, ...] = ()  # beginnings of tensors that the text model does not use
    tokenizer: str = ""  # the class that transformers takes where the settings name none
