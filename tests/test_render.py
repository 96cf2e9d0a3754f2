"""Showing is a pure function of what was measured: exact output at a fixed width."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from kvgen.attention.diagnostics import diagnose
from kvgen.attention.record import RecordedRun
from kvgen.attention.steps import explain_row
from kvgen.bench.cost import ModelCost
from kvgen.bench.interventions import Intervention, LaterToken, Recomputed
from kvgen.bench.ledger import Ledger, StepCount
from kvgen.bench.plan import BenchPlan, Workload
from kvgen.bench.report import Arm, BenchReport, Crossing, Run, StepMaps, Verification
from kvgen.choices import ArmName, DTypeName
from kvgen.cli import output
from kvgen.cli.output import Prose, make_canvas, write_line
from kvgen.engine.calibration import Calibration
from kvgen.engine.config import ModelConfig
from kvgen.engine.trace import AttentionTrace, LayerTrace
from kvgen.render.attention import layer_grid, summary
from kvgen.render.bench import bench_view
from kvgen.render.bench_files import bench_markdown
from kvgen.render.canvas import (
    Canvas,
    Mode,
    causal,
    draw_level,
    draw_map,
    pool_map,
    token_label,
)
from kvgen.render.chart import Curve, chart
from kvgen.render.draw import draw
from kvgen.render.explain import explanation
from kvgen.render.head_map import MapView, head_map
from kvgen.render.ink import NEGATIVE_256, POSITIVE_256, SEQUENTIAL_256, Ink
from kvgen.render.layout import flow, side_by_side, stacked_tables
from kvgen.render.timing import RunTimings, timing_block
from kvgen.render.words import WordWrap
from tests.reports import make_context

GLYPHS = Canvas(80, "glyphs")
NAN = np.float32(np.nan)


def make_trace(T: int, *, H: int = 4, G: int = 2, D: int = 6, layers: int = 2) -> AttentionTrace:
    """A trace of random vectors, half of it decode rows."""
    random = np.random.RandomState(T)

    def vectors(n: int) -> np.ndarray:
        return random.standard_normal((T, n, D)).astype(np.float32)

    return AttentionTrace(
        token_ids=tuple(random.randint(0, 9, T).tolist()),
        n_prompt=(T + 1) // 2,
        layers=tuple(
            LayerTrace(
                layer=layer,
                heads=tuple(range(H)),
                group_size=H // G,
                scale=0.4,
                q=vectors(H),
                k=vectors(G),
                v=vectors(G),
                z=vectors(H),
            )
            for layer in range(layers)
        ),
    )


def make_recording(trace: AttentionTrace) -> RecordedRun:
    return RecordedRun(
        trace=trace,
        sampled_last=None,
        diagnostics=diagnose(trace),
        decode_rows=None,
        residual_norms=None,
    )


PROSE = re.compile(r" · |^(!|next|verified|strongest|rows|shapes|o_|weight)")


def without_colors(line: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", line)


def lines_of(view: RenderableType, canvas: Canvas) -> list[str]:
    buffer = io.StringIO()
    color = canvas.mode == "color"
    Console(
        file=buffer,
        width=canvas.width,
        force_terminal=color,
        color_system="truecolor" if color else None,
        highlight=False,
        legacy_windows=False,
    ).print(view)
    return buffer.getvalue().splitlines()


def test_a_map_in_glyphs() -> None:
    weights = np.float32([[0.9, NAN, NAN], [0.005, 0.5, NAN], [0.04, 0.1, 0.3]])
    assert [line.plain for line in draw_map(weights, GLYPHS)] == ["█  ", " ▓ ", "·░▒"]
    wide = draw_map(weights, GLYPHS, cell_width=2)
    assert wide[2].plain == "··░░▒▒"
    assert [line.plain for line in draw_map(weights, Canvas(80, "ascii"))] == ["@  ", " # ", ".:+"]


def test_a_map_in_colour_puts_two_rows_on_a_line() -> None:
    weights = np.float32([[1.0, NAN], [0.25, 0.0], [0.0, 0.0]])
    lines = draw_map(weights, Canvas(80, "color"), halves=True)
    assert [line.plain for line in lines] == ["▀▄", "▀▀"]
    styles = [str(span.style) for span in lines[0].spans]
    assert styles == ["#fde725 on #22908c", "#440154"]  # 1 and sqrt(.25) = .5; 0


def test_pooling_keeps_the_greatest_weight() -> None:
    weights = causal(np.float32([[1, 0, 0], [0.2, 0.8, 0], [0.1, 0.2, 0.7]]))
    np.testing.assert_array_equal(pool_map(weights, 2), np.float32([[1.0, NAN], [0.2, 0.7]]))
    assert pool_map(weights, 1) is weights


@pytest.mark.parametrize(
    ("value", "mode", "cell"),
    [(0.0, "glyphs", "·"), (0.5, "glyphs", "▄"), (1.0, "glyphs", "█"), (0.97, "ascii", "9"),
     (0.0, "ascii", "."), (float("nan"), "glyphs", " ")],
)  # fmt: skip
def test_levels(value: float, mode: Mode, cell: str) -> None:
    assert draw_level(value, Canvas(80, mode)).plain == cell


HOSTILE = {
    b" cat": "␣cat",
    b"\n": "⏎",
    b"\t": "⇥",
    b"\x1b[2J": r"\x1b[2J",
    "\u202eabc".encode(): r"\u202eabc",
    "\u200d".encode(): r"\u200d",
    "\u0301".encode(): r"\u0301",
    b"[/]": "[/]",
    b"[red]": "[red]",
    b"</script>": "</script>",
    b"\xe6\x9c": "<E6 9C>",
    "月".encode(): "月",
    b"": "",
}


@pytest.mark.parametrize(("token", "expected"), HOSTILE.items())
def test_no_token_can_act_on_the_terminal(token: bytes, expected: str) -> None:
    label = token_label(token, GLYPHS, 12)
    assert label.rstrip() == expected
    assert cell_len(label) == 12


@pytest.mark.parametrize("token", [b"x" * 300, "月".encode() * 99, " 🐈‍⬛🐈‍⬛🐈‍⬛🐈‍⬛".encode()])
def test_long_tokens_are_cut_to_the_cell(token: bytes) -> None:
    label = token_label(token, GLYPHS, 10)
    assert cell_len(label) == 10 and label.endswith("…")
    assert token_label(token, Canvas(80, "ascii"), 10).isascii()


def test_blocks_stand_side_by_side() -> None:
    from rich.text import Text

    lines = side_by_side([[Text("a"), Text("bbb")], [Text("c")]])
    assert [line.plain for line in lines] == ["a    c", "bbb  "]


# Each way of drawing at the narrowest width and at a wide one, each width once at least.
SIZES: list[tuple[int, Mode]] = [
    (60, "color"), (60, "glyphs"), (60, "ascii"), (80, "glyphs"), (100, "ascii"), (100, "color"),
    (200, "color"), (200, "glyphs"),
]  # fmt: skip


@pytest.mark.parametrize(("width", "mode"), SIZES)
@pytest.mark.parametrize("T", [1, 2, 13, 150, 700])
def test_every_view_keeps_to_its_width(T: int, width: int, mode: Mode) -> None:
    trace = make_trace(T)
    tokens = [list(HOSTILE)[token] for token in trace.token_ids]
    canvas = Canvas(width, mode)
    recording = make_recording(trace)
    row = explain_row(
        trace.layers[1].q[-1, 3], trace.layers[1].k[:, 1], trace.layers[1].v[:, 1], scale=0.4
    )
    views = [
        summary(recording, canvas),
        layer_grid(recording, tokens, layer=1, heads=[0, 1, 2, 3], canvas=canvas, view=MapView()),
        head_map(recording, tokens, layer=1, head=3, canvas=canvas, view=MapView()),
        explanation(trace, tokens, row, layer=1, head=3, query=T - 1, canvas=canvas),
    ]
    for view in views:
        lines = lines_of(view, Canvas(1000, mode))  # wide enough that nothing wraps
        drawn = [line for line in map(without_colors, lines) if not PROSE.search(line)]
        assert all(cell_len(line.rstrip()) <= width for line in drawn)
        assert len(lines) < 120 + width
        assert "\x1b[2J" not in "".join(lines)


CONFIG = ModelConfig(
    n_layers=4, n_heads=4, n_kv_heads=2, head_dim=8, d_model=32, d_ff=64, vocab_size=100,
    max_context=4096, norm="rms", norm_eps=1e-5, mlp="gated", activation="silu",
    attn_scales=(0.35,) * 4,
)  # fmt: skip
SPEED = Calibration(
    read_bytes_per_second=1e10, flops_per_second=1e11, attention_flops_per_second=1e10
)


def make_run(work: Workload, dtype: DTypeName = "f32") -> Run:
    """An engine's arms on a text of three steps, with invented figures."""
    arms: tuple[tuple[ArmName, float], ...] = (("on", 0.001), ("off", 1.2345), ("on+q", 0.001))
    return Run(
        workload=work, dtype=dtype, cache_dtype="f32", backend="numba", threads=1, prefill="exact",
        weight_bytes=10**6, calibration=SPEED, calibrations=(SPEED,) * 2,
        cost=ModelCost(config=CONFIG, weight_bytes=10**6, cache_dtype="f32"),
        arms=tuple(
            Arm(
                name=name, prefill_seconds=(0.5,), step_seconds=((seconds,) * 3,),
                first_step_seconds=() if name == "off" else (0.002,),
            )
            for name, seconds in arms
        ),
        verification=Verification(
            max_abs_logit_difference=1e-6, tolerance=1e-3, n_steps=3, n_equal=3, near_ties=0
        ),
        steps_with_same_bits=3,
    )  # fmt: skip


def make_report(n_prompt: int, dtypes: tuple[DTypeName, ...] = ("f32",)) -> BenchReport:
    """A benchmark of three steps with invented figures."""
    work = Workload(ids=(1,) * n_prompt, n_prompt=n_prompt, n_gen=3)
    maps = tuple(
        StepMaps(
            step=step,
            on=np.full((1, S), 1 / S, np.float32),
            off=np.eye(S, dtype=np.float32),
            n_scores_on=S,
            n_scores_off=S * (S + 1) // 2,
        )
        for step, S in enumerate(range(n_prompt + 1, n_prompt + 4))
    )
    step = StepCount(
        length=n_prompt, computed=1, recomputed=0, keys_read=n_prompt + 1, values_read=n_prompt + 1,
        queries_read=1, kept_keys_read=n_prompt, kept_values_read=n_prompt, kept_queries_read=0,
        pairs=np.full(4, n_prompt + 1), max_abs_change=0.0,
    )  # fmt: skip
    whole = replace(step, computed=n_prompt + 1, recomputed=n_prompt, max_abs_change=1e-6)
    needs = [
        Intervention(
            backend="numba", step=0, layer=layer, row=row, positions=tuple(range(n_prompt)),
            max_abs_logit_change=(0.0 if row == "q" else 0.5,) * n_prompt, first_visible=0,
            q_live=0.25 if row == "q" else None,
        )
        for layer in range(4) for row in ("k", "v", "q")
    ]  # fmt: skip
    return BenchReport(
        plan=BenchPlan(workloads=(work,), arms=("on", "off", "on+q"), repetitions=1),
        generated_ids=((1, 2, 3),),
        runs=tuple(make_run(work, dtype) for dtype in dtypes),
        ledger=Ledger(
            n_layers=4, on=(step,) * 3, off=(whole,) * 3, layer=0,
            reads_of_keys=np.arange(n_prompt + 3, 0, -1),
            reads_of_values=np.arange(n_prompt + 3, 0, -1),
            reads_of_queries=np.ones(n_prompt + 3, np.int64),
            recomputed=np.full(n_prompt + 3, 4), n_compared=24, n_different=0,
        ),
        head=(2, 3),
        maps=maps,
        other_programs_cpus=None,
        crossing=Crossing(below=(900, 0.09), above=(1000, 0.11)),
        interventions=tuple(needs),
        recomputed=tuple(
            Recomputed(
                backend="numba", layer=layer, n_positions=n_prompt,
                max_abs_logit_change=0.0 if layer == 3 else 0.5,
                next_rows_change=None if layer == 3 else 0.25,
            )
            for layer in range(4)
        ),
        later_token=LaterToken(causal=(0.0,) * n_prompt, unmasked=(0.125,) * n_prompt),
    )  # fmt: skip


CONTEXT = make_context(prompt="some tokens")


@pytest.mark.parametrize(("width", "mode"), SIZES)
@pytest.mark.parametrize("n_prompt", [5, 638, 2000])
def test_a_benchmark_keeps_to_its_width(n_prompt: int, width: int, mode: Mode) -> None:
    canvas = Canvas(width, mode)
    view = bench_view(make_report(n_prompt), CONTEXT, canvas, details=True)
    lines = [without_colors(line).rstrip() for line in lines_of(view, canvas)]
    assert max(map(cell_len, lines)) <= width
    assert not any(line.endswith("…") for line in lines)
    assert "".join(lines).count(" scores") == 6
    beside = any("ms/token by position" in line and "what each" in line for line in lines)
    assert beside == (width >= 120)
    assert any("cache on   " in line and "cache off" in line for line in lines)
    assert sum(f"{n_prompt + 1:,} each" in line for line in lines) == 3


@pytest.mark.parametrize("width", [60, 80, 100])
def test_several_runs_are_told_apart(width: int) -> None:
    canvas = Canvas(width, "glyphs")
    view = bench_view(make_report(50, ("f32", "int8")), CONTEXT, canvas)
    lines = [line.rstrip() for line in lines_of(view, canvas)]
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    on_int8 = [line.split()[:-1] for line in lines if re.search(" on +int8 ", line)]
    assert len(on_int8) == 2 and "threads" not in text
    shown = " ".join(line for line in lines if line.startswith("test "))
    for heading in ("tok/s", "min..max", "times slower"):
        assert shown.count(heading) == 1


def test_a_change_to_logits_that_are_no_numbers_is_drawn() -> None:
    report, canvas = make_report(9), Canvas(100, "ascii")
    infinite = float("inf")
    lost = replace(report.recomputed[0], max_abs_logit_change=infinite, next_rows_change=infinite)
    spread = LaterToken(causal=(0.0,) * 9, unmasked=(infinite,) * 9)
    report = replace(report, recomputed=(lost, *report.recomputed[1:]), later_token=spread)
    text = "\n".join(lines_of(bench_view(report, CONTEXT, canvas, details=True), canvas))
    assert "9 of 9 rows, by up to inf" in text and "0 in the last one" in text


def test_a_rounded_prefill_is_named_with_what_it_is_rounded_to() -> None:
    report, canvas = make_report(50, ("bf16", "int8")), Canvas(200, "glyphs")
    assert "rounded" not in "".join(lines_of(bench_view(report, CONTEXT, canvas), canvas))
    runs = tuple(replace(run, prefill="fast") for run in report.runs)
    for some, dtypes in ((runs, "bf16 or int8"), (runs[1:], "int8")):
        lines = lines_of(bench_view(replace(report, runs=some), CONTEXT, canvas), canvas)
        assert f"CPU · rounded prefill (activations rounded to {dtypes})" in "".join(lines)
        table = bench_markdown(replace(report, runs=some), CONTEXT)
        assert f"| llama {some[0].dtype} rounded prefill |" in table


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_table_of_a_benchmark_loses_a_column(width: int) -> None:
    canvas = Canvas(width, "glyphs")
    lines = lines_of(bench_view(make_report(2000), CONTEXT, canvas, details=True), canvas)
    text = " ".join(line.rstrip() for line in lines)
    for heading in ("cache", "step", "computed", "recomputed", "K read", "kept V", "kept Q"):
        assert heading in text
    assert text.count("pred.") == 3 + 1  # a column for each arm, and the legend
    assert "tg3 @ d2000: 3 decode steps after 2,000 tokens" in text
    assert "pp2000: prefill, 2,000 tokens at once" in text
    assert "tokens a row, " in text and "weight: blank <.01" in text


def test_a_remark_goes_to_a_line_of_its_own_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = "decode    29 tokens   24.6 ms    1177.7 tok/s   (0.85 ms/token; last 0.75)"
    monkeypatch.setattr("kvgen.cli.output._columns", lambda: 60)
    first, second = output.in_lines(line).splitlines()
    assert (first, second) == (line[:45], " " * 8 + line[48:])
    monkeypatch.setattr("kvgen.cli.output._columns", lambda: 100)
    assert output.in_lines(line) == line


def test_a_curve_by_hand() -> None:
    flat = Curve("on", "*", "", [10, 11, 12, 13], [1e-3] * 4)
    rising = Curve("off", "o", "", [10, 11, 12, 13], [1e-3 * 10**power for power in (1, 2, 3, 4)])
    lines = [line.plain for line in chart([flat, rising], width=31, height=7, ascii_only=True)]
    assert lines == CURVE.splitlines()


CURVE = """\
    10 s |                   o
         |
     1 s |             o
  100 ms |      o
   10 ms |o
         |
    1 ms |*     *      *     *
         +--------------------
          10      13 positions
"""


TOKENS = [b"<s>", b"The", b" cat", b" sat", b"."]


def test_one_map_exactly() -> None:
    trace = make_trace(5)
    recording = make_recording(trace)
    view = head_map(recording, TOKENS, layer=1, head=2, canvas=GLYPHS, view=MapView())
    assert "\n".join(line.rstrip() for line in lines_of(view, GLYPHS)) == MAP


MAP = """\
layer 1 head 2 (kv head 1) · 5 tokens (3 prompt + 2 decode) · scale 0.4
  q token       key 0        │  1  2  3  4│ top other key    H/nats
  0 <s>         ████████100% │            │   -               0.00
  1 The         ████     45% │▓▓▓         │   1 The     0.55  0.69
  2 ␣cat        █████    59% │▒▒▒▒▒▒      │   1 The     0.25  0.94
  3 ␣sat        ████     52% │▒▒▒░░░▒▒▒   │   1 The     0.20  1.21 ◂
  4 .           █        14% │░░░▓▓▓▒▒▒░░░│   2 ␣cat    0.41  1.48 ◂
weight: blank <.01  · <.05  ░ <.15  ▒ <.35  ▓ <.65  █ more  ◂ decode step
kv head: whose K and V the head reads
H: entropy of the row, 0 = all on one key
key 0 (the sink): where a head rests that finds nothing
sink 0.43: weight on token 0, without row 0"""


NARROW_MAP = """\
layer 1 head 2 (kv head 1) · 5 tokens (3 prompt + 2 decode)
scale 0.4
  q token       key 0        │  1  2  3  4│
  0 <s>         ████████100% │            │
  1 The         ████     45% │▓▓▓         │
  2 ␣cat        █████    59% │▒▒▒▒▒▒      │
  3 ␣sat        ████     52% │▒▒▒░░░▒▒▒   │
  4 .           █        14% │░░░▓▓▓▒▒▒░░░│
  q token       top other key    H/nats
  0 <s>           -               0.00
  1 The           1 The     0.55  0.69
  2 ␣cat          1 The     0.25  0.94
  3 ␣sat          1 The     0.20  1.21 ◂
  4 .             2 ␣cat    0.41  1.48 ◂"""


def test_a_narrow_map_has_the_strongest_keys_below_it() -> None:
    canvas = Canvas(60, "glyphs")
    view = head_map(
        make_recording(make_trace(5)), TOKENS, layer=1, head=2, canvas=canvas, view=MapView()
    )
    lines = [line.rstrip() for line in lines_of(view, canvas)]
    assert "\n".join(lines[: NARROW_MAP.count("\n") + 1]) == NARROW_MAP


def test_a_layers_maps_have_labels_at_their_edges() -> None:
    canvas = Canvas(80, "glyphs")
    recording = make_recording(make_trace(5))
    view = layer_grid(recording, TOKENS, layer=1, heads=[0, 3], canvas=canvas, view=MapView())
    lines = [line.rstrip() for line in lines_of(view, canvas)]
    labels = [line[:13].rstrip() for line in lines[2:12]]
    assert labels == ["0 <s>", "", "1 The", "", "2 ␣cat", "", "3 ␣sat", "", "4 .", ""]
    assert lines[12] == "key           0                  4      0                  4"
    assert lines[13] == "              kv 0                      kv 1"
    without = layer_grid(recording, layer=1, heads=[0], canvas=canvas, view=MapView())
    assert lines_of(without, canvas)[2].startswith("0      ████")


@pytest.mark.parametrize(
    ("T", "mode", "note"),
    [
        (12, "glyphs", None),
        (17, "glyphs", "2 tokens a row (the greatest)"),
        (17, "color", "2 tokens a row, one in each half"),
        (40, "glyphs", "4 tokens a row, 2 a column (the greatest)"),
        (40, "color", "4 tokens a row, 2 a column (the greatest)"),
    ],
)
def test_a_layers_maps_say_how_many_tokens_a_row_holds(
    T: int, mode: Mode, note: str | None
) -> None:
    canvas = Canvas(200, mode)
    view = layer_grid(
        make_recording(make_trace(T)), [b"t"] * T, layer=1, heads=[0], canvas=canvas, view=MapView()
    )
    lines = [without_colors(line).rstrip() for line in lines_of(view, canvas)]
    assert lines[0].endswith(f" · {note}" if note else "decode)")
    step = 1 if note is None else 4 if T == 40 else 2
    rows = [int(row[1]) for row in map(re.compile(r" *(\d+) t ").match, lines) if row]
    assert rows == list(range(0, T, step))


# --- colours ------------------------------------------------------------------------------------


def luminance(code: int) -> float:
    """Of one of xterm's colours 16 to 255, relative, by sRGB."""
    if code >= 232:
        channels = [8 + 10 * (code - 232)] * 3
    else:
        levels = (0, 95, 135, 175, 215, 255)
        channels = [levels[(code - 16) // place % 6] for place in (36, 6, 1)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (channel / 255 for channel in channels)
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("palette", [SEQUENTIAL_256, NEGATIVE_256, POSITIVE_256])
def test_colours_of_256_only_grow_brighter(palette: tuple[int, ...]) -> None:
    shades = [luminance(code) for code in palette]
    assert shades == sorted(set(shades)) and shades[-1] > 0.4


def test_a_terminal_of_256_colours_gets_the_palette_and_no_other() -> None:
    row = np.linspace(-1, 1, 21, dtype=np.float32)[None]
    canvas = Canvas(80, "color", "256")
    for ink, palette in (
        (Ink(scale="linear"), SEQUENTIAL_256),
        (Ink(scale="linear", signed=True), NEGATIVE_256[::-1] + POSITIVE_256[1:]),
    ):
        shown = row if ink.signed else np.abs(row[:, 10:])
        (line,) = draw_map(shown, canvas, ink)
        codes = [span.style.bgcolor.number for span in line.spans]  # type: ignore[union-attr]
        assert list(dict.fromkeys(codes)) == list(palette)


def test_a_legend_in_colour_has_six_swatches_with_their_values() -> None:
    for colors in ("truecolor", "256"):
        canvas = Canvas(80, "color", colors)  # type: ignore[arg-type]
        legend = canvas.legend()
        assert legend.plain == ("weight: ██ 0  ██ .04  ██ .16  ██ .36  ██ .64  ██ 1  blank: masked")
        swatches = [span.style for span in legend.spans if legend.plain[span.start] == "█"]
        values = (0, 0.04, 0.16, 0.36, 0.64, 1)
        assert [style.color for style in swatches] == [  # type: ignore[union-attr]
            Ink().color(value, canvas.colors) for value in values
        ]
        assert not any(style.dim for style in swatches)  # type: ignore[union-attr]
    signed = Canvas(100, "color").legend(Ink(name="share of o", signed=True), masked=False)
    assert signed.plain == ("share of o: ██ -1  ██ -.44  ██ -.11  ██ 0  ██ .11  ██ .44  ██ 1")
    assert Canvas(60, "color").legend(Ink(scale="log")).plain == (
        "weight: ██ 0  ██ .0001  ██ .001  ██ .01  ██ .1  ██ 1\nblank: masked"
    )


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 100])
def test_text_is_broken_between_words_however_it_is_cut(cut: int) -> None:
    def wrapped(text: str, width: int) -> str:
        wrap = WordWrap()
        pieces = [text[begin : begin + cut] for begin in range(0, len(text), cut)]
        return "".join(wrap.feed(piece, width) for piece in pieces) + wrap.end(width)

    assert wrapped("the cat sat", 8) == "the cat\nsat"
    assert wrapped("the cat sat", 7) == "the cat\nsat"
    assert wrapped("the cat sat", 11) == "the cat sat"
    assert wrapped("a\n\n  b  c ", 3) == "a\n\n  b\nc "
    assert wrapped("on a" + "x" * 12 + " b cd", 8) == "on\na" + "x" * 12 + " b\ncd"
    assert wrapped("月月月月", 6) == "月月月\n月"
    assert wrapped("月 月月", 6) == "月 月\n月"
    assert wrapped("", 6) == ""


class Terminal(io.StringIO):
    """A stdout that says that it is a terminal."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


LINE = "int8, f16 cache, numba: cut in two, once in each chunk: ok, logits differ by 3.1e-05"


@pytest.mark.parametrize("columns", [30, 60, 100])
def test_lines_and_generated_text_on_a_terminal_are_broken_between_words(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    write_line(LINE, good=True)
    shown = sys.stdout.getvalue().splitlines()
    assert " ".join(shown) == LINE and max(map(len, shown)) <= columns
    monkeypatch.setattr(sys, "stdout", Terminal())
    prose = Prose()
    for begin in range(0, len(LINE), 3):
        prose.write(LINE[begin : begin + 3])
    prose.end()
    assert sys.stdout.getvalue().splitlines() == shown


def test_a_terminal_decides_which_colours_a_canvas_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "tmux-256color")
    for name, colors in (("", "256"), ("truecolor", "truecolor")):
        monkeypatch.setenv("COLORTERM", name)
        canvas = make_canvas(color="auto", width=80, ascii_only=False)
        assert (canvas.mode, canvas.colors) == ("color", colors)
        drawn = draw(canvas.legend(), canvas)
        assert ("38;5;53m" in drawn) == (colors == "256") != ("38;2;68;1;84m" in drawn)


@pytest.mark.parametrize("scale", ["sqrt", "linear", "log"])
def test_a_swatch_shows_the_number_of_its_brightness(scale) -> None:
    ink = Ink(scale=scale, most=7.0, signed=True)
    for brightness in (-1.0, -0.4, 0.0, 0.2, 1.0):
        assert ink.brightness(ink.value(brightness)) == pytest.approx(brightness)


# --- nothing is lost on a narrow terminal --------------------------------------------------------


def test_parts_flow_into_lines_without_breaking_one() -> None:
    assert flow(["one two", "three", "four five"], 14).plain == "one two  three\nfour five"
    assert flow(["a", "three words here", "b"], 11, between=" · ").plain == (
        "a\nthree words\nhere · b"
    )


def test_a_table_that_is_too_wide_is_cut_into_several() -> None:
    headings = {name: name for name in ("name", "first", "second", "third")}
    rows = [{"name": "[/]", "first": "1", "second": "22", "third": "333"}]

    def drawn(width: int) -> list[str]:
        canvas = Canvas(width, "glyphs")
        tables = stacked_tables(headings, rows, width=width, keys=("name",), words=("name",))
        return [line.rstrip() for table in tables for line in lines_of(table, canvas)]

    assert drawn(40) == ["name  first  second  third", "[/]       1      22    333"]
    assert drawn(23) == ["name first second third", "[/]      1     22   333"]
    assert "".join(drawn(6)).replace(" ", "").count("333") == 1  # folded, not cut
    assert drawn(18) == ["name first second", "[/]      1     22", "name  third", "[/]     333"]


def test_the_timing_block_exactly() -> None:
    block = timing_block(
        RunTimings(
            load_seconds=0.25,
            compile_seconds=1.5,
            prefill_tokens=9,
            prefill_seconds=0.0412,
            decode_seconds=(0.0284, 0.0292, 0.0301),
            cache_on=True,
            positions=12,
            cache_dtype="f32",
            cache_bytes=552_960,
            peak_rss_bytes=612 * 2**20,
        )
    )
    assert block == (
        "load    250.0 ms · kernels 1.50 s\n"
        "prefill    9 tokens   41.2 ms     218.4 tok/s\n"
        "decode     3 tokens   87.7 ms      34.2 tok/s   "
        "(29.23 ms/token; first 28.40, last 30.10)\n"
        "cache   on · 12 positions · 0.5 MiB f32 · peak RSS 612 MiB"
    )


def test_the_timing_block_of_a_prefill_alone() -> None:
    block = timing_block(
        RunTimings(
            load_seconds=0.1,
            compile_seconds=0.0,
            prefill_tokens=3,
            prefill_seconds=0.0,
            decode_seconds=(),
            cache_on=False,
            positions=3,
            cache_dtype="f32",
            cache_bytes=0,
            peak_rss_bytes=None,
        )
    )
    assert block == (
        "load    100.0 ms\n"
        "prefill    3 tokens    0.0 ms         - tok/s\n"
        "cache   off · everything is recomputed at each step"
    )
