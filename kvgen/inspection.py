"""Running a prompt so that it can be looked at: a Recording of the run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from kvgen.attention.record import record
from kvgen.engine.places import check_numbers
from kvgen.errors import UsageError
from kvgen.recording import Recording
from kvgen.sampling import Sampler
from kvgen.source import Source


def run_and_record(
    source: Source,
    ids: Sequence[int],
    *,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    states: bool,
    sampler: Sampler,
    max_new_tokens: int,
    stop_ids: Collection[int],
    probe: int | None,
    on_progress: Callable[[int], None] | None,
) -> Recording:
    """Prefill and decode, keeping layers and heads (None: all) and the residual stream (`states`).

    See `Model.inspect`. Raises UsageError for a layer or head that the model lacks, and for a probe
    that the ids are too few for.
    """
    engine, params, config = source.engine, source.params, source.engine.config
    n_layers = config.n_layers
    chosen = check_numbers(layers, range(n_layers), "layer")
    if probe is not None and not 0 < 2 * probe <= len(ids):
        raise UsageError(f"probe {probe}: the {len(ids)} ids end in so many random tokens, twice")
    run = record(
        engine,
        ids,
        layers=range(n_layers) if chosen is None else chosen,
        heads=check_numbers(heads, range(config.n_heads), "head"),
        sampler=sampler,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        on_progress=on_progress,
        output_weights=lambda layer: params.layers[layer].o.weight.dequantize(),
        probe=probe,
        states=states,
    )
    facts = {
        "model": source.name,
        "dtype": engine.dtype,
        "cache_dtype": engine.cache_dtype,
        "backend": engine.backend,
        "n_layers": n_layers,
        "n_kv_heads": config.n_kv_heads,
        "rotary": bool(config.rope),
        "rope_dims": [0 if rope is None else rope.dim for rope in config.rope or [None] * n_layers],
        "sampling": sampler.options.describe(),
        "seed": sampler.seed if sampler.options.temperature > 0 else None,
        "probe": probe,
    }
    tokens = [source.token_bytes(token) for token in run.trace.token_ids]
    return Recording(run, tokens, facts, source=source)
