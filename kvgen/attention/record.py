"""Running a model so that its attention can be looked at, and checking what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from kvgen.attention.diagnostics import Diagnostics, diagnose
from kvgen.attention.predictions import PredictionLog, Predictions
from kvgen.attention.residual import ResidualNorms, measure_residual_norms
from kvgen.attention.steps import decode_error
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import Engine
from kvgen.engine.machine import usable_cores
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace, Capture
from kvgen.errors import UsageError
from kvgen.generate import ChooseToken, generate, positions_fed
from kvgen.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A trace, what it shows of its heads and positions, and how far its maps can be trusted."""

    trace: AttentionTrace
    sampled_last: int | None  # the token that never became a query; None after a prefill alone
    diagnostics: Diagnostics
    decode_rows: float | None  # greatest |weight - the same weight in one full pass|
    residual_norms: ResidualNorms | None  # None where W_O was not at hand
    predictions: Predictions | None = None  # None in files of kvgen 0.1
    # The residual stream [L + 1, T, C] of every layer: what enters it; the last leaves the model.
    states: FloatArray | None = None
    run_again: int = 0  # positions run once more because rotary frequencies changed


def record(
    engine: Engine,
    prompt_ids: Sequence[int],
    *,
    layers: Sequence[int],
    heads: Sequence[int] | None = None,
    sampler: ChooseToken,
    max_new_tokens: int = 0,
    stop_ids: Collection[int] = (),
    on_progress: Callable[[int], None] | None = None,
    output_weights: Callable[[int], FloatArray] | None = None,
    probe: int | None = None,
    states: bool = False,
) -> RecordedRun:
    """Prefill and decode with the KV cache, keeping Q of these layers and heads (None: all).

    N new tokens make N - 1 decode rows: the first comes out of the prefill, and the last one is
    never fed. Where rotary frequencies change with the length, all rows are those of the last
    length; predictions are those that were made. `output_weights` gives a layer's W_O [C, H * D];
    for `probe` see `diagnose`; with `states` the residual stream is kept too.
    """
    capacity = positions_fed(len(prompt_ids), max_new_tokens)

    capture = Capture(engine.config, layers, capacity, heads=heads, states=states)
    heard = PredictionLog(prompt_ids)
    session = Session(
        engine, capacity, capture=capture, on_progress=on_progress, on_logits=heard.hear
    )
    steps = []
    for step in generate(
        session, prompt_ids, sampler=sampler, max_new_tokens=max_new_tokens, stop_ids=stop_ids
    ):
        steps.append(step)
        session.on_progress = None  # of the prefill alone
    trace = session.recording(n_prompt=len(prompt_ids))
    decode_rows = None
    if trace.length > len(prompt_ids):
        again = Capture(engine.config, layers, capacity, heads=heads)
        at_once = Session(engine, capacity, capture=again)
        at_once.require_finite(at_once.feed(session.ids))
        decode_rows = decode_error(trace, at_once.recording())
    diagnostics = diagnose(trace, probe=probe)
    return RecordedRun(
        trace=trace,
        sampled_last=steps[-1].token if steps else None,
        diagnostics=diagnostics,
        decode_rows=decode_rows,
        residual_norms=None
        if output_weights is None
        else measure_residual_norms(trace, diagnostics, output_weights),
        predictions=heard.predictions([step.logprob for step in steps]),
        states=None if capture.states is None else capture.states[:, : trace.length],
        run_again=sum(step.positions - 1 for step in steps[1:]),
    )


def recording_bytes(
    config: ModelConfig,
    *,
    n_layers: int,
    n_heads: int,
    n_prompt: int,
    n_new: int,
    states: bool = False,
) -> int:
    """Roughly what looking takes beside the model: q and z of some layers, and a few maps.

    Decode rows are held against one full pass, which keeps q and z once more. The maps of one
    key/value head for each core are in memory at a time.
    """
    T = positions_fed(n_prompt, n_new)
    captured = 2 * n_layers * T * n_heads * config.head_dim
    copies = 2 if n_new > 1 else 1
    group = min(n_heads, config.n_heads // config.n_kv_heads)
    at_a_time = min(usable_cores() * group, n_layers * n_heads)
    maps = (2 * at_a_time + 3) * T * T  # weights and their logarithms; what matches, for all
    stream = (config.n_layers + 1) * T * config.d_model if states else 0
    return 4 * (copies * captured + maps + stream)


def probe_ids(
    candidates: Sequence[int], *, n_tokens: int, seed: int, first: Sequence[int]
) -> list[int]:
    """The start tokens, then so many different random tokens twice: nothing to know but the order.

    Raises UsageError where there are too few to choose from.
    """
    if len(candidates) < n_tokens:
        raise UsageError(f"a probe needs {n_tokens} ordinary tokens; there are {len(candidates)}")
    drawn = np.random.default_rng(seed).choice(np.asarray(candidates), n_tokens, replace=False)
    return [*first, *drawn.tolist(), *drawn.tolist()]
