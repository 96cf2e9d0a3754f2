"""What can be shown of a map: measures by hand, windows, pools, inks, and what heads write."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from kvgen import choices
from kvgen.attention.diagnostics import METRICS
from kvgen.attention.example import QUERIES, VALUES, walk
from kvgen.attention.measures import MEASURES, SIGNED, measured, rollout
from kvgen.attention.record import RecordedRun, record
from kvgen.attention.residual import strongest_head
from kvgen.attention.steps import attention_weights, explain_query
from kvgen.errors import UsageError
from kvgen.model import Model
from kvgen.render.attention import USUAL_PANELS, layer_grid, summary
from kvgen.render.canvas import Canvas, Mode, causal, draw_map, pool, pool_map
from kvgen.render.head_map import MapView, chosen_cells, head_map
from kvgen.render.ink import Ink
from kvgen.sampling import Sampler, SamplingOptions
from tests import tiny
from tests.command import LAST_LAYER, inside
from tests.configs import CONFIGS
from tests.conftest import Loader
from tests.sequences import output_weights
from tests.test_render import SIZES, lines_of, make_recording, make_trace, without_colors

NAN = np.float32(np.nan)


def recorded(
    tiny_model: Loader, name: str, n: int = 20, layers: Sequence[int] = (0, 1, 2)
) -> tuple[Model, RecordedRun]:
    model = tiny_model(name)
    recording = record(
        model.engine,
        tiny.make_ids(n, seed=3),
        layers=layers,
        sampler=Sampler(SamplingOptions()),
        max_new_tokens=4,
        output_weights=output_weights(model),
    )
    return model, recording


def test_the_options_name_what_there_is() -> None:
    assert choices.names(choices.Measure) == tuple(MEASURES)
    assert choices.names(choices.MetricName) == tuple(METRICS)


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2", "mistral", "gpt2"])
def test_measures_are_the_steps_of_one_query(name: str, tiny_model: Loader) -> None:
    model, recording = recorded(tiny_model, name)
    trace, D = recording.trace, model.config.head_dim
    for layer, head, query in ((0, 0, 0), (1, 2, 9), (2, 3, 22)):
        row = explain_query(trace.layer(layer), head, query)
        matrix = output_weights(model)(layer)[:, head * D : (head + 1) * D]
        one = trace.layer(layer)
        keys, values = (of[: query + 1, one.kv_head(head)] for of in (one.k, one.v))
        expected = {
            "weights": row.weights,
            "scores": row.products,
            "scaled": row.scaled,
            "cos": row.cosines,
            "share": row.shares,
            "norm": row.weights * np.linalg.norm(values @ matrix.T, axis=1),
            "distance": np.linalg.norm(keys - one.q[query, head], axis=1),
        }
        window = trace.layer(layer).window
        hidden = np.arange(query + 1) <= query - (window or query + 1)
        for measure in MEASURES:
            numbers = measured(
                trace, measure, layer=layer, head=head, norms=recording.residual_norms
            )[query]
            assert np.isnan(numbers[query + 1 :]).all()
            np.testing.assert_allclose(
                numbers[: query + 1],
                np.where(hidden, NAN, expected[measure]),
                rtol=1e-3, atol=1e-4, err_msg=measure,
            )  # fmt: skip


def test_a_head_writes_what_its_slice_of_the_output_matrix_makes(tiny_model: Loader) -> None:
    model, recording = recorded(tiny_model, "llama_gqa")
    assert recording.residual_norms is not None
    trace, D = recording.trace, model.config.head_dim
    for layer, head, query in ((0, 1, 5), (2, 4, 21)):
        one = trace.layer(layer)
        weights = attention_weights(one)[head, query].copy()
        weights[0] = 0
        matrix = output_weights(model)(layer)[:, head * D : (head + 1) * D]
        written = matrix @ (weights @ one.v[:, one.kv_head(head)])
        assert recording.residual_norms.outputs[layer, query, head] == pytest.approx(
            float(np.linalg.norm(written)), rel=1e-3
        )
    outputs = recording.residual_norms.outputs[:, 21]
    assert outputs[strongest_head(trace, recording.residual_norms, 21)] == outputs.max()
    assert strongest_head(trace, recording.residual_norms, 21, layer=1)[0] == 1
    # The first query has only the first key: all are alike, and the lowest is taken.
    assert strongest_head(trace, recording.residual_norms, 0) == (0, 0)


def test_what_was_not_recorded_is_not_made_up(tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, "llama_gqa", layers=[0, 2])
    with pytest.raises(UsageError, match="rollout needs every layer up to 2: record layer 1 too"):
        rollout(recording.trace, 2)
    one = replace(recording.trace.layers[0].only(1), layer=0)
    with pytest.raises(UsageError, match="rollout needs every head"):
        rollout(replace(recording.trace, layers=(one,)), 0)
    with pytest.raises(UsageError, match="holds no norms of v W_O: leave out --show norm"):
        measured(recording.trace, "norm", layer=0, head=0, norms=None)
    with pytest.raises(UsageError, match="name a head with -l and -H"):
        strongest_head(recording.trace, None, 3)


@pytest.mark.parametrize("name", ["llama_gqa", "mistral", "gpt2"])
def test_rollout_is_its_definition(name: str, tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, name)
    T = recording.trace.length
    expected = np.eye(T)
    for layer in range(3):
        mixed = attention_weights(recording.trace.layer(layer)).mean(axis=0) / 2 + np.eye(T) / 2
        expected = mixed @ expected
        flow = rollout(recording.trace, layer)
        np.testing.assert_allclose(flow, expected, atol=1e-6)
        np.testing.assert_allclose(flow.sum(axis=1), 1, atol=1e-5)


# --- what part is shown -----------------------------------------------------------------------


def test_a_dropped_sink_leaves_rows_that_sum_to_one(tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, "llama_gqa")
    cells = chosen_cells(recording, MapView(sink="drop"), layer=1, head=2)
    assert cells.keys == range(1, 23) and cells.first is None
    np.testing.assert_allclose(np.nansum(cells.numbers[1:], axis=1), 1, atol=1e-5)
    assert np.isnan(cells.numbers[0]).all()


def test_windows_are_parts_of_the_whole(tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, "llama_gqa")
    whole = causal(attention_weights(recording.trace.layer(1))[2])
    view = MapView(queries=(10, -3), keys=(-15, 12))
    cells = chosen_cells(recording, view, layer=1, head=2)
    assert (cells.queries, cells.keys) == (range(10, 20), range(8, 12))
    np.testing.assert_array_equal(cells.numbers, whole[10:20, 8:12])
    assert cells.first is not None
    np.testing.assert_array_equal(cells.first, whole[10:20, 0])
    kept = chosen_cells(recording, MapView(sink="keep", keys=(0, 3)), layer=1, head=2)
    np.testing.assert_array_equal(kept.numbers, whole[:, :3])


def test_unbounded_numbers_are_drawn_to_the_greatest_that_is_shown(tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, "llama_gqa")
    for show in MEASURES:
        cells = chosen_cells(recording, MapView(show=show), layer=1, head=2)
        greatest = float(np.nanmax(np.abs(cells.numbers)))
        expected = 1.0 if show in ("weights", "share", "cos") else greatest
        assert cells.ink.most == pytest.approx(expected)
        assert cells.ink.signed == (show in SIGNED)
    fixed = chosen_cells(recording, MapView(show="scores", most=5.0), layer=1, head=2)
    assert fixed.ink.most == 5.0


def test_pooling_by_greatest_size_and_by_mean() -> None:
    numbers = np.float32([[1, NAN, NAN], [-3, 2, NAN], [0, 4, 1]])
    np.testing.assert_array_equal(pool_map(numbers, 2), np.float32([[-3, NAN], [4, 1]]))
    np.testing.assert_array_equal(pool_map(numbers, 2, "mean")[:, 1], np.float32([NAN, 1]))
    rows = pool(numbers, np.array([0, 2]), 0, "mean")
    np.testing.assert_array_equal(rows, np.float32([[-1, 2, NAN], [0, 4, 1]]))


def test_the_last_queries_of_a_pooled_map_stand_alone(tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, "llama_gqa", n=90)
    tokens = [b"t"] * recording.trace.length
    canvas = Canvas(80, "glyphs")
    view = head_map(recording, tokens, layer=1, head=2, canvas=canvas, view=MapView())
    lines = lines_of(view, canvas)
    queries = [int(line.split()[0]) for line in lines if line[:3].strip().isdigit()]
    assert "4x4 max-pooled, the last 8 queries alone" in " ".join(lines)
    assert queries == [*range(0, 85, 4), *range(85, 93)]
    assert sum(line.rstrip().endswith("◂") for line in lines) == 3


# --- inks -------------------------------------------------------------------------------------


def test_scales_by_hand() -> None:
    assert Ink(scale="sqrt").brightness(0.25) == 0.5
    assert Ink(scale="linear", most=4).brightness(1) == 0.25
    assert Ink(scale="log").brightness(1e-3) == pytest.approx(0.4)
    assert Ink(scale="log").brightness(0) == 0 and Ink(scale="log").brightness(1e-9) == 0
    assert Ink(signed=True, most=2).brightness(-0.5) == -0.5
    assert Ink().brightness(7) == 1


def test_negative_numbers_are_told_from_positive_ones() -> None:
    row = np.float32([[-0.9, -0.2, 0.001, 0.2, 0.9, NAN]])
    ink = Ink(name="share of o", signed=True)
    assert draw_map(row, Canvas(80, "ascii"), ink)[0].plain == "=- +@ "
    legend = Canvas(80, "ascii").legend(ink).plain.replace("\n", "  ")
    assert legend.startswith("share of o: blank <.01") and "below 0: - and, from .35, =" in legend
    colored = draw_map(row[:, [0, 4]], Canvas(80, "color"), ink)[0]
    below, above = (span.style.bgcolor.triplet for span in colored.spans)  # type: ignore[union-attr]
    assert below.blue > below.red and above.red > above.blue


def test_a_legend_gives_the_numbers_that_glyphs_begin_at() -> None:
    legend = Canvas(80, "glyphs").legend(Ink(name="q·k", most=20.0)).plain
    assert legend == "q·k: blank <.2  · <1  ░ <3  ▒ <7  ▓ <13  █ more"
    assert "<.0001" in Canvas(80, "glyphs").legend(Ink(scale="log")).plain
    colored = Canvas(80, "color").legend(Ink(scale="linear", most=10.0)).plain
    assert colored == "weight: ██ 0  ██ 2  ██ 4  ██ 6  ██ 8  ██ 10  blank: masked"


# --- on the screen ----------------------------------------------------------------------------


def many(recording: RecordedRun, canvas: Canvas) -> list[str]:
    tokens = [b" token"] * recording.trace.length
    views = []
    for show in MEASURES:
        for sink in ("split", "keep", "drop"):
            view = MapView(show=show, sink=sink, scale="log" if sink == "keep" else "sqrt")
            views.append(head_map(recording, tokens, layer=1, head=2, canvas=canvas, view=view))
            views.append(
                layer_grid(recording, tokens, layer=1, heads=[0, 1, 2], canvas=canvas, view=view)
            )
    rolled = MapView(show="rollout")
    views.append(head_map(recording, tokens, layer=2, head=0, canvas=canvas, view=rolled))
    views.append(summary(recording, canvas, metrics=list(METRICS)))
    return [without_colors(line) for view in views for line in lines_of(view, canvas)]


@pytest.mark.parametrize(("width", "mode"), SIZES)
@pytest.mark.parametrize("n", [1, 2, 60])
def test_every_measure_keeps_to_its_width(
    n: int, width: int, mode: Mode, tiny_model: Loader
) -> None:
    _, recording = recorded(tiny_model, "llama_gqa", n=n)
    assert all(cell_len(line.rstrip()) <= width for line in many(recording, Canvas(width, mode)))


@pytest.mark.parametrize("show", ["scores", "scaled", "norm", "share", "cos", "distance"])
def test_a_head_is_named_under_its_weights_only(show, tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, "llama_gqa")
    sinks = recording.diagnostics.scores["sink-later"] + 1
    recording = replace(
        recording,
        diagnostics=replace(
            recording.diagnostics, scores=recording.diagnostics.scores | {"sink-later": sinks}
        ),
    )
    tokens, canvas = [b"t"] * recording.trace.length, Canvas(100, "glyphs")

    def text(view: MapView) -> str:
        shown = (
            head_map(recording, tokens, layer=1, head=2, canvas=canvas, view=view),
            layer_grid(recording, tokens, layer=1, heads=[2], canvas=canvas, view=view),
        )
        return "\n".join(line for one in shown for line in lines_of(one, canvas))

    assert text(MapView()).count("sink 1.") == 2
    assert "sink" not in text(MapView(show=show))


def test_the_sink_is_measured_without_the_first_row(tiny_model: Loader) -> None:
    _, recording = recorded(tiny_model, "llama_gqa")
    weights = attention_weights(recording.trace.layer(1))
    expected = weights[:, 1:, 0].mean(axis=1)
    np.testing.assert_allclose(recording.diagnostics.scores["sink-later"][1], expected, rtol=1e-5)
    assert USUAL_PANELS[0] == "sink-later" and METRICS["sink-later"] == "sink mass"
    lines = lines_of(summary(recording, Canvas(100, "glyphs")), Canvas(100, "glyphs"))
    best = float(np.nanmax(recording.diagnostics.scores["sink-later"]))
    assert any(line.rstrip().endswith(f" {best:.2f}") for line in lines if "strongest" in line)
    legend = "sink mass: weight on token 0, without row 0"
    assert any(line.startswith(legend) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-l", "2", "-H", "3", "--show", "share"], "share of o: blank <.01"),
        (["-l", "2", "-H", "3", "--show", "scores", "--scale", "linear"], "q·k: blank <"),
        (["-l", "2", "-H", "3", "--sink", "drop"], "renormalised without key 0"),
        (["-l", "2", "-H", "3", "--queries", "-2:", "--keys", "4"], "queries 6..7 · keys 4..4"),
        (["-l", "2", "--show", "cos", "--range", "0.5"], "cos(q, k): blank <.005"),
        (["--show", "rollout"], f"rollout through layers 0..{LAST_LAYER}"),
        (["--show", "rollout", "-l", "3"], "rollout through layers 0..3"),
        (["--metric", "sink,distance"], "distance/7"),
        (["--at", "L2H3"], "layer 2 head 3 (kv head 1)"),
        (["--ablate-all"], "missed most (layer.head): "),
        (["--ablate-all", "-l", "2", "-H", "0-2"], "missed least:"),
    ],
)
def test_views_can_be_asked_for(arguments: list[str], expected: str) -> None:
    run = inside("inspect-attention", "The cat sat on the mat", "--backend", "numpy", *arguments)
    assert run.returncode == 0, run.stderr
    assert expected in run.stdout.decode().replace("\n", " ")


@pytest.mark.parametrize("width", ["60", "80", "100"])
def test_a_what_if_keeps_its_numbers_at_every_width(width: str) -> None:
    prompt = ["inspect-attention", "The cat sat on the mat", "--backend", "numpy"]
    run = inside(*prompt, "--what-if", "kq", "-l", "4", "-H", "2", "--width", width)
    lines = run.stdout.decode().splitlines()
    assert run.returncode == 0 and max(map(cell_len, lines)) <= int(width)
    text = "\n".join(lines)
    assert "..." not in text and text.count("before") >= 2 and text.count("after") >= 2
    assert len(re.findall(r"\d\.\d{3} +\d\.\d{3} +[+-]\d\.\d{3}", text)) >= 5
    assert len(re.findall(r"\d+ \S+ -> \S+ +\d+\.\d\d +\d+\.\d\d", text)) == 5
    for title in ("as it is", "local", "propagated", "local - as it is"):
        assert re.search(rf"^(.*  )?{title}(  .*)?$", text, re.M), title
    assert "weight: blank" in text and "change: blank" in text


@pytest.mark.parametrize("width", ["60", "100"])
def test_decode_steps_name_their_strongest_keys_at_every_width(width: str) -> None:
    prompt = ["inspect-attention", "The cat sat on", "--backend", "numpy", "-n", "4"]
    run = inside(*prompt, "-l", "4", "-H", "2", "--steps", "--width", width)
    text = run.stdout.decode()
    assert run.returncode == 0 and len(re.findall(r" \d+ \S+ +\d\.\d\d", text)) == 6
    assert "weight: blank <.01" in text


def test_a_comparison_keeps_its_columns_at_60(tmp_path: Path) -> None:
    rates = dict.fromkeys(("median", "mean", "stdev", "min", "max"), 11_247.7)
    key = {"depth": 128, "cache": "on", "dtype": "bf16", "cache_dtype": "f16", "backend": "numba"}
    test = key | {"test": "tg16", "threads": 2, "tokens_per_second": rates}
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"results": [test], "model": "m", "environment": {}}))
    run = inside("bench", "--compare", str(file), str(file), "--width", "60")
    text = run.stdout.decode()
    assert run.returncode == 0 and "…" not in text
    for words in ("tg16 @ d128", "bf16+f16", "11,247.7", "1.000", "B/A", "within the spread"):
        assert words in text


def test_the_example_does_not_say_that_only_q_equal_k_is_symmetric() -> None:
    text = " ".join(inside("inspect-attention", "--example").stdout.decode().split())
    assert "both orders are equal exactly when QK^T is symmetric" in text
    assert "only where" not in text
    double = 2 * np.asarray(QUERIES)
    forward, swapped = (
        walk(*pair, VALUES, causal=False) for pair in ((QUERIES, double), (double, QUERIES))
    )
    np.testing.assert_array_equal(forward.scores, forward.scores.T)
    np.testing.assert_array_equal(forward.output, swapped.output)


def test_a_saved_recording_shows_every_measure_again(tmp_path) -> None:
    file = str(tmp_path / "seen.npz")
    prompt = ["inspect-attention", "The cat sat on the mat", "--backend", "numpy"]
    assert inside(*prompt, "-o", file).returncode == 0
    for view in (
        ["-l", "2", "-H", "3", "--show", "norm"],
        ["--explain"],
        ["--show", "rollout", "-l", "4"],
        ["--metric", "entropy-rest"],
    ):
        live, again = inside(*prompt, *view), inside("inspect-attention", file, *view)
        shown, shown_again = (
            [line for line in run.stdout.splitlines() if not line.startswith(b"verified")]
            for run in (live, again)
        )
        assert shown == shown_again and len(shown) > 5


def test_a_figure_shows_what_is_asked_for() -> None:
    pytest.importorskip("matplotlib")
    from kvgen.render.plot import _colors

    for scale in ("sqrt", "linear", "log"):
        _, norm = _colors(Ink(scale=scale, most=4.0))
        assert norm(4.0) == pytest.approx(1)
        _, signed = _colors(Ink(scale=scale, most=4.0, signed=True))
        assert signed(0.0) == pytest.approx(0.5) and signed(-4.0) == pytest.approx(0)
    _, norm = _colors(Ink(scale="sqrt", most=4.0))
    assert norm(1.0) == pytest.approx(math.sqrt(0.25))


def test_a_figure_links_nowhere_and_says_no_date(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "maps.svg"
    prompt = ["inspect-attention", "</script> [/] $x$", "--backend", "numpy", "-l", "2"]
    assert inside(*prompt, "-H", "3", "-o", str(file)).returncode == 0
    text = file.read_text()
    assert all(
        link.startswith("://www.w3.org/") for link in re.findall(r"https?(://[^\"' <]*)", text)
    )
    assert "<dc:date>" not in text and "</script>" not in text


@pytest.mark.parametrize("width", [60, 100, 200])
def test_two_thousand_tokens_fit_any_width(width: int) -> None:
    recording = make_recording(make_trace(2048, H=2, G=1, layers=1))
    canvas = Canvas(width, "glyphs")
    tokens = [b" token"] * 2048
    for view in (
        head_map(recording, tokens, layer=0, head=1, canvas=canvas, view=MapView()),
        layer_grid(
            recording, tokens, layer=0, heads=[0, 1], canvas=canvas, view=MapView(pool="mean")
        ),
    ):
        lines = lines_of(view, canvas)
        assert all(cell_len(line.rstrip()) <= width for line in lines) and len(lines) < 250


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_shows_every_measure(name: str, tiny_model: Loader) -> None:
    model, recording = recorded(tiny_model, name, n=12, layers=[0, 1])
    assert recording.residual_norms is not None and (recording.residual_norms.outputs >= 0).all()
    layer, head = strongest_head(recording.trace, recording.residual_norms, 14)
    window = model.config.window(layer) or 99
    behind = np.arange(15)[:, None] - np.arange(15)
    seen = (behind >= 0) & (behind < window)
    for show in MEASURES:
        numbers = measured(
            recording.trace, show, layer=layer, head=head, norms=recording.residual_norms
        )
        np.testing.assert_array_equal(~np.isnan(numbers), seen, err_msg=show)
        if show in ("weights", "share"):
            np.testing.assert_allclose(np.nansum(numbers, axis=1), 1, atol=1e-4, err_msg=show)
