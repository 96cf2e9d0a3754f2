"""The same models for OpenVINO and ONNX Runtime GenAI.

    python -m tests.peers.convert FOLDER --openvino PYTHON --onnxruntime PYTHON

The first Python has openvino-genai and optimum-intel[openvino], and its optimum-cli is run; the
second has onnxruntime-genai, onnx, onnx_ir, torch and transformers, and its model builder is run:
once for each model in each format. OpenVINO's int8 has one scale for each row, as kvgen's, and its
int4 one for 64 weights, or the most that divide a row; ONNX Runtime has one for 32. What is there
already is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.peers.engines import FORMATS
from tests.peers.shapes import REAL, SHAPES

# The checkpoint, and OpenVINO's options. Without a format, weights stay as they are stored.
_OPENVINO = {
    "f32": ("f32", ["--weight-format", "fp32"]),
    "bf16": ("bf16", []),
    "int8": ("bf16", ["--weight-format", "int8"]),
    "int4": (
        "bf16",
        ["--weight-format", "int4", "--group-size", "64", "--group-size-fallback", "adjust"],
    ),
}
_ONNX = {"f32": ("f32", "fp32"), "int8": ("bf16", "int8"), "int4": ("bf16", "int4")}


def for_openvino(folder: Path, name: str, form: str, python: Path) -> None:
    """One model in one format."""
    stored, options = _OPENVINO[form]
    command = [str(python.parent / "optimum-cli"), "export", "openvino"]
    command += ["--model", str(folder / f"{name}-{stored}")]
    command += ["--task", "text-generation-with-past", *options]
    _convert(folder / f"{name}-openvino-{form}", lambda target: [*command, str(target)])


def for_onnxruntime(folder: Path, name: str, form: str, python: Path) -> None:
    """One model in one of the formats that it has on a CPU."""
    if form not in _ONNX:
        return
    stored, precision = _ONNX[form]
    command = [str(python), "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", precision]
    command += ["-i", str(folder / f"{name}-{stored}"), "-c", str(folder / "onnx-cache")]
    _convert(folder / f"{name}-onnx-{form}", lambda target: [*command, "-o", str(target)])


def _convert(target: Path, command: Callable[[Path], list[str]]) -> None:
    """Run a converter, whose folder gets its name when it is whole."""
    if target.exists():
        return
    unfinished = target.with_name(f"{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    done = subprocess.run(command(unfinished), check=False, capture_output=True, text=True)
    if done.returncode:
        why = "".join(done.stderr.strip().splitlines()[-1:])
        print(f"{target.name}: not converted: {why}", flush=True)  # noqa: T201
        return
    unfinished.rename(target)
    print(f"{target.name}: converted", flush=True)  # noqa: T201


def main() -> None:
    """Convert the models that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what tests.peers.models has written")
    parser.add_argument("--openvino", type=Path, metavar="PYTHON")
    parser.add_argument("--onnxruntime", type=Path, metavar="PYTHON")
    models = [*SHAPES, REAL]
    parser.add_argument("--models", nargs="*", default=models, choices=models)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    arguments = parser.parse_args()
    for name in arguments.models:
        for form in arguments.formats:
            if arguments.openvino:
                for_openvino(arguments.folder, name, form, arguments.openvino)
            if arguments.onnxruntime:
                for_onnxruntime(arguments.folder, name, form, arguments.onnxruntime)


if __name__ == "__main__":
    main()
