"""Activation patching: one activation of another prompt's run put into a run, and the effect.

The prompt runs again with that activation in place of its own, everything else as it is, and the
difference of two logits shows how much of the other prompt's answer it carries (causal tracing:
Meng et al., arXiv:2202.05262; activation patching: Wang et al., arXiv:2211.00593). Reruns are
exact. They begin in the layer and at the position that is changed: what lies before comes from the
KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from kvgen.attention.predictions import Ids
from kvgen.choices import PatchSite, names
from kvgen.engine.contract import Engine
from kvgen.engine.finite import require_finite
from kvgen.engine.params import Params
from kvgen.engine.places import check_numbers
from kvgen.engine.reference.block import widened_block
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Capture, Start
from kvgen.errors import UsageError
from kvgen.generate import check_lengths
from kvgen.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchMap:
    """The effect of every patch on the difference of two logits behind the last position.

    A patch that was not run, because the work was interrupted, is NaN and has the next token -1.
    """

    site: PatchSite
    layers: tuple[int, ...]  # N
    columns: tuple[int, ...]  # M positions, heads or key/value heads
    positions: tuple[int, ...]  # that are patched, all together unless they are the columns
    ids: tuple[int, ...]  # [T] of the prompt
    source_ids: tuple[int, ...]  # [T] of the prompt that activations are taken from
    token: int
    against: int
    base: float  # logit of the token less that of the other, in the prompt's own run
    source: float  # the same in the other run
    base_next: int  # the likeliest next token of each run
    source_next: int
    patched: FloatArray  # [N, M] the same difference with the patch
    next_ids: Ids  # [N, M] the likeliest next token with the patch
    interrupted: bool

    @property
    def effects(self) -> FloatArray:
        """[N, M] how far a patch takes the difference to the source's: 0 nowhere, 1 all the way."""
        way = np.float32(self.source - self.base)
        return (self.patched - np.float32(self.base)) / way

    @property
    def flips(self) -> list[tuple[int, int]]:
        """Layer and column of the patches after which the source's next token is the likeliest."""
        if self.base_next == self.source_next:
            return []
        rows, columns = np.nonzero(self.next_ids == self.source_next)
        return [
            (self.layers[row], self.columns[column])
            for row, column in zip(rows, columns, strict=True)
        ]


class _Run(NamedTuple):
    """One prompt's run, with all that can be put into another."""

    ids: Sequence[int]
    session: Session
    z: FloatArray  # [L, T, H, D]
    states: FloatArray  # [L + 1, T, C]
    logits: FloatArray  # [V] of the last position


def patch(
    engine: Engine,
    params: Params,
    ids: Sequence[int],
    source_ids: Sequence[int],
    *,
    site: PatchSite = "head",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    token: int | None = None,
    against: int | None = None,
    on_patch: Callable[[int], None] = lambda _: None,
    token_text: Callable[[int], str] = "id {}".format,
) -> PatchMap:
    """Run `ids` once for every patch of a site with the run of `source_ids`.

    `residual`: the state that enters a layer at one position; `head`: one head's z; `kv-head`: z of
    all heads that share keys and values; these at all chosen positions together. The difference is
    that of `token` (None: what the source predicts) and `against` (None: what the prompt predicts).
    KeyboardInterrupt ends the work early, once a patch has run. Raises UsageError with a rounded
    prefill (a patch that changes nothing would have effects of up to 0.1), for prompts of
    different lengths, where both predict the same token and none is named, and where the difference
    is the same in both runs; `token_text` gives the name of a token in its words.
    """
    _check(engine, ids, source_ids, site=site, heads=heads)
    config = engine.config
    layers = check_numbers(layers, range(config.n_layers), "layer") or range(config.n_layers)
    positions = check_numbers(positions, range(len(ids)), "position") or range(len(ids))
    heads = check_numbers(heads, range(config.n_heads), "head") or range(config.n_heads)
    base, source = _run(engine, ids), _run(engine, source_ids)
    ends = [int(run.logits.argmax()) for run in (base, source)]
    token = ends[1] if token is None else token
    against = ends[0] if against is None else against
    ways = [float(run.logits[token] - run.logits[against]) for run in (base, source)]
    _check_tokens(token, against, ends, ways, token_text)
    if site == "residual":
        columns = tuple(positions)
    else:
        columns = tuple(heads if site == "head" else range(config.n_kv_heads))
    patched = np.full((len(layers), len(columns)), np.nan, np.float32)
    next_ids = np.full(patched.shape, -1, np.int32)
    plan = _Plan(engine, params, base, source, site, tuple(layers), columns, tuple(positions))
    interrupted = False
    try:
        for row, column, logits in plan.patches():
            patched[row, column] = logits[token] - logits[against]
            next_ids[row, column] = logits.argmax()
            on_patch(1)
    except KeyboardInterrupt:
        if np.isnan(patched).all():
            raise
        interrupted = True
    return PatchMap(
        site=site,
        layers=tuple(layers),
        columns=columns,
        positions=tuple(positions),
        ids=tuple(ids),
        source_ids=tuple(source_ids),
        token=token,
        against=against,
        base=ways[0],
        source=ways[1],
        base_next=ends[0],
        source_next=ends[1],
        patched=patched,
        next_ids=next_ids,
        interrupted=interrupted,
    )


def _check(
    engine: Engine,
    ids: Sequence[int],
    source_ids: Sequence[int],
    *,
    site: PatchSite,
    heads: Sequence[int] | None,
) -> None:
    """Raise UsageError for what cannot be patched, before anything runs."""
    check_lengths(engine.config, len(ids), 0)
    if site not in names(PatchSite):
        raise UsageError(f"{site!r} is not a site: choose {', '.join(names(PatchSite))}")
    if engine.prefill == "fast":
        raise UsageError(
            "patching compares exact runs, and --prefill fast rounds activations: leave out "
            "--prefill fast"
        )
    if len(ids) != len(source_ids):
        raise UsageError(
            f"patching needs prompts of the same number of tokens: {len(ids)} and "
            f"{len(source_ids)}; a word more or less in one of them may help"
        )
    if list(ids) == list(source_ids):
        raise UsageError("patching needs two different prompts: these have the same tokens")
    if heads is not None and site != "head":
        raise UsageError(f"the site {site} has no single heads to choose: leave heads out")


def _check_tokens(
    token: int,
    against: int,
    ends: Sequence[int],
    ways: Sequence[float],
    token_text: Callable[[int], str],
) -> None:
    """Raise UsageError for two tokens whose difference no patch can move.

    `ends` are the predictions and `ways` the differences of the prompt and the source.
    """
    if token == against:
        predicted = list(ends) == [token, token]
        same = "both prompts predict" if predicted else "--token and --against are"
        raise UsageError(
            f"{same} the same token, {token_text(token)}: name two tokens, with --token and "
            "--against"
        )
    if ways[0] == ways[1]:
        raise UsageError(
            f"the other prompt does not change the logits of {token_text(token)} and "
            f"{token_text(against)}: no patch can have an effect on them, so name other tokens or "
            "another prompt"
        )


def _run(engine: Engine, ids: Sequence[int]) -> _Run:
    layers = range(engine.config.n_layers)
    capture = Capture(engine.config, layers, len(ids), states=True)
    session = Session(engine, len(ids), capture=capture)
    logits = session.feed(ids)
    session.require_finite(logits)
    session.capture = None
    assert capture.states is not None
    return _Run(ids, session, capture.z, capture.states, logits)


class _Plan(NamedTuple):
    """What to patch, and the runs that it is done with."""

    engine: Engine
    params: Params
    base: _Run
    source: _Run
    site: PatchSite
    layers: tuple[int, ...]
    columns: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def first_difference(self) -> int:
        """The first position at which the prompts differ: before it both runs are the same."""
        pairs = zip(self.base.ids, self.source.ids, strict=True)
        return next(place for place, (one, other) in enumerate(pairs) if one != other)

    def patches(self) -> Iterator[tuple[int, int, FloatArray]]:
        """Row and column of each patch, and the last position's logits [V] with it."""
        return self._of_states() if self.site == "residual" else self._of_heads()

    def _of_states(self) -> Iterator[tuple[int, int, FloatArray]]:
        # The last position first: a pass overwrites the keys and values from its position on, and
        # later passes read those before theirs.
        for column in reversed(range(len(self.columns))):
            position = self.columns[column]
            for row, layer in enumerate(self.layers):
                if position < self.first_difference:  # both runs are the same up to there
                    yield row, column, self.base.logits
                    continue
                states = self.base.states[layer, position:].copy()
                states[0] = self.source.states[layer, position]
                yield row, column, self._rerun(layer, position, states)

    def _of_heads(self) -> Iterator[tuple[int, int, FloatArray]]:
        config = self.engine.config
        size = config.n_heads // config.n_kv_heads if self.site == "kv-head" else 1
        chosen = [place for place in self.positions if place >= self.first_difference]
        if not chosen:  # both runs are the same there
            for row, column in product(range(len(self.layers)), range(len(self.columns))):
                yield row, column, self.base.logits
            return
        first = chosen[0]
        rows = np.array(chosen) - first
        for row, layer in enumerate(self.layers):
            block = widened_block(config, self.params.layers[layer])
            x = self.base.states[layer, first:]
            for column, number in enumerate(self.columns):
                heads = slice(number * size, (number + 1) * size)
                z = self.base.z[layer, first:].copy()
                z[rows, heads] = self.source.z[layer, chosen, heads]
                states = block.output(x, block.attention_output(z))
                yield row, column, self._rerun(layer + 1, first, states)

    def _rerun(self, layer: int, position: int, states: FloatArray) -> FloatArray:
        """The last position's logits [V], of states [T - position, C] that enter a layer."""
        session, ids = self.base.session, self.base.ids
        session.rewind(position)
        start = Start(layer, states)
        logits = session.feed(ids[position:], start=start, rope_length=len(ids))
        require_finite(logits)
        return logits
