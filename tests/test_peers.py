"""The comparison with other engines: what their output says, medians, tables. Nothing is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.peers import compare, engines, table
from tests.peers.engines import Contender, Work, parse_json, parse_llama_bench
from tests.peers.quality import Judge, divergence, n_same
from tests.peers.samples import (
    Quality,
    Results,
    Sample,
    compared,
    figure,
    is_busy,
    read_results,
    write_results,
)

# llama-bench's own words, without the keys that nobody reads.
LLAMA_CPP = """[
  {"build_commit": "0c1e570", "flash_attn": 1, "n_prompt": 0, "n_gen": 8, "n_depth": 16,
   "avg_ns": 111775663, "avg_ts": 71.571931, "samples_ts": [ 71.5719 ]},
  {"build_commit": "0c1e570", "flash_attn": 1, "n_prompt": 0, "n_gen": 8, "n_depth": 960,
   "avg_ns": 336706603, "avg_ts": 23.759558, "samples_ts": [ 23.7596 ]}
]"""
IK_LLAMA_CPP = """[
  {"build_commit": "8337e4cd3", "repack": true, "n_prompt": 512, "n_gen": 0,
   "avg_ts": 811.931321, "test": "pp512"},
  {"build_commit": "8337e4cd3", "repack": true, "n_prompt": 16, "n_gen": 8,
   "avg_ts": 636.640423, "test": "tg8@pp16"},
  {"build_commit": "8337e4cd3", "repack": true, "n_prompt": 960, "n_gen": 8,
   "avg_ts": 67.837188, "test": "tg8@pp960"}
]"""
SCRIPT = """a warning of some library
{"version": "2026.4.1.0", "rates": {"tg@16": 118.5, "pp512": 3313.8}, "greedy": [5, 6]}
"""
RATES = {"tg@16": 100.0, "tg@960": 80.0, "pp512": 1000.0}


def sample(engine: str, setting: str, rate: float, **changes: object) -> Sample:
    """A sample whose rates are multiples of one number."""
    rates = {test: value * rate for test, value in RATES.items()}
    made = Sample(
        round=0, model="tiny", format="int8", engine=engine, setting=setting, rates=rates,
        busy=False,
    )  # fmt: skip
    return replace(made, **changes)


RESULTS = Results(
    cpu="A CPU",
    cpus=2,
    threads=2,
    versions={"kvgen": "0.1.0", "llama.cpp": "0c1e570"},
    samples=(
        sample("kvgen", "exact", 2.0, read_bytes_per_second=40e9),
        sample("kvgen", "fast", 3.0, rates={"pp512": 3000.0}, read_bytes_per_second=50e9),
        sample("llama.cpp", "-fa 0", 1.0),
        sample("llama.cpp", "-fa 1", 1.25),
        sample("kvgen", "exact", 3.0, round=1),
        sample("llama.cpp", "-fa 0", 9.0, round=1, busy=True),
        sample("llama.cpp", "-fa 1", 1.25, round=1),
    ),
    quality=(
        Quality(
            model="tiny", format="int8", engine="kvgen", setting="fast", nats_per_token=0.0277,
            same_greedy=27, n_greedy=48,
        ),
    ),
)  # fmt: skip


def test_llama_bench_tells_the_depth_of_a_decode_step() -> None:
    reading = parse_llama_bench(LLAMA_CPP)
    assert reading.rates == {"tg@16": 71.571931, "tg@960": 23.759558}
    assert reading.version == "0c1e570"


def test_the_prompt_before_a_step_is_the_depth_in_ik_llama_cpp() -> None:
    rates = parse_llama_bench(IK_LLAMA_CPP).rates
    assert rates == {"pp512": 811.931321, "tg@16": 636.640423, "tg@960": 67.837188}


def test_lines_before_a_script_s_json_are_skipped() -> None:
    reading = parse_json(SCRIPT)
    assert reading.rates == {"tg@16": 118.5, "pp512": 3313.8}
    assert (reading.version, reading.greedy) == ("2026.4.1.0", (5, 6))
    assert parse_json('{"version": "1"}').greedy is None


def test_every_engine_is_asked_for_the_same_work(tmp_path: Path) -> None:
    work = Work(folder=tmp_path, model="tiny", format="int8", threads=3, n_new=7)
    found = [
        *engines.kvgen(work),
        *engines.llama(work, "llama"),
        *engines.ik_llama(work, "ik"),
        *engines.openvino(work, "python"),
        *engines.onnxruntime(work, "python"),
    ]
    assert [(one.engine, one.setting) for one in found] == [
        ("kvgen", "exact"), ("kvgen", "fast"),
        ("llama.cpp", "-fa 0"), ("llama.cpp", "-fa 1"),
        ("ik_llama.cpp", "-fa 0 -rtr 0"), ("ik_llama.cpp", "-fa 0 -rtr 1"),
        ("ik_llama.cpp", "-fa 1 -rtr 0"), ("ik_llama.cpp", "-fa 1 -rtr 1"),
        ("OpenVINO", "SDPA"), ("OpenVINO", "PA"), ("ONNX", "-"),
    ]  # fmt: skip
    for one in found:
        words = " ".join(word for command in one.commands for word in command)
        assert "--threads 3" in words or "-t 3" in words
        assert "--new 7" in words or ("-n 7 -d 16,960" in words) or "-gp 16,7 -gp 960,7" in words
    assert engines.kvgen(replace(work, format="f32"))[-1].setting == "exact"
    assert engines.onnxruntime(replace(work, format="bf16"), "python") == []


def test_the_best_setting_is_the_one_with_the_best_median() -> None:
    ours = figure(RESULTS.of("tiny", "int8", "kvgen"), "tg@16")
    theirs = figure(RESULTS.of("tiny", "int8", "llama.cpp"), "tg@16")
    assert ours is not None and theirs is not None
    assert (ours.setting, ours.rate) == ("exact", 250.0)
    # The busy sample with nine times the rate does not count.
    assert (theirs.setting, theirs.rate) == ("-fa 1", 125.0)
    found = compared(ours, theirs)
    assert found is not None and (found.ratio, found.least, found.most) == (2.0, 1.6, 2.4)


def test_only_rounds_in_which_both_count_are_compared() -> None:
    first_busy = [sample("kvgen", "exact", 1.0, busy=True), sample("kvgen", "exact", 2.0, round=1)]
    last_busy = [sample("x", "", 1.0), sample("x", "", 1.0, round=1, busy=True)]
    ours, theirs = figure(first_busy, "tg@16"), figure(last_busy, "tg@16")
    found = compared(ours, theirs)
    assert found is not None and found.ratio is None
    assert figure([sample("x", "", 1.0, busy=True)], "tg@16") is None


def test_a_sample_is_busy_where_the_cpus_did_not_do_for_all() -> None:
    assert is_busy(0.3, threads=2, cpus=2) and not is_busy(0.05, threads=2, cpus=2)
    assert not is_busy(3.0, threads=2, cpus=8)
    assert not is_busy(None, threads=2, cpus=2)


def test_the_tables_are_those_of_the_results() -> None:
    assert table.speed_table(RESULTS) == (
        "| model | weights | test | kvgen | llama.cpp (kvgen / it) |\n"
        "| --- | --- | --- | ---: | ---: |\n"
        "| tiny | int8 | tg@16 | 250 | 125 (2.00; 1.60..2.40) |\n"
        "| tiny | int8 | tg@960 | 200 | 100 (2.00; 1.60..2.40) |\n"
        "| tiny | int8 | pp512 | 2,500 | 1,250 (2.00; 1.60..2.40) |\n"
        "| tiny | int8 | pp512 fast | 3,000 | 1,250 (2.40; 2.40..2.40) |"
    )
    assert table.quality_table(RESULTS).splitlines()[-1] == (
        "| tiny | int8 | kvgen fast | 0.02770 | 27 of 48 |"
    )
    assert table.caption(RESULTS) == (
        "A CPU, 2 threads; kvgen 0.1.0, llama.cpp 0c1e570; rounds: 2. Tokens per second, medians; "
        "in brackets kvgen's rate over the other's: the median ratio, and the least and greatest "
        "of a round. 1 of 7 samples were taken while other programs needed the CPUs, and do not "
        "count. kvgen's probe read weights at 40 to 50 GB/s, median 45."
    )


def test_a_row_without_a_sample_that_counts_says_so() -> None:
    busy = replace(
        RESULTS, samples=tuple(replace(one, busy=True) for one in RESULTS.samples), quality=()
    )
    assert "| tiny | int8 | tg@16 | busy | busy |" in table.speed_table(busy)
    assert table.quality_table(busy) == ""


def test_a_sample_is_shown_on_one_line() -> None:
    assert table.one_line(replace(RESULTS.samples[0], busy=True)) == (
        "tiny     int8  kvgen        exact         tg@16 200.0 · tg@960 160.0 · pp512 2000.0"
        " · probe 40.0 GB/s · busy: does not count"
    )


def test_results_are_kept_as_they_were(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", RESULTS)
    assert read_results(tmp_path / "results.json") == RESULTS


def test_the_table_is_written_between_the_markers_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = table.README.read_text(encoding="utf-8")
    monkeypatch.setattr(table, "README", tmp_path / "README.md")
    table.README.write_text(text, encoding="utf-8")
    written = table.write_table(RESULTS, into_readme=True)
    begin, end = text.index(table.BEGIN), text.index(table.END)
    expected = f"{text[:begin]}{table.BEGIN}\n{written}\n\n{text[end:]}"
    assert table.README.read_text(encoding="utf-8") == expected
    table.write_table(RESULTS, into_readme=True)
    assert table.README.read_text(encoding="utf-8") == expected


def test_engines_take_turns_and_a_failing_one_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"

    def contender(engine: str, code: str) -> Contender:
        note = f"open({str(log)!r}, 'a').write('{engine} '); "
        command = (sys.executable, "-c", note + code)
        return Contender(
            engine=engine, setting="", needs=tmp_path, commands=(command,), parse=parse_json
        )

    print_json = f"print({json.dumps(json.dumps({'version': '7', 'rates': RATES}))})"
    entrants = [
        contender("one", print_json),
        contender("two", "raise SystemExit('no such model')"),
        contender("three", print_json),
    ]
    work = Work(folder=tmp_path, model="tiny", format="int8", threads=1, n_new=1)
    results = Results(cpu="A CPU", cpus=64, threads=1)
    judge = Judge(tmp_path)
    for _ in range(2):
        number = compare.next_round(results, work)
        results = compare.measure(work, entrants, results, judge, number)
    assert log.read_text() == "one two three two three one "
    assert [(one.engine, one.round) for one in results.samples] == [
        ("one", 0), ("three", 0), ("three", 1), ("one", 1),
    ]  # fmt: skip
    assert results.versions == {"one": "7", "three": "7"}
    assert all(one.rates == RATES for one in results.samples)
    assert "tiny int8 two : failed: no such model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("ggml.c:17447: GGML_ASSERT(eps > 0.0f) failed\nNo stack.\n", "GGML_ASSERT(eps > 0.0f)"),
        ("Traceback\n  run()\nValueError: no such file\n", "ValueError: no such file"),
        ("", "exit status 2"),
        (None, "exit status 2"),
    ],
)
def test_a_failure_is_told_by_its_telling_line(stderr: str | None, expected: str) -> None:
    error = subprocess.CalledProcessError(2, ["llama-bench"], stderr=stderr)
    assert expected in compare.reason(error)


def test_the_divergence_of_two_distributions() -> None:
    expected = np.log(np.array([[0.5, 0.5]]))
    logits = np.log(np.array([[0.25, 0.75]])) + 3
    assert divergence(expected, logits) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert divergence(expected, np.zeros((1, 2))) == pytest.approx(0)


def test_ids_are_the_same_until_the_first_other_one() -> None:
    assert n_same([1, 2, 3], [1, 2, 4]) == 2
    assert n_same([1, 2, 3], [1, 2, 3]) == 3
    assert n_same([1, 2, 3], [1, 2]) == 2


def test_queries_and_keys_for_gguf_have_neighbours_turned_together() -> None:
    pytest.importorskip("gguf")
    from tests.peers.models import interleaved

    rows = np.arange(8, dtype=np.float32)[:, None]  # two heads of four rows
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
