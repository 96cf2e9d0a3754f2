"""The work of `kvgen bench`: ids of a text or random ones, and the head to draw."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from kvgen.cli.bench_options import NEW_TOKENS, PROMPT_TOKENS, ArmFlags, WorkFlags
from kvgen.engine.places import check_number

if TYPE_CHECKING:
    from kvgen.bench.plan import Workload
    from kvgen.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The ids to run, and their description."""

    workloads: tuple[Workload, ...]
    prompt: str  # where the ids come from, in words
    seed: int | None


def chosen_head(model: Model, arms: ArmFlags) -> tuple[int, int] | None:
    """The layer and head of -l and -H. Raises UsageError for one that the model lacks."""
    if arms.layer is None or arms.head is None:
        return None
    config = model.config
    return (
        check_number(arms.layer, range(config.n_layers), "layer"),
        check_number(arms.head, range(config.n_heads), "head"),
    )


def choose_work(model: Model, text: str | None, flags: WorkFlags) -> Work:
    """The ids to run: of the given text, of the text that ships with kvgen, or random ones."""
    from kvgen.bench.plan import Workload
    from kvgen.engine.rope import length_dependent
    from kvgen.generate import check_lengths

    ropes = length_dependent(model.config)
    context = model.config.max_context
    # Defaults shrink to fit the context; a given number is taken or refused.
    n_new = flags.n_gen if flags.n_gen is not None else min(NEW_TOKENS, max(1, context // 5))
    if text is not None:
        ids = tuple(model.encode(text))
        check_lengths(model.config, len(ids), n_new)
        only = Workload(ids=ids, n_prompt=len(ids), n_gen=n_new, ropes=ropes)
        return Work(workloads=(only,), prompt=f"{len(ids)} tokens", seed=None)
    usual = max(1, min(PROMPT_TOKENS, context - n_new))
    if flags.n_prompt is None and flags.depth is None and model.tokenizer is not None:
        own = model.encode(files("kvgen.bench").joinpath("text.txt").read_text("utf-8"))
        ids = tuple(own[:usual])
        scaled = f", scaled to the context of {context}" if usual < PROMPT_TOKENS else ""
        words = f"{len(ids)} tokens of the text that ships with the benchmark{scaled}"
        only = Workload(ids=ids, n_prompt=len(ids), n_gen=n_new, ropes=ropes)
        return Work(workloads=(only,), prompt=words, seed=None)

    import numpy as np

    from kvgen.sampling import Sampler, SamplingOptions

    seed = Sampler(SamplingOptions(), seed=flags.seed).seed
    vocab_size = model.config.vocab_size
    n_tokens = min(vocab_size, model.tokenizer.n_tokens if model.tokenizer else vocab_size)
    workloads = []
    for n_prompt in flags.n_prompt or (usual,):
        for depth in flags.depth or (0,):
            check_lengths(model.config, n_prompt + depth, n_new)
            random_ids = np.random.default_rng(seed).integers(0, n_tokens, n_prompt + depth)
            workloads.append(
                Workload(
                    ids=tuple(random_ids.tolist()),
                    n_prompt=n_prompt,
                    n_gen=n_new,
                    depth=depth,
                    ropes=ropes,
                )
            )
    lengths = ", ".join(dict.fromkeys(f"{work.n_prompt}" for work in workloads))
    words = f"{lengths} random ids, seed {seed}"
    return Work(workloads=tuple(workloads), prompt=words, seed=seed)
