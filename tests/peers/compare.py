"""kvgen and other engines on the same weights, interleaved: tokens per second and their ratio.

    python -m tests.peers.compare FOLDER --llama-bench PATH --ik-bench PATH --openvino PYTHON \\
        --json results.json
    python -m tests.peers.compare --table results.json

Every engine, ours too, runs in a process of its own in each round: it loads the model, warms up and
measures once. Engines take turns, and another one begins in each round. A sample counts, of ours as
of theirs, unless other programs needed the CPUs meanwhile. Each engine has the setting with the
best median. The machines that this runs on are noisy: only ratios say something, and kvgen's probe
of how fast weights are read stands beside them. A JSON file that exists is continued with more
rounds or models.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from kvgen.engine.machine import OtherPrograms, cpu_name
from tests.peers import engines
from tests.peers.engines import FORMATS, Contender, Reading, Work
from tests.peers.quality import Judge
from tests.peers.samples import Results, Sample, is_busy, read_results, write_results
from tests.peers.shapes import REAL, SHAPES
from tests.peers.table import one_line, write_table

SMALL_MODELS = ("tiny", "default")
_STEPS, _STEPS_OF_SMALL = 48, 256  # of decoding: GPT-2's context ends at 1024
_LONGEST_SECONDS = 900.0


def contenders(work: Work, arguments: argparse.Namespace, *, quiet: bool) -> list[Contender]:
    """Every engine that was named and has this model, with each of its settings."""
    found = engines.kvgen(work)
    if arguments.llama_bench:
        found += engines.llama(work, arguments.llama_bench)
    if arguments.ik_bench:
        found += engines.ik_llama(work, arguments.ik_bench)
    if arguments.openvino:
        found += engines.openvino(work, arguments.openvino)
    if arguments.onnxruntime:
        found += engines.onnxruntime(work, arguments.onnxruntime)
    for one in found:
        if not one.needs.exists() and not quiet:
            say(f"{one.engine} {one.setting}: left out, {one.needs} is missing")
    return [one for one in found if one.needs.exists()]


def run(contender: Contender) -> tuple[Reading, float | None]:
    """What an engine measures, and how many CPUs other programs kept busy meanwhile."""
    others, rates, reading = OtherPrograms(), {}, Reading()
    with others.counted():
        for command in contender.commands:
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=_LONGEST_SECONDS
            )
            reading = contender.parse(done.stdout)
            rates |= reading.rates
    return replace(reading, rates=rates), others.cpus


def measure(
    work: Work, entrants: list[Contender], results: Results, judge: Judge, number: int
) -> Results:
    """The results with one more round of a model in one format."""
    begin = number % len(entrants)
    for one in entrants[begin:] + entrants[:begin]:
        try:
            reading, others = run(one)
            quality = judge.judge(one, work) if number == 0 else None
        except (subprocess.SubprocessError, ValueError, KeyError) as error:
            say(f"{work.model} {work.format} {one.engine} {one.setting}: failed: {reason(error)}")
            continue
        sample = Sample(
            round=number,
            model=work.model,
            format=work.format,
            engine=one.engine,
            setting=one.setting,
            rates=reading.rates,
            busy=is_busy(others, threads=work.threads, cpus=results.cpus),
            read_bytes_per_second=reading.read_bytes_per_second,
        )
        say(one_line(sample))
        results = replace(
            results,
            samples=(*results.samples, sample),
            versions=results.versions | {one.engine: reading.version},
            quality=(*results.quality, *([quality] if quality else [])),
        )
    return results


def reason(error: Exception) -> str:
    """The line that says why an engine failed: an assertion that does not hold, or the last one."""
    printed = getattr(error, "stderr", None)
    lines = (printed if isinstance(printed, str) else "").strip().splitlines() or [str(error)]
    return next((line for line in lines if "ASSERT" in line), lines[-1])


def compare(arguments: argparse.Namespace) -> Results:
    """Run every round, keeping the results after each model in each format."""
    file: Path | None = arguments.json
    results = Results(cpu=cpu_name(), cpus=os.cpu_count() or 1, threads=arguments.threads)
    if file is not None and file.exists():
        results = read_results(file)
        if (results.cpu, results.threads) != (cpu_name(), arguments.threads):
            raise SystemExit(f"{file}: measured on another machine or with other threads")
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(Path(folder))
        for turn in range(arguments.rounds):
            for model in arguments.models:
                for form in arguments.formats:
                    work = Work(
                        folder=arguments.folder,
                        model=model,
                        format=form,
                        threads=arguments.threads,
                        n_new=_STEPS_OF_SMALL if model in SMALL_MODELS else _STEPS,
                    )
                    began = time.perf_counter()
                    entrants = contenders(work, arguments, quiet=turn > 0)
                    number = next_round(results, work)
                    results = measure(work, entrants, results, judge, number)
                    if file is not None:
                        write_results(file, results)
                    seconds = time.perf_counter() - began
                    say(f"round {turn + 1}: {model} {form} took {seconds:.0f} s")
    return results


def next_round(results: Results, work: Work) -> int:
    """The number of the round that comes, for a model in one format."""
    rounds = [
        one.round for one in results.samples if (one.model, one.format) == (work.model, work.format)
    ]
    return max(rounds, default=-1) + 1


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201


def main() -> None:
    """Compare what the command line names, or show what has been measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", help="what tests.peers.models and .convert have written"
    )
    parser.add_argument("--llama-bench", metavar="PATH", help="llama.cpp's llama-bench")
    parser.add_argument("--ik-bench", metavar="PATH", help="ik_llama.cpp's llama-bench")
    parser.add_argument("--openvino", metavar="PYTHON", help="a Python with openvino-genai")
    parser.add_argument("--onnxruntime", metavar="PYTHON", help="a Python with onnxruntime-genai")
    models = [*SHAPES, REAL]
    parser.add_argument("--models", nargs="*", default=list(SHAPES), choices=models)
    usual = [name for name in FORMATS if name != "int4"]
    parser.add_argument("--formats", nargs="*", default=usual, choices=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="keep the results here, after every model")
    parser.add_argument("--table", type=Path, help="measure nothing: show the results of a file")
    parser.add_argument("--write", action="store_true", help="--table: into tests/README.md")
    arguments = parser.parse_args()
    if arguments.table:
        text = write_table(read_results(arguments.table), into_readme=arguments.write)
    elif arguments.folder:
        text = write_table(compare(arguments), into_readme=False)
    else:
        parser.error("name the folder of the models, or --table FILE")
    say(text)


if __name__ == "__main__":
    main()
