"""The logit lens: what each layer would predict if the model ended there.

The final norm and the head are applied to the residual stream behind every block (nostalgebraist,
2020, "interpreting GPT: the logit lens"). The last layer's row is the model's own prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from kvgen.attention.predictions import Ids, likeliest, probabilities_of
from kvgen.attention.record import RecordedRun
from kvgen.attention.stream import OutputHead, logits_of, states_of
from kvgen.engine.contract import Engine
from kvgen.engine.tensors import Array, FloatArray
from kvgen.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """The candidates of N layers at P positions, and what becomes of the model's own choice."""

    layers: tuple[int, ...]  # N, ascending: the stream behind each of these blocks
    positions: tuple[int, ...]  # P, ascending
    ids: Ids  # [N, P, K] the likeliest next tokens, the most probable first
    probabilities: FloatArray  # [N, P, K]
    entropies: FloatArray  # [N, P] of the probabilities of all tokens, in nats
    final_ids: Ids  # [P] the token that the whole model finds likeliest
    final_probabilities: FloatArray  # [N, P] how probable each layer finds that token
    ranks: Ids  # [N, P] that token's rank in each layer; 1 is the likeliest
    error: float  # greatest |last layer's logits - the model's in one full pass|

    def part(self, layers: Collection[int], positions: Collection[int]) -> Lens:
        """Of these layers and positions alone, as far as they are there."""
        rows = [row for row, layer in enumerate(self.layers) if layer in layers]
        columns = [column for column, place in enumerate(self.positions) if place in positions]
        both = np.ix_(rows, columns)
        return Lens(
            layers=tuple(self.layers[row] for row in rows),
            positions=tuple(self.positions[column] for column in columns),
            ids=self.ids[both],
            probabilities=self.probabilities[both],
            entropies=self.entropies[both],
            final_ids=self.final_ids[columns],
            final_probabilities=self.final_probabilities[both],
            ranks=self.ranks[both],
            error=self.error,
        )


def logit_lens(
    engine: Engine,
    run: RecordedRun,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    n_candidates: int = 5,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Lens:
    """Look behind these layers (None: all) at these positions (None: all) of a run.

    Takes one product with the head for each layer and position. `on_rows` hears of every number of
    rows of logits made: (N + 1) P in all. Raises UsageError where the run has no states, and for
    no candidates.
    """
    if n_candidates < 1:
        raise UsageError(f"a lens shows at least one candidate, not {n_candidates}")
    states, ids = states_of(run, "a lens"), run.trace.token_ids
    n_layers = engine.config.n_layers
    layers = range(n_layers) if layers is None else sorted(layers)
    positions = range(len(ids)) if positions is None else sorted(positions)
    head = OutputHead(engine)
    error, final_ids = 0.0, []
    for part, own in logits_of(engine, ids, positions):
        last = np.concatenate([head.logits(states[-1, some]) for some in head.parts(part)])
        error = max(error, float(np.abs(last - own).max()))
        final_ids += last.argmax(axis=1).tolist()
        on_rows(len(part))
    final = dict(zip(positions, final_ids, strict=True))
    rows = []
    for layer in layers:
        looked = []
        for part in head.parts(positions):
            logits = head.logits(states[layer + 1, part])
            looked.append(_look(logits, [final[position] for position in part], n_candidates))
            on_rows(len(part))
        rows.append([np.concatenate(column) for column in zip(*looked, strict=True)])
    found, probabilities, entropies, chances, ranks = (
        np.stack(column) for column in zip(*rows, strict=True)
    )
    return Lens(
        layers=tuple(layers),
        positions=tuple(positions),
        ids=found,
        probabilities=probabilities,
        entropies=entropies,
        final_ids=np.array(final_ids, np.int32),
        final_probabilities=chances,
        ranks=ranks,
        error=error,
    )


def _look(
    logits: FloatArray, final: Sequence[int], n_candidates: int
) -> tuple[Array, ...]:  # [P, V], P ids -> five arrays [P, ...]
    """What some rows of logits say, and how they judge the model's final choices."""
    best = likeliest(logits, n_candidates)
    own = logits[np.arange(len(final)), list(final)]
    ranks = 1 + (logits > own[:, None]).sum(axis=1, dtype=np.int32)
    return (*best, probabilities_of(logits, final), ranks.astype(np.int32))
