"""How many threads a request gets, where other programs want the CPUs too.

Threads that wait for each other at every barrier all stop when the system takes the CPU of one of
them. Beside other programs a smaller team can therefore be faster, and one thread is often the
fastest. Nobody can tell beforehand, so it is tried: a team that has waited for its threads tries a
smaller one for a moment, a smaller one now and then a larger one, and whichever takes less time for
a token goes on. The logits have the same bits whatever the number of threads.

A team that never waits tries nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

_REMEMBERED_SECONDS = 0.25  # older requests count less and less
_MANY_WAITS = 0.15  # of a team's time: then a smaller team may be faster
_TRIAL_SECONDS, _TRIAL_REQUESTS = 0.010, 2  # a trial has at least this much of both
_HOPELESS = 2.0  # a trial that costs so many times more is broken off
_CLEARLY_BETTER = 0.97  # of the time for a token: less is noise
_QUIET_SECONDS = 0.2  # of requests that are remembered and hardly waited
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0


@dataclass(slots=True)
class _Spent:
    """What requests have cost lately."""

    tokens: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0  # seconds of them in which a thread waited for one that did not run

    def add(self, tokens: float, seconds: float, waited: float) -> None:
        kept = math.exp(-seconds / _REMEMBERED_SECONDS)
        self.tokens = kept * self.tokens + tokens
        self.seconds = kept * self.seconds + seconds
        self.waited = kept * self.waited + waited

    def waited_much(self, part: float = 1.0) -> bool:
        """Whether waiting took so much that another size may be better, or a part of so much."""
        return self.waited > part * _MANY_WAITS * self.seconds

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / self.tokens


@dataclass(slots=True)
class _Pause:
    """When something may be tried again: later and later, where it has been of no use."""

    seconds: float = _FIRST_PAUSE_SECONDS
    until: float = 0.0

    def begin(self, now: float, *, longer: bool) -> None:
        self.until = now + self.seconds
        if longer:
            self.seconds = min(2 * self.seconds, _LONGEST_PAUSE_SECONDS)


@dataclass(slots=True)
class TeamSize:
    """The number of threads for each request: `choose` before it, `note` after it.

    Decode steps and chunks of a prompt have costs of their own. Times are seconds of one clock.
    """

    most: int
    requests: Counter[int] = field(default_factory=Counter)  # how many ran on so many threads
    _sizes: list[int] = field(init=False)  # all, all but one, and half as many again and again
    _now_at: int = 0  # the usual size, a place in `_sizes`
    _trial_at: int | None = None
    _spent: dict[tuple[int, bool], _Spent] = field(default_factory=dict)  # by place and kind
    _trial_decodes: bool = True
    _trial: _Spent = field(default_factory=_Spent)
    _trial_requests: int = 0
    _reach: int = 1  # how many places further down the next smaller team is
    _smaller: _Pause = field(default_factory=_Pause)
    _larger: _Pause = field(default_factory=_Pause)

    def __post_init__(self) -> None:
        """List the sizes that may be tried."""
        self._sizes = [self.most] if self.most < 3 else [self.most, self.most - 1]
        while self._sizes[-1] > 1:
            self._sizes.append(self._sizes[-1] // 2)

    def choose(self, n_tokens: int, now: float) -> int:
        """How many threads the next request gets."""
        if self.most == 1:
            return 1
        sizes, spent = self._sizes, self._spent.get((self._now_at, n_tokens == 1))
        if self._trial_at is None and spent is not None:
            if self._now_at + 1 < len(sizes) and now >= self._smaller.until and spent.waited_much():
                self._try(min(self._now_at + self._reach, len(sizes) - 1), n_tokens == 1)
            elif self._now_at > 0 and now >= self._larger.until:
                self._try(self._now_at - 1, n_tokens == 1)
        return sizes[self._now_at if self._trial_at is None else self._trial_at]

    def note(self, n_tokens: int, seconds: float, waited: float, now: float) -> None:
        """Learn what the request has cost that was just chosen for, and how long threads waited."""
        if self.most == 1:
            self.requests[1] += 1
            return
        at = self._now_at if self._trial_at is None else self._trial_at
        self.requests[self._sizes[at]] += 1
        decode = n_tokens == 1
        if self._trial_at is None:
            spent = self._spent.setdefault((at, decode), _Spent())
            spent.add(n_tokens, seconds, waited)
            if self._now_at == 0 and spent.seconds > _QUIET_SECONDS and not spent.waited_much(0.1):
                self._smaller, self._larger = _Pause(), _Pause()  # the machine is quiet again
            return
        usual = self._spent.get((self._now_at, decode))
        if usual is None or decode != self._trial_decodes:  # another kind of request than before
            self._end_trial(now, adopt=False)
            return
        self._trial.add(n_tokens, seconds, waited)
        self._trial_requests += 1
        ratio = self._trial.seconds_per_token / usual.seconds_per_token
        whole = self._trial.seconds >= _TRIAL_SECONDS and self._trial_requests >= _TRIAL_REQUESTS
        if whole or (ratio > _HOPELESS and self._trial.seconds > _TRIAL_SECONDS / 4):
            self._end_trial(now, adopt=ratio < _CLEARLY_BETTER)

    def _try(self, at: int, decodes: bool) -> None:
        self._trial_at, self._trial_decodes = at, decodes
        self._trial, self._trial_requests = _Spent(), 0

    def _end_trial(self, now: float, *, adopt: bool) -> None:
        assert self._trial_at is not None
        smaller = self._trial_at > self._now_at
        if adopt:
            # What this size has cost before is remembered: a moment can be lucky.
            spent = self._spent.setdefault((self._trial_at, self._trial_decodes), _Spent())
            spent.add(self._trial.tokens, self._trial.seconds, self._trial.waited)
            self._now_at, self._reach = self._trial_at, 1
            (self._larger if smaller else self._smaller).begin(now, longer=True)
        else:
            if smaller:  # next time one that is smaller still, and then the first again
                self._reach += 1
                if self._trial_at == len(self._sizes) - 1:
                    self._reach = 1
            (self._smaller if smaller else self._larger).begin(now, longer=True)
        self._trial_at = None
