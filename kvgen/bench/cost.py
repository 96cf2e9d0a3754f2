"""What a run must cost: operations and bytes from the shapes, seconds from a calibration.

A decode step reads every weight and every key and value once, and does little with each: its time
is bytes by bandwidth. A prefill uses each weight for all its tokens: its time is operations by
speed. What else there is (norms, activations, threads that wait for one another) is measured on two
short runs at the beginning of the context, and taken to cost the same for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from kvgen.choices import CacheDTypeName
from kvgen.engine.calibration import Calibration, median_seconds
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import Engine
from kvgen.session import Session

_SHORT_PREFILL = 96


class Prediction(NamedTuple):
    """Seconds of a forward pass, which add up."""

    reading: float  # bytes by bandwidth
    computing: float  # operations by speed
    overhead: float  # what this model's short runs took beyond both, see `calibrate_with_overhead`


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """Operations and bytes of an engine's model; positions are counted from 0."""

    config: ModelConfig
    weight_bytes: int  # of all matrices
    cache_dtype: CacheDTypeName

    def visible(self, start: int, n_positions: int) -> int:
        """Pairs of a query and a key that it sees, over all layers, for positions from `start`."""
        layers = range(self.config.n_layers)
        return sum(self.visible_in(layer, start, n_positions) for layer in layers)

    def visible_in(self, layer: int, start: int, n_positions: int) -> int:
        """The same pairs of one layer."""
        window = self.config.window(layer) or self.config.max_context
        growing = max(0, min(start + n_positions, window) - start)  # those that see all before them
        pairs = growing * start + growing * (growing + 1) // 2
        return pairs + (n_positions - growing) * window

    def product_flops(self, n_positions: int) -> int:
        """Multiplications and additions with weights; logits are made for the last position."""
        config = self.config
        layers = config.n_layers * config.layer_weights
        return 2 * (n_positions * layers + config.head_weights)

    def attention_flops(self, start: int, n_positions: int) -> int:
        """Multiplications and additions for scores and for sums of values."""
        return 4 * self.config.n_heads * self.config.head_dim * self.visible(start, n_positions)

    def flops(self, start: int, n_positions: int) -> int:
        """All that is counted of a forward pass behind `start` positions."""
        return self.product_flops(n_positions) + self.attention_flops(start, n_positions)

    def cache_bytes(self, start: int, n_positions: int) -> int:
        """Bytes of the keys and values that a forward pass needs, each counted once."""
        config = self.config
        rows = 0
        for layer in range(config.n_layers):
            window = config.window(layer) or config.max_context
            rows += min(start + n_positions, n_positions - 1 + window)
        return config.kv_bytes_per_position(self.cache_dtype) // config.n_layers * rows

    def bytes_read(self, start: int, n_positions: int) -> int:
        """Bytes of weights, keys and values that a forward pass must read at least once."""
        return self.weight_bytes + self.cache_bytes(start, n_positions)

    def seconds(self, start: int, n_positions: int, calibration: Calibration) -> float:
        """Predicted time of a forward pass behind `start` positions."""
        return sum(self.parts(start, n_positions, calibration))

    def parts(self, start: int, n_positions: int, calibration: Calibration) -> Prediction:
        """The predicted time of a forward pass, by what it is made of."""
        reading = self.bytes_read(start, n_positions) / calibration.read_bytes_per_second
        if n_positions == 1:
            return Prediction(reading, 0.0, calibration.overhead_seconds_per_step)
        config = self.config
        head_fraction = config.head_weights / (
            config.n_layers * config.layer_weights + config.head_weights
        )
        head_flops = 2 * config.head_weights
        products = (self.product_flops(n_positions) - head_flops) / calibration.flops_per_second
        attention = self.attention_flops(start, n_positions)
        # The logits are made for one position: that matrix is read, not reused.
        head = head_fraction * self.weight_bytes / calibration.read_bytes_per_second
        computing = products + attention / calibration.attention_flops_per_second
        overhead = n_positions * calibration.overhead_seconds_per_position
        if reading > computing + head:
            return Prediction(reading, 0.0, overhead)
        return Prediction(head, computing, overhead)


def cost_of(engine: Engine) -> ModelCost:
    """The cost of this engine's model as it holds weights and cache."""
    return ModelCost(
        config=engine.config,
        weight_bytes=engine.weight_bytes,
        cache_dtype=engine.cache_dtype,
    )


def calibrate_with_overhead(engine: Engine) -> Calibration:
    """What `Engine.calibrate` measures, and the overhead of a token.

    The overhead is what a forward takes beyond its prediction, at the beginning of the context: of
    one token, and of each in a short prefill. It is measured here and not with the rates in
    `kvgen.engine.calibration`, as it needs a session to feed and the costs above to predict.
    """
    measured, cost = engine.calibrate(), cost_of(engine)
    several = max(2, min(_SHORT_PREFILL, engine.config.max_context - 1))
    overheads = []
    for n_positions in (1, several):
        session = Session(engine, n_positions)
        took = median_seconds(partial(_from_the_beginning, session, [0] * n_positions))
        known = cost.seconds(0, n_positions, measured)
        overheads.append(max(0.0, took - known) / n_positions)
    return replace(
        measured,
        overhead_seconds_per_step=overheads[0],
        overhead_seconds_per_position=overheads[1],
    )


def _from_the_beginning(session: Session, ids: list[int]) -> None:
    session.rewind()
    session.feed(ids)


def first_length_above(
    limit_seconds: float, seconds_at: Callable[[int], float], longest: int
) -> int | None:
    """The shortest length whose time exceeds a limit, of times that grow; None up to `longest`."""
    if seconds_at(longest) <= limit_seconds:
        return None
    low, high = 0, longest
    while high - low > 1:
        middle = (low + high) // 2
        if seconds_at(middle) > limit_seconds:
            high = middle
        else:
            low = middle
    return high
