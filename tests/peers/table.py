"""The comparison as text: a line for each sample, and the tables of tests/README.md."""

from __future__ import annotations

import statistics
from pathlib import Path

from tests.peers.samples import FAST, OURS, Figure, Quality, Results, Sample, compared, figure

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- peers: written by tests.peers.compare -->\n", "<!-- peers: end -->"


def one_line(sample: Sample) -> str:
    """What one process measured."""
    rates = " · ".join(f"{test} {rate:.1f}" for test, rate in sample.rates.items())
    memory = sample.read_bytes_per_second
    probe = f" · probe {memory / 1e9:.1f} GB/s" if memory is not None else ""
    busy = " · busy: does not count" if sample.busy else ""
    return (
        f"{sample.model:8} {sample.format:5} {sample.engine:12} {sample.setting:13} "
        f"{rates}{probe}{busy}"
    )


def speed_table(results: Results) -> str:
    """Tokens per second of every engine, and how many times kvgen's rate is theirs."""
    peers = [one for one in results.engines() if one != OURS]
    titles = ["model", "weights", "test", OURS, *(f"{one} (kvgen / it)" for one in peers)]
    lines = [_row(titles), _row(["---"] * 3 + ["---:"] * (1 + len(peers)))]
    for model, form, test in results.rows():
        ours = figure(results.of(model, form, OURS), test)
        named = "int4, ours int8" if form == "int4" else form
        cells = [model, named, test, _rate(ours)]
        for engine in peers:
            samples = results.of(model, form, engine)
            cells.append(_ratio(compared(ours, figure(samples, test))) if samples else "")
        lines.append(_row(cells))
    return "\n".join(lines)


def quality_table(results: Results) -> str:
    """How near every engine is to kvgen in float32; empty where nothing was held against it."""
    best: dict[tuple[str, str, str], Quality] = {}
    for one in results.quality:
        name = f"{one.engine} {FAST}" if one.setting == FAST else one.engine
        best.setdefault((one.model, one.format, name), one)
    if not best:
        return ""
    lines = [_row(["model", "weights", "engine", "KL to f32, nats per token", "same greedy ids"])]
    lines.append(_row(["---"] * 3 + ["---:"] * 2))
    for (model, form, name), one in best.items():
        nats = "" if one.nats_per_token is None else f"{one.nats_per_token:.5f}"
        lines.append(_row([model, form, name, nats, f"{one.same_greedy} of {one.n_greedy}"]))
    return "\n".join(lines)


def caption(results: Results) -> str:
    """Machine, threads, versions, rounds, and what the memory gave meanwhile."""
    n_busy, n_samples = sum(one.busy for one in results.samples), len(results.samples)
    rounds = max((one.round + 1 for one in results.samples), default=0)
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    probes = [
        one.read_bytes_per_second / 1e9
        for one in results.samples
        if one.read_bytes_per_second is not None
    ]
    lines = [
        f"{results.cpu}, {results.threads} threads; {versions}; rounds: {rounds}.",
        "Tokens per second, medians; in brackets kvgen's rate over the other's: the median ratio, "
        "and the least and greatest of a round.",
        f"{n_busy} of {n_samples} samples were taken while other programs needed the CPUs, and do "
        "not count.",
    ]
    if probes:
        lines.append(
            f"kvgen's probe read weights at {min(probes):.0f} to {max(probes):.0f} GB/s, median "
            f"{statistics.median(probes):.0f}."
        )
    return " ".join(lines)


def write_table(results: Results, *, into_readme: bool) -> str:
    """Both tables and their caption as Markdown, written between the markers of the README too."""
    parts = [caption(results), speed_table(results), quality_table(results)]
    text = "\n\n".join(part for part in parts if part)
    if into_readme:
        before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        README.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}", encoding="utf-8")
    return text


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(found: Figure | None) -> str:
    if found is None:
        return "busy"
    return f"{found.rate:,.0f}" if found.rate >= 100 else f"{found.rate:.1f}"


def _ratio(found: Figure | None) -> str:
    if found is None or found.ratio is None:
        return _rate(found)
    return f"{_rate(found)} ({found.ratio:.2f}; {found.least:.2f}..{found.most:.2f})"
