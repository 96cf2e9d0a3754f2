"""Every engine: its settings, the commands that measure it, and what their output says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.peers.elsewhere import DEPTHS, N_PROMPT
from tests.peers.samples import EXACT, FAST, OURS

LLAMA, IK, OPENVINO, ONNX = "llama.cpp", "ik_llama.cpp", "OpenVINO", "ONNX"
HERE = Path(__file__).parent


class Format(NamedTuple):
    """One width of weights, as every engine names it."""

    stored: str  # of the checkpoint that kvgen reads
    dtype: str  # of kvgen's weights
    gguf: str


# kvgen has no four bits: it is measured with its int8.
FORMATS = {
    "f32": Format("f32", "auto", "F32"),
    "bf16": Format("bf16", "auto", "BF16"),
    "int8": Format("bf16", "int8", "Q8_0"),
    "int4": Format("bf16", "int8", "Q4_0"),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every engine is given: a model in one format, decode steps and threads."""

    folder: Path
    model: str
    format: str
    threads: int
    n_new: int

    @property
    def of_format(self) -> Format:
        return FORMATS[self.format]

    def file(self, ending: str) -> Path:
        """A file or folder of this model."""
        return self.folder / f"{self.model}-{ending}"


@dataclass(frozen=True)
class Reading:
    """What one process has printed."""

    rates: dict[str, float] = field(default_factory=dict)
    version: str = ""
    read_bytes_per_second: float | None = None
    greedy: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An engine with one of its settings."""

    engine: str
    setting: str
    needs: Path  # a file or folder; without it this engine has no such row
    commands: tuple[tuple[str, ...], ...]
    parse: Callable[[str], Reading]
    can_show_logits: bool = False  # with --text and --logits


def parse_json(output: str) -> Reading:
    """The last line of our own scripts; libraries may write lines before it."""
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    greedy = found.get("greedy")
    return Reading(
        rates=found.get("rates", {}),
        version=found["version"],
        read_bytes_per_second=found.get("read_bytes_per_second"),
        greedy=None if greedy is None else tuple(greedy),
    )


def parse_llama_bench(output: str) -> Reading:
    """llama-bench's JSON; of ik_llama.cpp's `-gp` tests the prompt is the depth."""
    rates, version = {}, ""
    for row in json.loads(output):
        if row["n_gen"]:
            depth = row["n_depth"] if "n_depth" in row else row["n_prompt"]
            rates[f"tg@{depth}"] = float(row["avg_ts"])
        else:
            rates[f"pp{row['n_prompt']}"] = float(row["avg_ts"])
        version = row["build_commit"]
    return Reading(rates=rates, version=version)


def kvgen(work: Work) -> list[Contender]:
    """Exact; and the rounded prefill, for weights that have it."""
    has_fast = work.format != "f32"
    folder = work.file(work.of_format.stored)
    command = (sys.executable, "-m", "tests.peers.ours", str(folder))
    options = ("--dtype", work.of_format.dtype, *_threads_and_steps(work))
    return [
        Contender(
            engine=OURS,
            setting=setting,
            needs=folder,
            commands=((*command, *options, "--prefill", setting),),
            parse=parse_json,
            can_show_logits=True,
        )
        for setting in ((EXACT, FAST) if has_fast else (EXACT,))
    ]


def llama(work: Work, bench: str) -> list[Contender]:
    """Both kinds of attention."""
    command, file = _llama_command(work, bench)
    decode = ("-p", "0", "-n", str(work.n_new), "-d", ",".join(map(str, DEPTHS)))
    prefill = ("-p", str(N_PROMPT), "-n", "0")
    return [
        Contender(
            engine=LLAMA,
            setting=f"-fa {flash}",
            needs=file,
            commands=tuple((*command, "-fa", flash, *test) for test in (decode, prefill)),
            parse=parse_llama_bench,
        )
        for flash in ("0", "1")
    ]


def ik_llama(work: Work, bench: str) -> list[Contender]:
    """Both kinds of attention, with weights as in the file and repacked when it is loaded."""
    command, file = _llama_command(work, bench)
    tests = ["-p", str(N_PROMPT), "-n", "0"]
    for depth in DEPTHS:
        tests += ["-gp", f"{depth},{work.n_new}"]
    return [
        Contender(
            engine=IK,
            setting=f"-fa {flash} -rtr {repack}",
            needs=file,
            commands=((*command, "-fa", flash, "-rtr", repack, *tests),),
            parse=parse_llama_bench,
        )
        for flash in ("0", "1")
        for repack in ("0", "1")
    ]


def openvino(work: Work, python: str) -> list[Contender]:
    """Both of its attention backends; f32 keeps its activations from being rounded too."""
    precision = ("--precision", "f32") if work.format == "f32" else ()
    return [
        _elsewhere(
            work,
            OPENVINO,
            setting=attention,
            script=(python, str(HERE / "openvino_bench.py")),
            options=(*precision, "--attention", attention),
            can_show_logits=attention == "SDPA",  # as the model's own file has it
        )
        for attention in ("SDPA", "PA")
    ]


def onnxruntime(work: Work, python: str) -> list[Contender]:
    """Its only way; it has no bf16 on a CPU."""
    script = (python, str(HERE / "onnx_bench.py"))
    return [] if work.format == "bf16" else [_elsewhere(work, ONNX, setting="-", script=script)]


def _elsewhere(
    work: Work,
    engine: str,
    *,
    setting: str,
    script: tuple[str, ...],
    options: tuple[str, ...] = (),
    can_show_logits: bool = True,
) -> Contender:
    """One of our scripts, run by another Python on what tests.peers.convert has written."""
    folder = work.file(f"{engine.lower()}-{work.format}")
    return Contender(
        engine=engine,
        setting=setting,
        needs=folder,
        commands=((*script, str(folder), *_threads_and_steps(work), *options),),
        parse=parse_json,
        can_show_logits=can_show_logits,
    )


def _threads_and_steps(work: Work) -> tuple[str, ...]:
    return ("--threads", str(work.threads), "--new", str(work.n_new))


def _llama_command(work: Work, bench: str) -> tuple[tuple[str, ...], Path]:
    file = work.file(f"{work.of_format.gguf}.gguf")
    return (bench, "-m", str(file), "-t", str(work.threads), "-r", "1", "-o", "json"), file
