"""Session: one sequence on one engine, from its first id to the trace of its attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvgen.engine.cache import RowsRead
from kvgen.engine.config import ModelConfig
from kvgen.engine.contract import Engine, KVCache
from kvgen.engine.finite import require_finite
from kvgen.engine.memory import require_memory
from kvgen.engine.tensors import FloatArray
from kvgen.engine.trace import AttentionTrace, Capture, LayerTrace, Recorder, Start
from kvgen.errors import NonFiniteError

_LOGITS_AT_ONCE = 2**24  # 64 MiB of them


def rows_at_once(config: ModelConfig) -> int:
    """How many positions' logits to have in memory together, where those of many are wanted."""
    return max(1, _LOGITS_AT_ONCE // config.vocab_size)


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with.

    >>> shared_prefix([5, 6, 7], [5, 6, 8, 9])
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


class Session:
    """Owns what belongs to one sequence: the KV cache with its ids, and what is captured of Q.

    `capture`, `on_progress` and `on_logits` may be set at any time and hold from the next feed on;
    `reuses_prefix` holds from the next generation on.
    """

    def __init__(
        self,
        engine: Engine,
        capacity: int,
        *,
        capture: Recorder | None = None,
        cache: KVCache | None = None,
        on_progress: Callable[[int], None] | None = None,
        on_logits: Callable[[int, FloatArray], None] | None = None,
    ) -> None:
        """An empty sequence of up to `capacity` positions, in a given cache or a new one.

        `on_progress` hears of each chunk of a feed, by its number of positions. `on_logits` hears
        the logits of every position of a feed that asks for those of the last one: the first
        position of a part, and the part's logits [T, V].
        """
        self.engine = engine
        if cache is None and isinstance(capture, Capture):  # the cache alone asks for itself
            require_memory(
                "ask for fewer tokens or take a smaller model",
                KV_cache=engine.config.kv_bytes_per_position(engine.cache_dtype) * capacity,
                recorded_activations=capture.nbytes,
            )
        self.cache = engine.new_cache(capacity) if cache is None else cache
        self.capture = capture
        self.on_progress = on_progress
        self.on_logits = on_logits
        self.reuses_prefix = False  # whether a generation keeps positions that begin its prompt
        self.positions_run = 0  # by the last feed: those that ran again are counted too
        self._read_before = self.cache.rows_read.counts.copy()

    @property
    def ids(self) -> Sequence[int]:
        """The ids of the positions so far."""
        return self.cache.ids

    @property
    def rows_read(self) -> RowsRead:
        """Rows that attention has read in the last feed."""
        return RowsRead(self.cache.rows_read.counts - self._read_before)

    def feed(
        self,
        ids: Sequence[int],
        *,
        all_logits: bool = False,
        rope_length: int | None = None,
        chunk: int | None = None,
        start: Start | None = None,
    ) -> FloatArray:
        """Run ids behind the sequence: the last one's logits [V], or those of all [T, V].

        Afterwards `positions_run` and `rows_read` tell of this feed: positions that went through
        the model, and rows that attention has read. For `rope_length`, `chunk` and `start` see
        `Engine.forward`.
        """
        run_before = self.cache.positions_run
        self._read_before = self.cache.rows_read.counts.copy()
        if self.on_logits is None or all_logits or start is not None:
            logits = self._forward(ids, all_logits, rope_length, chunk, start)
        else:
            logits = self._forward_in_parts(ids, self.on_logits, rope_length, chunk)
        self.positions_run = self.cache.positions_run - run_before
        return logits

    def _forward(
        self,
        ids: Sequence[int],
        all_logits: bool,
        rope_length: int | None,
        chunk: int | None,
        start: Start | None = None,
    ) -> FloatArray:
        return self.engine.forward(
            ids,
            self.cache,
            capture=self.capture,
            all_logits=all_logits,
            rope_length=rope_length,
            chunk=chunk,
            on_progress=self.on_progress,
            start=start,
        )

    def _forward_in_parts(
        self,
        ids: Sequence[int],
        on_logits: Callable[[int, FloatArray], None],
        rope_length: int | None,
        chunk: int | None,
    ) -> FloatArray:
        """The last position's logits [V]; those of all are never in memory together."""
        length = self.cache.length + len(ids)
        n_at_once = rows_at_once(self.engine.config)
        for begin in range(0, len(ids), n_at_once):
            first = self.cache.length
            part = ids[begin : begin + n_at_once]
            logits = self._forward(part, True, max(length, rope_length or 0), chunk)
            try:
                on_logits(first, logits)
            except NonFiniteError:  # who hears of logits does not know where they come from
                self.require_finite(logits)
                raise
        last: FloatArray = logits[-1]
        return last

    def require_finite(self, logits: FloatArray) -> None:
        """Raise NonFiniteError where logits of the last feed hold NaN or infinity.

        The sequence then runs once more, to say where in the model they first appear.
        """
        require_finite(logits, self.engine, self.ids)

    def rewind(self, length: int = 0) -> None:
        """Forget every position from `length` on."""
        self.cache.truncate(length)

    def rewind_to_prompt(self, ids: Sequence[int]) -> None:
        """Forget every position that does not begin `ids`; all of them unless `reuses_prefix`.

        The last id is never kept: it has to run to give logits.
        """
        kept = shared_prefix(self.ids, ids[:-1]) if self.reuses_prefix else 0
        self.rewind(kept)

    def recording(self, *, n_prompt: int | None = None) -> AttentionTrace:
        """The captured Q with the cache's K and V, over all positions so far.

        The first `n_prompt` of them (None: all) came from the prefill.
        """
        capture, config, T = self.capture, self.engine.config, self.cache.length
        assert isinstance(capture, Capture)
        return AttentionTrace(
            token_ids=tuple(self.ids),
            n_prompt=T if n_prompt is None else n_prompt,
            layers=tuple(
                LayerTrace(
                    layer=layer,
                    heads=capture.heads,
                    group_size=config.n_heads // config.n_kv_heads,
                    scale=config.attn_scales[layer],
                    softcap=config.attn_softcap,
                    window=config.window(layer),
                    q=capture.q[row, :T],
                    k=self.cache.keys(layer),
                    v=self.cache.values(layer),
                    z=capture.z[row, :T],
                )
                for row, layer in enumerate(capture.layers)
            ),
        )
