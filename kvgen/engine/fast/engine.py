"""FastEngine: a team of threads runs the compiled functions, request after request."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvgen.choices import CacheDTypeName, DTypeName, PrefillName
from kvgen.engine.cache import Held, KeyValueCache
from kvgen.engine.calibration import Calibration
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import KVCache, check_request
from kvgen.engine.fast import layout, target
from kvgen.engine.fast.layout import BLOCK, row_pitch
from kvgen.engine.fast.tables import (
    Words,
    nbytes_of,
    request_of,
    rounded_context_of,
    shape_of,
    weights_of,
    workspace_of,
)
from kvgen.engine.fast.team import Team
from kvgen.engine.fast.team_loop import TeamLoop
from kvgen.engine.kept_rows import beyond_float16
from kvgen.engine.memory import require_memory
from kvgen.engine.params import Params
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import Capture, Recorder, Start
from kvgen.errors import UsageError

_NOTHING_HELD = Held(-1, 0, 0)


def _no_object() -> None:
    """Like a weak reference to None."""


class FastEngine:
    """Compiled by Numba. Weights are used as they are stored, mapped from the file where possible.

    Opening the engine compiles the kernels, or loads them from an earlier run.
    """

    backend: Literal["numba"] = "numba"

    def __init__(
        self,
        params: Params,
        *,
        threads: int,
        cache_dtype: CacheDTypeName,
        prefill: PrefillName = "exact",
    ) -> None:
        """Raises UsageError for a rounded prefill that these weights or this CPU cannot have."""
        if prefill == "fast":
            _check_rounded_prefill(params.dtype)
        self.config: ModelConfig = params.config
        self.dtype: DTypeName = params.dtype
        self.cache_dtype: CacheDTypeName = cache_dtype
        self.prefill: PrefillName = prefill
        self._chunk = 1 if prefill == "stepwise" else layout.CHUNK
        self.threads = threads
        self.weight_bytes = params.matrix_bytes
        self._keep_alive = params  # the addresses point into its arrays
        self._weights = weights_of(params)
        self._request = request_of(cache_dtype)
        workspace = workspace_of(params.config, threads, packed=prefill == "fast")
        # Untouched memory takes no room yet, so that this comes in time.
        require_memory("take a smaller model or fewer threads", working_memory=nbytes_of(workspace))
        self._own_reads = workspace.own.reads
        records = (shape_of(params), self._weights, self._request, workspace)
        self._team = Team(threads, TeamLoop("worker_loop", records), ())
        # What the kernels know of the last forward, as references that keep nothing alive.
        self._pointed_to: tuple[Callable[[], object], ...] = (_no_object,) * 4
        self._held = _NOTHING_HELD
        self._rounded: tuple[Words, Words] | None = None
        self.compile_seconds = self._compile()

    @property
    def passes_by_threads(self) -> Mapping[int, int]:
        """How many passes so many threads have run; see team_size.py."""
        return self._team.size.requests

    def new_cache(self, capacity: int, *, queries: bool = False) -> KeyValueCache:
        """An empty cache for `capacity` positions; see `Engine.new_cache`."""
        return KeyValueCache(
            self.config,
            capacity,
            dtype=self.cache_dtype,
            block=BLOCK,
            pitch=row_pitch(self.config.head_dim),
            queries=queries,
        )

    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        capture: Recorder | None = None,
        all_logits: bool = False,
        rope_length: int | None = None,
        chunk: int | None = None,
        on_progress: Callable[[int], None] | None = None,
        start: Start | None = None,
    ) -> FloatArray:  # T ids -> logits [V] or [T, V]
        """Run T new positions through the model; see `kvgen.engine.contract.Engine.forward`.

        Raises NonFiniteError where a key or value does not fit into a float16 cache.
        """
        assert isinstance(cache, KeyValueCache) and cache.k.shape[-1] == BLOCK
        assert capture is None or isinstance(capture, Capture)
        check_request(self.config, ids, cache, start)
        T, longest = len(ids), min(chunk or self._chunk, layout.CHUNK)
        tokens = np.asarray(ids, np.int64)
        logits = np.empty((T if all_logits else 1, self.config.vocab_size), np.float32)
        with self._team.lock:
            self._own_reads[:] = 0
            again = cache.prepare(T, rope_length=rope_length)
            self._point_to(cache, capture)
            for begin in range(0, len(again), longest):
                part = np.asarray(again[begin : begin + longest], np.int64)
                self._run(part, begin, layout.NONE, logits, None)
            cache.extend(again)
            for begin in range(0, T, longest):
                part = tokens[begin : begin + longest]
                last = begin + len(part) == T
                which = layout.ALL if all_logits else layout.LAST if last else layout.NONE
                rows = logits[begin if all_logits else 0 :]
                self._run(part, cache.length + begin, which, rows, start and start.rows_from(begin))
                if on_progress is not None:
                    on_progress(len(part))
            cache.extend(ids)
            counts = cache.rows_read.counts  # [L, N_READS]
            counts += self._own_reads[:, : self.config.n_layers].sum(axis=0)
        return logits if all_logits else logits[0]

    def calibrate(self) -> Calibration:
        """Measure the compiled kernels; see `Engine.calibrate`."""
        from kvgen.engine.fast.probe import measure  # compiles its kernels only when asked

        return measure(
            self.config,
            dtype=self.dtype,
            cache_dtype=self.cache_dtype,
            n_bytes=self.weight_bytes,
            threads=self.threads,
        )

    def _point_to(self, cache: KeyValueCache, capture: Capture | None) -> None:
        """Give the kernels the addresses of this cache and this capture, where they are others."""
        known = tuple(each() for each in self._pointed_to)
        now = (cache, cache.rope.cos, cache.rope.sin, capture)
        held = cache.held or _NOTHING_HELD
        if held == self._held and all(one is other for one, other in zip(known, now, strict=True)):
            return
        self._held = held
        self._pointed_to = tuple(
            weakref.ref(each) if each is not None else _no_object for each in now
        )
        row = self._request.sequence
        row[layout.KEYS] = cache.k.ctypes.data
        row[layout.VALUES] = cache.v.ctypes.data
        row[layout.CAPACITY] = cache.v.shape[2]
        if cache.k_scales is not None and cache.v_scales is not None:
            row[layout.KEY_SCALES] = cache.k_scales.ctypes.data
            row[layout.VALUE_SCALES] = cache.v_scales.ctypes.data
        row[[layout.N_TABLES, layout.N_POSITIONS, layout.N_ANGLES]] = cache.rope.cos.shape
        row[layout.COS] = cache.rope.cos.ctypes.data
        row[layout.SIN] = cache.rope.sin.ctypes.data
        if self.prefill == "fast":
            self._rounded = rounded_context_of(self.config, cache.v.shape[2])
            row[layout.ROUNDED_KEYS] = self._rounded[0].ctypes.data
            row[layout.ROUNDED_VALUES] = self._rounded[1].ctypes.data
        row[layout.QUERIES] = cache.q.ctypes.data if cache.q is not None else 0
        row[[layout.HELD_LAYER, layout.HELD_BEGIN, layout.HELD_END]] = held
        self._weights.tables[:] = cache.rope.of_layer
        self._weights.captured[:] = -1
        if capture is not None:
            n_layers, n_heads, capacity, _ = capture.q_of_heads.shape
            rows = np.arange(n_layers * n_heads).reshape(n_layers, n_heads)
            self._weights.captured[np.ix_(capture.layers, capture.heads)] = rows
            row[layout.CAPTURED_Q] = capture.q_of_heads.ctypes.data
            row[layout.CAPTURED_Z] = capture.z_of_heads.ctypes.data
            row[layout.CAPTURE_CAPACITY] = capacity
        states = None if capture is None else capture.states
        row[layout.CAPTURED_STATES] = 0 if states is None else states.ctypes.data

    def _run(
        self,
        tokens: npt.NDArray[np.int64],
        position: int,
        which: int,
        logits: FloatArray,
        start: Start | None,
    ) -> None:
        """One request: up to CHUNK tokens of one sequence from a position on."""
        request, T = self._request, len(tokens)
        numbers = request.numbers
        numbers[:] = 0
        numbers[layout.N_TOKENS] = T
        numbers[layout.FIRST_POSITION] = position
        numbers[layout.WHICH_LOGITS] = which
        numbers[layout.LOGITS] = logits.ctypes.data
        if start is not None:
            numbers[layout.FIRST_LAYER] = start.layer
            numbers[layout.STATES] = start.states.ctypes.data
        request.tokens[:T] = tokens
        self._team.run_tokens(T)
        if numbers[layout.OVERFLOW]:
            raise beyond_float16(int(numbers[layout.OVERFLOW]) - 1)

    def _compile(self) -> float:
        """Run a request of no tokens, which compiles or loads all kernels; returns the seconds."""
        began = time.perf_counter()
        self._team.prepare()
        return time.perf_counter() - began


def _check_rounded_prefill(dtype: DTypeName) -> None:
    if dtype not in ("bf16", "int8"):
        raise UsageError(f"--prefill fast needs bf16 or int8 weights, and these are {dtype}")
    if not (target.MULTIPLIES_PAIRS if dtype == "bf16" else target.MULTIPLIES_BYTES):
        raise UsageError(f"this CPU has no instruction for --prefill fast with {dtype} weights")
