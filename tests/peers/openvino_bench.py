"""OpenVINO GenAI's side: `PYTHON openvino_bench.py FOLDER`, by a Python that has it, prints JSON.

It does the work of ours.py on the same random ids, and measures by OpenVINO GenAI's own metrics:
the time to the first token of a prompt, and the time per token after that.
"""

from __future__ import annotations

import json

import numpy as np
import openvino
import openvino_genai
from elsewhere import (  # beside this file: the other Python has no kvgen
    DEPTHS,
    GREEDY_PROMPT,
    N_GREEDY,
    N_PROMPT,
    parser_of,
    random_ids,
    report,
)


def run(pipeline, ids: list[int], n_new: int):
    """Continue ids greedily by n_new tokens, whatever they are."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = n_new, True, False
    tokens = np.array([ids], np.int64)
    inputs = openvino_genai.TokenizedInputs(
        openvino.Tensor(tokens), openvino.Tensor(np.ones_like(tokens))
    )
    return pipeline.generate(inputs, config)


def measure(pipeline, vocab_size: int, n_new: int) -> dict[str, object]:
    """Tokens per second by test."""
    run(pipeline, random_ids(N_PROMPT + 1, vocab_size), 2)  # warm-up
    rates = {}
    for depth in DEPTHS:
        metrics = run(pipeline, random_ids(depth, vocab_size), n_new + 1).perf_metrics
        rates[f"tg@{depth}"] = 1000 / metrics.get_tpot().mean
    metrics = run(pipeline, random_ids(N_PROMPT, vocab_size), 1).perf_metrics
    rates[f"pp{N_PROMPT}"] = 1000 * N_PROMPT / metrics.get_ttft().mean
    return {"rates": rates}


def logits_of(folder, ids: list[int], properties: dict[str, object]) -> np.ndarray:
    """The logits [T, V] of every position."""
    model = openvino.Core().compile_model(f"{folder}/openvino_model.xml", "CPU", properties)
    T = len(ids)
    inputs = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, T), np.int64),
        "position_ids": np.arange(T, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    names = {name for port in model.inputs for name in port.names}
    request = model.create_infer_request()
    result = request.infer({name: value for name, value in inputs.items() if name in names})
    return np.asarray(result["logits"])[0]


def main() -> None:
    """Measure one model in one way."""
    parser = parser_of(__doc__)
    parser.add_argument("--attention", choices=["PA", "SDPA"], default="SDPA")
    parser.add_argument("--precision", help="f32 keeps OpenVINO from rounding activations to bf16")
    options = parser.parse_args()
    properties: dict[str, object] = {"INFERENCE_NUM_THREADS": options.threads}
    if options.precision:
        properties["INFERENCE_PRECISION_HINT"] = options.precision
    pipeline = openvino_genai.LLMPipeline(
        options.folder, "CPU", ATTENTION_BACKEND=options.attention, **properties
    )
    vocab_size = json.loads((options.folder / "config.json").read_text())["vocab_size"]

    def judge(ids: list[int]) -> tuple[np.ndarray, list[int]]:
        greedy = run(pipeline, ids[:GREEDY_PROMPT], N_GREEDY).tokens[0]
        return logits_of(options.folder, ids, properties), greedy

    report(
        options,
        openvino_genai.__version__.split("-")[0],
        lambda: measure(pipeline, vocab_size, options.new),
        judge,
    )


if __name__ == "__main__":
    main()
