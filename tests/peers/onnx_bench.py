"""ONNX Runtime GenAI's side: `PYTHON onnx_bench.py FOLDER`, by a Python that has it, prints JSON.

It does the work of ours.py on the same random ids, by our clock: it has no metrics of its own. Its
prefill makes logits of every position, ours and the others' of the last one.
"""

from __future__ import annotations

import json
import time

import numpy as np
import onnxruntime_genai
from elsewhere import (  # beside this file: the other Python has no kvgen
    DEPTHS,
    GREEDY_PROMPT,
    N_GREEDY,
    N_PROMPT,
    parser_of,
    random_ids,
    report,
)


def generator_of(model, length: int):
    """An empty sequence for so many tokens, greedy, that no token ends."""
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    return onnxruntime_genai.Generator(model, parameters)


def seconds(model, ids: list[int], n_new: int) -> tuple[float, float]:
    """How long the prompt takes until its first new token, and n_new more."""
    generator = generator_of(model, len(ids) + n_new + 2)
    began = time.perf_counter()
    generator.append_tokens(np.array(ids, np.int32))
    generator.generate_next_token()  # of logits that are there
    after = time.perf_counter()
    for _ in range(n_new):
        generator.generate_next_token()
    return after - began, time.perf_counter() - after


def measure(model, vocab_size: int, n_new: int) -> dict[str, object]:
    """Tokens per second by test."""
    seconds(model, random_ids(N_PROMPT + 1, vocab_size), 2)  # warm-up
    rates = {}
    for depth in DEPTHS:
        rates[f"tg@{depth}"] = n_new / seconds(model, random_ids(depth, vocab_size), n_new)[1]
    rates[f"pp{N_PROMPT}"] = N_PROMPT / seconds(model, random_ids(N_PROMPT, vocab_size), 0)[0]
    return {"rates": rates}


def judge(model, ids: list[int]) -> tuple[np.ndarray, list[int]]:
    """The logits [T, V] and the greedy ids of a text."""
    whole = generator_of(model, len(ids) + 1)
    whole.append_tokens(np.array(ids, np.int32))
    logits = np.array(whole.get_output("logits"))[0]
    greedy = generator_of(model, GREEDY_PROMPT + N_GREEDY)
    greedy.append_tokens(np.array(ids[:GREEDY_PROMPT], np.int32))
    for _ in range(N_GREEDY):
        greedy.generate_next_token()
    return logits, list(greedy.get_sequence(0))[GREEDY_PROMPT:]


def main() -> None:
    """Measure one model in one way."""
    options = parser_of(__doc__).parse_args()
    config = onnxruntime_genai.Config(str(options.folder))
    session = {"intra_op_num_threads": options.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = onnxruntime_genai.Model(config)
    kept = json.loads((options.folder / "genai_config.json").read_text())
    report(
        options,
        onnxruntime_genai.__version__,
        lambda: measure(model, kept["model"]["vocab_size"], options.new),
        lambda ids: judge(model, ids),
    )


if __name__ == "__main__":
    main()
