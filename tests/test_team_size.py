"""A team of threads beside other programs: who takes part is tried and remembered."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from kvgen.engine.contract import Engine
from kvgen.engine.fast import layout
from kvgen.engine.fast import team as team_module
from kvgen.engine.fast.team_size import TeamSize
from kvgen.engine.tensors import FloatArray
from kvgen.render.timing import fewer_threads
from kvgen.session import Session
from tests import tiny
from tests.configs import CONFIGS
from tests.conftest import Loader

# Seconds of a token and seconds waited in it, by the time and the number of threads.
Machine = Callable[[float, int], tuple[float, float]]


def run(size: TeamSize, machine: Machine, tokens: int, now: float = 0.0) -> tuple[float, list[int]]:
    """Decode on an imagined machine; the time at the end, and the threads of each token."""
    chosen = []
    for _ in range(tokens):
        n_threads = size.choose(1, now)
        seconds, waited = machine(now, n_threads)
        now += seconds
        size.note(1, seconds, waited, now)
        chosen.append(n_threads)
    return now, chosen


def quiet(_: float, n_threads: int) -> tuple[float, float]:
    return 0.0006 / n_threads, 0.0


def crowded(_: float, n_threads: int) -> tuple[float, float]:
    """Every CPU is shared: a team waits whole time slices, one thread takes twice as long."""
    return (0.0012, 0.0) if n_threads == 1 else (0.0080, 0.0060)


def test_a_quiet_machine_tries_nothing() -> None:
    for most in (1, 2, 8):
        _, chosen = run(TeamSize(most), quiet, 3000)
        assert set(chosen) == {most}


@pytest.mark.parametrize("most", [2, 8])
def test_a_team_that_waits_goes_on_with_one_thread(most: int) -> None:
    ended, chosen = run(TeamSize(most), crowded, 3000)
    assert chosen[-500:].count(1) > 450
    assert 3000 * 0.0012 / ended > 0.9  # of what one thread alone would have made


def test_the_pauses_between_trials_grow() -> None:
    _, chosen = run(TeamSize(2), crowded, 5000)  # about six seconds
    trials = [i for i, (one, next_) in enumerate(pairwise(chosen))
              if one == 1 and next_ == 2]  # fmt: skip
    pauses = np.diff(trials)
    assert len(trials) > 3
    assert pauses[0] < pauses[-1]


def test_the_larger_team_comes_back_with_the_quiet() -> None:
    size = TeamSize(2)
    now, _ = run(size, crowded, 3000)
    _, chosen = run(size, quiet, 3000, now)
    assert chosen[-500:].count(2) > 450
    assert chosen.count(2) > 1000


def test_a_short_disturbance_changes_nothing_for_long() -> None:
    def disturbed_once(now: float, n_threads: int) -> tuple[float, float]:
        return (0.004, 0.0036) if 0.5 < now < 0.502 and n_threads == 2 else quiet(now, n_threads)

    _, chosen = run(TeamSize(2), disturbed_once, 3000)
    assert chosen.count(1) < 50


def test_a_team_that_stops_now_and_then_is_kept_where_it_is_faster() -> None:
    """A quota of 1.5 CPUs: two threads stand still for a quarter of every tenth of a second."""

    def within_quota(now: float, n_threads: int) -> tuple[float, float]:
        seconds, _ = quiet(now, n_threads)
        stands_still = n_threads == 2 and now % 0.1 + seconds > 0.075
        pause = 0.1 - now % 0.1 if stands_still else 0.0
        return seconds + pause, pause

    tokens = 10_000
    ended, _ = run(TeamSize(2), within_quota, tokens)
    assert tokens * 0.0003 / 0.75 / ended > 0.9


def test_chunks_of_a_prompt_and_decode_steps_have_costs_of_their_own() -> None:
    size, now = TeamSize(2), 0.0
    for _ in range(200):
        for n_tokens, seconds in ((192, 0.02), (1, 0.0003)):
            assert size.choose(n_tokens, now) == 2
            now += seconds
            size.note(n_tokens, seconds, 0.0, now)
    assert size.requests == {2: 400}


def test_the_note_of_fewer_threads() -> None:
    assert fewer_threads({2: 990, 1: 10}, 2) == ""
    assert fewer_threads({}, 2) == ""
    assert fewer_threads({2: 27, 1: 974}, 2) == (
        "other programs kept CPUs busy: 974 of 1,001 passes ran with fewer than 2 threads, most of "
        "them with 1"
    )


@pytest.mark.parametrize("name", list(CONFIGS))
def test_threads_that_leave_a_request_do_not_change_a_bit(
    name: str, tiny_model: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tiny.make_ids(65, seed=1)

    def logits(engine: Engine) -> list[FloatArray]:
        whole = engine.forward(ids, engine.new_cache(len(ids)), all_logits=True)
        session = Session(engine, len(ids))
        return [whole, session.feed(ids[:40]), *(session.feed([token]) for token in ids[40:])]

    expected = logits(tiny_model(name, backend="numba", threads=1).engine)
    left = []

    def with_all(team: team_module.Team, _: int) -> None:
        # A patience that is used up at once: two of three threads leave at the first barrier.
        shared = team._state.shared
        shared[layout.PATIENCE] = -(2**62)
        arrived = int(shared[layout.ARRIVED])
        team._run_with(3)
        left.append(int(shared[layout.LEAVE_AT]) == arrived + 3)

    monkeypatch.setattr(team_module.Team, "run_tokens", with_all)
    for one, other in zip(
        logits(tiny_model(name, backend="numba", threads=3).engine), expected, strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert len(left) == 27
    assert all(left)
