"""Which rows a step needs: what interventions find, and that they and the counts find faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvgen.bench.interventions import (
    Intervention,
    change_kept_rows,
    change_last_token,
    change_recomputed_queries,
    spoil_old_queries,
)
from kvgen.bench.ledger import count_rows
from kvgen.engine.cache import KeyValueCache, RowsRead
from kvgen.engine.contract import Engine
from kvgen.engine.fast.compiler import jit_entry
from kvgen.engine.fast.engine import FastEngine
from kvgen.engine.fast.kernels.kv_access import read_query
from kvgen.engine.fast.layout import FIRST_POSITION, N_READS, READ_OLD_Q, READ_Q
from kvgen.engine.fast.tables import request_of
from kvgen.engine.reference.decoder import ReferenceEngine
from kvgen.engine.tensors import Dense, FloatArray
from kvgen.errors import NonFiniteError
from kvgen.model import Model
from kvgen.session import Session
from tests import tiny
from tests.configs import CONFIGS
from tests.conftest import BACKENDS, Loader

IDS = tiny.make_ids(21)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
# Grouped queries; learned positions; windows in every layer, and in some.
SEVERAL = pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "mistral", "gemma3"])


def kept_rows(engine: Engine, ids: Sequence[int] = IDS, **options: Any) -> list[Intervention]:
    return list(change_kept_rows(engine, ids, seed=5, **options))


@pytest.mark.parametrize("name", CONFIGS)
@every_backend
def test_a_cache_that_keeps_queries_changes_no_bit(
    name: str, backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model(name, backend=backend).engine
    plain = Session(engine, len(IDS))
    keeping = Session(engine, len(IDS), cache=engine.new_cache(len(IDS), queries=True))
    for part in (IDS[:17], IDS[17:18], IDS[18:]):
        np.testing.assert_array_equal(keeping.feed(part), plain.feed(part))
        assert set(keeping.rows_read.q) == {engine.config.n_heads * keeping.positions_run}
        assert not keeping.rows_read.old_q.any() and not plain.rows_read.q.any()
        np.testing.assert_array_equal(keeping.rows_read.k, plain.rows_read.k)
    extra = engine.config.n_layers * engine.config.n_heads * engine.config.head_dim * 4
    assert keeping.cache.nbytes - plain.cache.nbytes == extra * len(IDS)


@SEVERAL
@every_backend
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_a_step_needs_every_visible_row_of_k_and_v_and_no_old_q(
    name: str, kind: str, backend: str, tiny_model: Loader
) -> None:
    model = tiny_model(name, kind=kind, backend=backend)
    found = kept_rows(model.engine)
    config = model.config
    assert [(one.layer, one.row) for one in found] == [
        (layer, row) for layer in range(config.n_layers) for row in "kvq"
    ]
    for one in found:
        assert one.as_expected and one.positions == tuple(range(20))
        changing = [change > 0 for change in one.max_abs_logit_change]
        window = config.window(one.layer) or len(IDS)
        visible = [j > 20 - window for j in range(20)]
        if one.row == "q":
            assert not any(changing) and one.q_live is not None and one.q_live > 0
        else:
            assert changing == visible and one.q_live is None
    assert spoil_old_queries(model.engine, IDS) == 0


@SEVERAL
@every_backend
def test_without_a_cache_old_queries_matter_but_in_the_last_layer(
    name: str, backend: str, tiny_model: Loader
) -> None:
    found = list(change_recomputed_queries(tiny_model(name, backend=backend).engine, IDS, seed=5))
    assert all(one.max_abs_logit_change > 0 for one in found[:-1])
    assert all(one.next_rows_change is not None and one.next_rows_change > 0 for one in found[:-1])
    assert (found[-1].max_abs_logit_change, found[-1].next_rows_change) == (0, None)


@SEVERAL
def test_a_later_token_changes_old_rows_only_without_the_mask(
    name: str, tiny_model: Loader
) -> None:
    engine = tiny_model(name, backend="numpy").engine
    assert isinstance(engine, ReferenceEngine)
    later = change_last_token(engine, IDS, seed=5)
    assert len(later.causal) == len(later.unmasked) == 20
    assert max(later.causal) == 0 and min(later.unmasked) > 0


@every_backend
def test_rows_are_put_back_and_the_same_seed_gives_the_same_rows(
    backend: str, tiny_model: Loader
) -> None:
    engine = tiny_model("llama_gqa", backend=backend).engine
    assert kept_rows(engine) == kept_rows(engine)
    some = kept_rows(engine, most_positions=6)
    assert all(len(one.positions) == 6 and one.as_expected for one in some)
    assert some[0].positions == tuple(sorted(set(some[0].positions)))


def test_a_value_that_weighs_nothing_is_shown_beside_another_key(tiny_model: Loader) -> None:
    engine = tiny_model("llama_gqa", backend="numpy").engine
    sharp = replace(engine.config, attn_scales=(3000.0,) * engine.config.n_layers)
    engine = ReferenceEngine(replace(tiny_model("llama_gqa").params, config=sharp))
    values = [one for one in kept_rows(engine) if one.row == "v"]
    assert all(one.as_expected for one in values)
    assert any(one.with_other_key for one in values)


def test_logits_that_are_no_numbers_are_refused(tiny_model: Loader) -> None:
    params = tiny_model("llama_gqa").params
    broken = replace(params, embed=Dense(np.full(params.embed.shape, np.nan, np.float32)))
    with pytest.raises(NonFiniteError):
        kept_rows(ReferenceEngine(broken))


# --- Planted faults ---------------------------------------------------------------------------


class ReadsAnOldQuery(KeyValueCache):
    """Attention is given the sum of a query and the one before it."""

    def read_queries(self, layer: int, positions: range) -> FloatArray:
        q = super().read_queries(layer, positions)
        if positions.start == 0:
            return q
        old = super().read_queries(layer, range(positions.start - 1, positions.start))
        return q + np.float32(1e-3) * old


class ServesTheRowBefore(KeyValueCache):
    """A store that is off by one."""

    def read_queries(self, layer: int, positions: range) -> FloatArray:
        back = 1 if positions.start else 0
        return super().read_queries(layer, range(positions.start - back, positions.stop - back))


class SkipsAKey(KeyValueCache):
    """Attention does not see position 3."""

    def read_keys(self, layer: int, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> FloatArray:
        mask[:, 3] &= len(mask) > 1
        return super().read_keys(layer, mask)


@pytest.fixture(params=[ReadsAnOldQuery, ServesTheRowBefore, SkipsAKey])
def faulty(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[KeyValueCache]]:
    monkeypatch.setattr("kvgen.engine.reference.decoder.KeyValueCache", request.param)
    yield request.param


def test_a_fault_of_the_store_shows_in_the_interventions(
    faulty: type[KeyValueCache], tiny_model: Loader
) -> None:
    engine = ReferenceEngine(tiny_model("llama_gqa").params)
    wrong = {one.row for one in kept_rows(engine) if not one.as_expected}
    assert wrong == ({"k", "v"} if faulty is SkipsAKey else {"q"})


def test_a_fault_of_the_store_shows_in_the_counts(
    faulty: type[KeyValueCache], tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = ReferenceEngine(tiny_model("llama_gqa").params)
    session = Session(sound, 21, cache=sound.new_cache(21, queries=True))
    session.feed(IDS[:20])
    session.feed(IDS[20:])
    assert (session.rows_read.old_q.any()) == (faulty is not SkipsAKey)
    # The same totals, as a timed engine makes them, held against a reference without the fault.
    monkeypatch.undo()
    ledger = count_rows(sound, IDS, 20, {"on+q": [session.rows_read]})
    assert not ledger.agrees


def test_a_fault_of_the_compiled_engine_shows(
    tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_model("llama_gqa", backend="numba").engine
    forward = FastEngine.forward

    def reads_an_old_query(self: FastEngine, ids: Sequence[int], cache: Any, **options: Any) -> Any:
        logits = forward(self, ids, cache, **options)
        if len(ids) == 1 and cache.q is not None:
            logits += np.float32(1e-6) * cache.q[1, 0, 3, 0]
        return logits

    assert all(one.as_expected for one in kept_rows(engine))
    monkeypatch.setattr(FastEngine, "forward", reads_an_old_query)
    wrong = [one for one in kept_rows(engine) if not one.as_expected]
    assert [(one.layer, one.row) for one in wrong] == [(1, "q")]
    changing = [change > 0 for change in wrong[0].max_abs_logit_change]
    assert changing == [position == 3 for position in range(20)]
    assert spoil_old_queries(engine, IDS) > 0


@jit_entry
def read_one(kept, position, request, reads, q):  # type: ignore[no-untyped-def]
    read_query(kept, position, request, reads, q, 0, 2)


@pytest.mark.parametrize(("position", "old"), [(0, 1), (5, 1), (6, 0), (7, 0)])
def test_the_compiled_engine_counts_old_queries_where_it_reads_them(
    position: int, old: int
) -> None:
    request, reads, q = request_of("f32"), np.zeros(N_READS, np.int64), np.zeros(2, np.float32)
    request.numbers[FIRST_POSITION] = 6
    kept = np.arange(16, dtype=np.float32)
    read_one(kept, position, request, reads, q)
    np.testing.assert_array_equal(q, kept[2 * position : 2 * position + 2])
    assert (reads[READ_Q], reads[READ_OLD_Q]) == (1, old)


def test_a_wrong_count_of_old_queries_is_told(tiny_model: Loader) -> None:
    model: Model = tiny_model("llama_gqa", backend="numpy")
    session = Session(model.engine, 21)
    session.feed(IDS[:20])
    session.feed(IDS[20:])
    rows = session.rows_read
    assert count_rows(model.engine, IDS, 20, {"on": [rows]}).agrees
    for column in (0, 1, 3):  # K, V, and old Q
        wrong = rows.counts.copy()
        wrong[-1, column] += 1
        assert not count_rows(model.engine, IDS, 20, {"on": [RowsRead(wrong)]}).agrees
