"""Showing is a pure function of what was measured: exact output at a fixed width."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from kvgen.attention.diagnostics import diagnose
from kvgen.attention.record import Recording
from kvgen.attention.steps import explain_row
from kvgen.bench.cost import ModelCost
from kvgen.bench.ledger import Ledger, StepCount
from kvgen.bench.plan import BenchPlan, Workload
from kvgen.bench.report import Arm, BenchReport, Run, StepMaps, Verification
from kvgen.engine.calibration import Calibration
from kvgen.engine.config import ModelConfig
from kvgen.engine.tensors import DTypeName
from kvgen.engine.trace import AttentionTrace, LayerTrace
from kvgen.render.attention import layer_grid, summary
from kvgen.render.bench import bench_view
from kvgen.render.canvas import (
    Canvas,
    Mode,
    causal,
    draw_level,
    draw_map,
    pool_map,
    side_by_side,
    token_label,
)
from kvgen.render.chart import Curve, chart
from kvgen.render.explain import explanation
from kvgen.render.head_map import MapView, head_map
from kvgen.render.timing import RunTimings, timing_block

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
                share=H // G,
                scale=0.4,
                q=vectors(H),
                k=vectors(G),
                v=vectors(G),
                z=vectors(H),
            )
            for layer in range(layers)
        ),
    )


def make_recording(trace: AttentionTrace) -> Recording:
    return Recording(
        trace=trace, sampled_last=None, found=diagnose(trace), decode_rows=None, written=None
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


@pytest.mark.parametrize("mode", ["color", "glyphs", "ascii"])
@pytest.mark.parametrize("width", [60, 80, 100, 200])
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
        layer_grid(recording, layer=1, heads=[0, 1, 2, 3], canvas=canvas, view=MapView()),
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
    return Run(
        workload=work, dtype=dtype, cache_dtype="f32", backend="numba", threads=1, prefill="exact",
        weight_bytes=10**6, calibration=SPEED,
        cost=ModelCost(config=CONFIG, weight_bytes=10**6, cache_item_bytes=4),
        arms=(
            Arm(cache="on", prefill_seconds=(0.5,), step_seconds=((0.001,) * 3,)),
            Arm(cache="off", prefill_seconds=(0.5,), step_seconds=((1.2345,) * 3,)),
            Arm(cache="on+q", prefill_seconds=(0.5,), step_seconds=((0.001,) * 3,)),
        ),
        verification=Verification(
            max_abs_logit_difference=1e-6, tolerance=1e-3, n_steps=3, n_equal=3, near_ties=0
        ),
    )  # fmt: skip


def make_report(n_prompt: int, dtypes: tuple[DTypeName, ...] = ("f32",)) -> BenchReport:
    """A benchmark of three steps with invented figures."""
    work = Workload(ids=(1,) * n_prompt, n_prompt=n_prompt, n_gen=3)
    maps = tuple(
        StepMaps(step=step, on=np.full((1, S), 1 / S, np.float32), off=np.eye(S, dtype=np.float32))
        for step, S in enumerate(range(n_prompt + 1, n_prompt + 4))
    )
    step = StepCount(
        length=n_prompt, computed=1, old_computed=0, keys_read=n_prompt + 1,
        old_keys_read=n_prompt, old_queries_read=0, pairs=np.full(4, n_prompt + 1),
        max_abs_change=0.0,
    )  # fmt: skip
    whole = replace(step, computed=n_prompt + 1, old_computed=n_prompt, max_abs_change=1e-6)
    return BenchReport(
        plan=BenchPlan(workloads=(work,), caches=("on", "off", "on+q"), repetitions=1),
        generated_ids=((1, 2, 3),),
        runs=tuple(make_run(work, dtype) for dtype in dtypes),
        ledger=Ledger(
            n_layers=4, on=(step,) * 3, off=(whole,) * 3, layer=0,
            reads_of_keys=np.arange(n_prompt + 3, 0, -1),
            reads_of_queries=np.ones(n_prompt + 3, np.int64),
            recomputed=np.full(n_prompt + 3, 4), n_compared=24, n_different=0,
        ),
        head=(2, 3),
        maps=maps,
    )  # fmt: skip


BENCH_FACTS = {
    "model": "tiny", "model_hash": "0123", "family": "llama", "parameters": 1000,
    "prompt": "some tokens",
    "environment": {"cpu": "CPU", "cores": 2},
}  # fmt: skip


@pytest.mark.parametrize("mode", ["color", "glyphs", "ascii"])
@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("n_prompt", [5, 638, 2000])
def test_a_benchmark_keeps_to_its_width(n_prompt: int, width: int, mode: Mode) -> None:
    canvas = Canvas(width, mode)
    view = bench_view(make_report(n_prompt), BENCH_FACTS, canvas)
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
    view = bench_view(make_report(50, ("f32", "int8")), BENCH_FACTS, canvas)
    lines = [line.rstrip() for line in lines_of(view, canvas)]
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert text.count("on     int8") == 2 and "threads" not in text
    assert "verified (f32 dtype)" in text and "verified (int8 dtype)" in text


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


def test_one_map_exactly() -> None:
    trace = make_trace(5)
    tokens = [b"<s>", b"The", b" cat", b" sat", b"."]
    recording = make_recording(trace)
    view = head_map(recording, tokens, layer=1, head=2, canvas=GLYPHS, view=MapView())
    assert "\n".join(line.rstrip() for line in lines_of(view, GLYPHS)) == MAP


MAP = """\
layer 1 head 2 (kv head 1) · 5 tokens (3 prompt + 2 decode) · scale 0.4
  q token       key 0        │  1  2  3  4│ top other key    H/nats
  0 <s>         ████████100% │            │   -               0.00
  1 The         ████     45% │▓▓▓         │   1 The     0.55  0.69
  2 ␣cat        █████    59% │▒▒▒▒▒▒      │   1 The     0.25  0.94
  3 ␣sat        ████     52% │▒▒▒░░░▒▒▒   │   1 The     0.20  1.21 ◂
  4 .           █        14% │░░░▓▓▓▒▒▒░░░│   2 ␣cat    0.41  1.48 ◂
weight: blank <.01  · <.05  ░ <.15  ▒ <.35  ▓ <.65  █ more · sink 0.54 · ◂
decode step"""


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
