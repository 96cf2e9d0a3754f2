"""Recording: what `Model.inspect` gives, and what a saved file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvgen.atomic_write import write_file
from kvgen.attention.contributions import Contributions, Sources, contributions, sources
from kvgen.attention.diagnostics import frame_of
from kvgen.attention.difference import Difference, compare
from kvgen.attention.export import token_texts
from kvgen.attention.held import check_model, held_contributions, held_lens
from kvgen.attention.lens import Lens, logit_lens
from kvgen.attention.measures import measured
from kvgen.attention.multi_head import HeadSum, OutputProjection, output_projection, sum_heads
from kvgen.attention.predictions import Ids
from kvgen.attention.record import RecordedRun
from kvgen.attention.saved import SavedRecording, read_export
from kvgen.attention.similarity import Similarity, compare_measures
from kvgen.attention.steps import RowExplanation, explain_query
from kvgen.choices import ARRAY_FILES, Measure, check_choice
from kvgen.engine.places import check_number, check_numbers
from kvgen.engine.tensors import FloatArray
from kvgen.errors import UsageError
from kvgen.page.document import Page
from kvgen.recording_file import file_content, kind_of, notebook_page
from kvgen.render.head_map import MapView
from kvgen.render.views import Shown
from kvgen.source import Source


class Recording:
    """The attention of one run over T tokens: N layers, H query heads, G key/value heads, size D.

    Everything is numbered as in the model, whatever was recorded of it; -1 is the last one. Arrays
    are float32. `lens` and `contributions` need the model, or what it has left in the file.
    """

    def __init__(
        self,
        run: RecordedRun,
        token_bytes: Sequence[bytes],
        facts: Mapping[str, Any],
        *,
        source: Source | None = None,
    ) -> None:
        """Made by `Model.inspect` and `Recording.open`; `facts` are of the model and the run."""
        self.run = run
        self.token_ids = run.trace.token_ids  # T that went through the model
        self.token_bytes = list(token_bytes)
        self.n_prompt = run.trace.n_prompt  # those behind them took a decode step each
        self.predictions = run.predictions  # the likeliest next tokens of every position
        self.states = run.states  # [L + 1, T, C] what enters each layer; the last row leaves them
        self.facts = dict(facts)
        self.saved_lens: Lens | None = None
        self.saved_contributions: Contributions | None = None
        self.names = dict(zip(run.trace.token_ids, token_bytes, strict=True))  # of tokens by id
        self.page_facts: dict[str, Any] = {}  # what a page shows besides
        self._source = source
        self.learn_names([] if run.sampled_last is None else [run.sampled_last])
        self.learn_names([] if run.predictions is None else run.predictions.ids)

    @staticmethod
    def open(path: str | Path, *, model: Any = None) -> Recording:
        """Read a file that `save` or `kvgen inspect-attention -o` has written: .npz, .safetensors.

        With the `model` it was made with, `lens` and `contributions` can be asked for again.
        Raises KvgenError for any other file, UsageError for a model of another shape.
        """
        path = Path(path)
        if path.suffix not in ARRAY_FILES:
            raise UsageError(f"{path}: only {' and '.join(ARRAY_FILES)} hold a recording")
        saved = read_export(path)
        if model is not None:
            check_model(saved.recording, model.config)
        source = None if model is None else model.source
        recording = Recording(saved.recording, saved.tokens, saved.meta, source=source)
        recording.saved_lens, recording.saved_contributions = saved.lens, saved.contributions
        recording.names |= saved.names
        return recording

    def __repr__(self) -> str:
        trace = self.run.trace
        n_decode = trace.length - trace.n_prompt
        return (
            f"<Recording of {self.facts.get('model', 'a model')}: {trace.length} tokens "
            f"({trace.n_prompt} prompt + {n_decode} decode), {len(self.layers)} layers x "
            f"{len(self.heads)} heads>"
        )

    @property
    def tokens(self) -> list[str]:
        r"""The T tokens as text; bytes that are no characters are written as \xe6."""
        return token_texts(self.token_bytes)

    @property
    def layers(self) -> tuple[int, ...]:
        """The recorded layers."""
        return tuple(layer.layer for layer in self.run.trace.layers)

    @property
    def heads(self) -> tuple[int, ...]:
        """The recorded query heads, the same in every layer."""
        return self.run.trace.heads

    @property
    def q(self) -> FloatArray:
        """The queries after RoPE [N, T, H, D]."""
        return self._stacked("q")

    @property
    def k(self) -> FloatArray:
        """The keys after RoPE [N, T, G, D], as the cache holds them."""
        return self._stacked("k")

    @property
    def v(self) -> FloatArray:
        """The values [N, T, G, D], as the cache holds them."""
        return self._stacked("v")

    @property
    def z(self) -> FloatArray:
        """Each head's output before W_O, as the kernel wrote it [N, T, H, D]."""
        return self._stacked("z")

    def weights(self, layer: int, head: int) -> FloatArray:
        """The map [T, T]: row i is what query i reads, sums to 1, and is 0 for unseen keys."""
        return np.nan_to_num(self.measure("weights", layer, head), nan=0.0)

    def scores(self, layer: int, head: int) -> FloatArray:
        """q_i . k_j [T, T], before the scale; NaN where query i does not see key j."""
        return self.measure("scores", layer, head)

    def measure(self, name: Measure, layer: int, head: int) -> FloatArray:
        """A measure of `--show` [T, T]; NaN where query i does not see key j."""
        check_choice("measure", name, Measure)
        layer, head = self._place(layer, head)
        norms = self.run.residual_norms
        return measured(self.run.trace, name, layer=layer, head=head, norms=norms)

    def explain(self, layer: int, head: int, query: int = -1) -> RowExplanation:
        """One query's walk through the formula, a number for each key up to its own."""
        layer, head = self._place(layer, head)
        return explain_query(self.run.trace.layer(layer), head, self._query(query))

    def diagnostics(self) -> dict[str, FloatArray]:
        """What each head does, by the names of `--metric` [N, H]; NaN where no row counts."""
        return dict(self.run.diagnostics.scores)

    def frame(self) -> Any:
        """The diagnostics as a pandas frame, a row for each layer and head.

        Raises UsageError where pandas is not installed.
        """
        return frame_of(self.run.diagnostics, layers=self.layers, heads=self.heads)

    def lens(
        self,
        *,
        layers: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        n_candidates: int = 5,
        on_rows: Callable[[int], None] = lambda _: None,
    ) -> Lens:
        """What each layer would predict if the model ended there: see `logit_lens`.

        All layers and positions unless given. The last one is kept for `save`, and a file without
        its model gives that one, or a part of it. Raises UsageError where the model is needed.
        """
        if self._source is None and self.saved_lens is not None:
            return held_lens(self.saved_lens, layers, positions)
        source = self._require_source()
        self.saved_lens = logit_lens(
            source.engine,
            self.run,
            layers=self._numbers(layers, range(source.params.config.n_layers), "layer"),
            positions=self._numbers(positions, range(len(self.token_ids)), "position"),
            n_candidates=n_candidates,
            on_rows=on_rows,
        )
        self.learn_names(self.saved_lens.ids)
        self.learn_names(self.saved_lens.final_ids)
        return self.saved_lens

    def contributions(
        self,
        *,
        query: int | None = None,
        token: int | str | None = None,
        against: int | str | None = None,
    ) -> Contributions:
        """What each part of the model adds to the logit of a next token: see `contributions`.

        A token is an id or a text of one token. Unless given: the last query and its likeliest
        next token. The last result is kept for `save`, and a file without its model gives that one.
        Raises UsageError where the model is needed.
        """
        place = None if query is None else self._query(query)
        held = self.saved_contributions
        if self._source is None and held is not None:
            return held_contributions(held, self.names, query=place, token=token, against=against)
        source = self._require_source()
        self.saved_contributions = contributions(
            source.engine,
            source.params,
            self.run,
            query=-1 if place is None else place,
            token=source.token_id(token),
            against=source.token_id(against),
        )
        found = self.saved_contributions
        self.learn_names([found.token] if found.against is None else [found.token, found.against])
        return found

    def sources(self, layer: int, head: int) -> Sources:
        """The last contributions' part of one head, taken apart by the keys that it reads."""
        source = self._require_source()
        whole = self.saved_contributions or self.contributions()
        layer, head = self._place(layer, head)
        return sources(source.params, self.run, whole, layer=layer, head=head)

    def output_projection(self, layer: int) -> OutputProjection:
        """W_O of a layer. Raises UsageError where the model is not at hand."""
        return output_projection(self._require_source().params, self._layer(layer))

    def multi_head(self, layer: int, query: int = -1) -> HeadSum:
        """One query's attention output as a sum over heads: see `sum_heads`."""
        projection = self.output_projection(layer)
        return sum_heads(self.run.trace.layer(self._layer(layer)), self._query(query), projection)

    def similarity(self) -> Similarity:
        """In how many rows cosine and distance choose the key of the greatest dot product."""
        return compare_measures(self.run.trace)

    def compare(self, other: Recording) -> Difference:
        """How far the maps of another recording are from these; see `kvgen.attention.difference`.

        Raises UsageError where both have no layer and head in common, or other numbers of tokens.
        """
        return compare(self.run.trace, other.run.trace)

    def save(
        self,
        path: str | Path,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        show: Measure = "weights",
        width: int = 100,
    ) -> None:
        """Write a file by its ending: .npz, .safetensors, .json, .html, .txt, .png, .svg or .pdf.

        The first four hold all that was recorded; .html is a page to explore, offline. A text or a
        figure shows these layers and heads: all of them, a layer's heads, or one map each. Raises
        UsageError for another ending, KvgenError where the file cannot be written.
        """
        kind = kind_of(Path(path))
        check_choice("show", show, Measure)
        if kind == "txt" and heads is not None and layers is None:
            raise UsageError("heads are those of layers: name layers too")
        chosen = Shown(
            layers=self._numbers(layers, self.layers, "layer"),
            heads=self._numbers(heads, self.heads, "head"),
            view=MapView(show=show),
        )
        write_file(path, file_content(self.parts, kind, shown=chosen, width=width))

    def export(self, kind: str) -> bytes:
        """The bytes of a file with all that was recorded: npz, safetensors, json or html."""
        return file_content(self.parts, kind, shown=Shown())

    def page(self, *, height: int = 760) -> Page:
        """The page of `save("x.html")` for a notebook, in a frame of that many pixels."""
        return notebook_page(self.parts, height)

    def _repr_html_(self) -> str:
        return self.page()._repr_html_()

    @property
    def parts(self) -> SavedRecording:
        """All that a file of this recording holds."""
        return SavedRecording(
            self.run, self.token_bytes, self.facts, self.saved_lens, self.saved_contributions,
            self.names, self.page_facts,
        )  # fmt: skip

    def learn_names(self, ids: Sequence[int] | Ids) -> None:
        """Learn the bytes of some tokens, where the model is at hand."""
        if self._source is not None:
            for token in np.unique(np.asarray(ids, np.int64)).tolist():
                self.names.setdefault(token, self._source.token_bytes(token))

    def _require_source(self) -> Source:
        if self._source is None:
            raise UsageError(
                "this recording was read without its model, which is needed here: use "
                "Recording.open(path, model=...)"
            )
        return self._source

    def _stacked(self, name: str) -> FloatArray:
        return np.stack([getattr(layer, name) for layer in self.run.trace.layers])

    def _layer(self, layer: int) -> int:
        return check_number(layer, self.layers, "layer", owner="recording")

    def _place(self, layer: int, head: int) -> tuple[int, int]:
        return self._layer(layer), check_number(head, self.heads, "head", owner="recording")

    def _numbers(
        self, chosen: Sequence[int] | None, there: Sequence[int], what: str
    ) -> list[int] | None:
        return check_numbers(chosen, there, what, owner="recording")

    def _query(self, query: int) -> int:
        return check_number(query, range(len(self.token_ids)), "query", owner="recording")
