"""Sequences on an engine, as many tests begin them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from kvgen.engine.contract import Engine
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace, Capture
from kvgen.generate import Step, generate
from kvgen.model import Model
from kvgen.sampling import Sampler, SamplingOptions
from kvgen.session import Session

GREEDY = SamplingOptions()


def steps_of(
    engine: Engine,
    ids: Sequence[int],
    max_new_tokens: int,
    *,
    sampler: Sampler | None = None,
    stop_ids: Collection[int] = (),
    reuse_cache: bool = True,
) -> Iterator[Step]:
    """The ids continued in a session of their own, greedily unless a sampler is given."""
    return generate(
        Session(engine, len(ids) + max_new_tokens),
        ids,
        sampler=sampler or Sampler(GREEDY),
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        reuse_cache=reuse_cache,
    )


def fed(engine: Engine, ids: Sequence[int], capacity: int | None = None) -> Session:
    """A session that holds the ids."""
    session = Session(engine, capacity or len(ids))
    session.feed(ids)
    return session


def recorded(
    engine: Engine, ids: Sequence[int], *, n_prompt: int | None = None
) -> tuple[Session, AttentionTrace]:
    """All layers of the ids: a prefill of `n_prompt` of them, or of all, and decode steps."""
    capture = Capture(engine.config, range(engine.config.n_layers), len(ids))
    session = Session(engine, len(ids), capture=capture)
    n_prompt = len(ids) if n_prompt is None else n_prompt
    session.feed(ids[:n_prompt])
    for token in ids[n_prompt:]:
        session.feed([token])
    return session, session.recording(n_prompt=n_prompt)


def output_weights(model: Model) -> Callable[[int], FloatArray]:
    """Gives a layer's W_O [C, H * D]."""
    return lambda layer: model.params.layers[layer].o.weight.dequantize()
