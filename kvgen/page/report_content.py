"""A benchmark's report as what its page reads: its JSON, its words, and the maps of both arms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvgen.bench.report import BenchReport
from kvgen.engine.tensors import Array
from kvgen.page.blocks import (
    encode,
    greatest_of_neighbours,
    lower_triangle,
    n_neighbours,
    weights_in_8_bits,
)
from kvgen.page.content import Content

FORMAT, VERSION = "kvgen.report", 1
_GREATEST = float(np.finfo(np.float32).max)


def report_content(
    report: BenchReport, json: Mapping[str, Any], words: Mapping[str, Any]
) -> Content:
    """The facts and blocks of a report's page.

    `json` is the report with stable names, `words` what the terminal says, in what JSON can hold.
    The maps are there where the report is one of a single run.
    """
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "report": _finite(json),
        "words": _finite(words),
        "passed": report.passed,
        "maps": None,
    }
    if report.head is None or not report.maps or len(report.runs) > 1:
        return Content(facts, {})
    work = report.runs[0].workload
    facts["maps"] = {
        "layer": report.head[0],
        "head": report.head[1],
        "length": work.length,  # positions before the first step
        "scoresOn": [scores.on for scores in report.scores],
        "scoresOff": [scores.off for scores in report.scores]
        if report.maps[0].off is not None
        else None,
        # A row of a map stays the same while the text grows, unless rotary frequencies depend on
        # the length: then only the steps that were captured can be drawn.
        "rowsStay": not work.ropes,
        "bin": n_neighbours(work.length + work.n_gen),
        "steps": [maps.step for maps in report.maps],
    }
    arrays = _arrays(report, facts["maps"]["bin"])
    facts["maps"]["arrays"], block = encode(arrays)
    return Content(facts, {"maps-block": block})


def _arrays(report: BenchReport, size: int) -> dict[str, Array]:
    """Of each captured step the cached arm's row, and the uncached arm's triangle in 8 bits."""
    arrays: dict[str, Array] = {}
    for maps in report.maps:
        arrays[f"on-{maps.step}"] = np.asarray(maps.on[0], np.float32)  # [S]
        if maps.off is not None:
            pooled = greatest_of_neighbours(np.nan_to_num(np.tril(maps.off)), size)
            arrays[f"off-{maps.step}"] = lower_triangle(weights_in_8_bits(pooled))
    return arrays


def _finite(part: Any) -> Any:
    """The same with the greatest float32 in place of infinity, which JSON does not know."""
    if isinstance(part, Mapping):
        return {name: _finite(one) for name, one in part.items()}
    if isinstance(part, (list, tuple)):
        return [_finite(one) for one in part]
    if isinstance(part, float) and not math.isfinite(part):
        return math.copysign(_GREATEST, part) if not math.isnan(part) else None
    return part
