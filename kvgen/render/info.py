"""A checkpoint on one screen."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

import kvgen
from kvgen.engine.config import RopeConfig
from kvgen.engine.tensors import usual_cache_dtype
from kvgen.facts import ModelFacts
from kvgen.render.canvas import Canvas, token_label
from kvgen.render.numbers import size
from kvgen.visible import one_line

_MARGIN = 11  # columns before the answers
_LONGEST_TOKEN = 30  # columns of a token's name


def facts_json(facts: ModelFacts) -> dict[str, Any]:
    """The facts under their stable names."""
    config = facts.config
    tokenizer = facts.tokenizer
    return {
        "name": facts.name,
        "folder": str(facts.folder),
        "family": facts.family,
        "parameters": facts.n_parameters,
        "layers": config.n_layers,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "width": config.d_model,
        "ff": config.d_ff,
        "vocabulary": config.vocab_size,
        "context": config.max_context,
        "tied": facts.tied,
        "norm": config.norm,
        "norm_eps": config.norm_eps,
        "mlp": config.mlp,
        "activation": config.activation,
        "parallel_residual": config.parallel_residual,
        "qk_norm": config.qk_norm,
        "attention_scales": list(config.attn_scales),
        "attention_softcap": config.attn_softcap,
        "logit_softcap": config.logit_softcap,
        "rope": [
            {"layers": layers, "kind": None if rope is None else rope.kind}
            | ({} if rope is None else {"theta": rope.theta, "dim": rope.dim})
            | ({"changes_beyond": rope.original_context} if rope and rope.depends_on_length else {})
            for rope, layers in facts.ropes
        ],
        "windows": list(config.windows),
        "dtype": facts.dtype,
        "stored_bytes": facts.stored,
        "file_bytes": facts.file_bytes,
        "weight_bytes": facts.weight_bytes,
        "cache_dtype": usual_cache_dtype(facts.dtype),
        "kv_bytes_per_token": _kv_bytes(facts),
        "kv_bytes": _kv_bytes(facts) * config.max_context,
        "kv_sharing": facts.kv_sharing,
        "tokenizer": None
        if tokenizer is None
        else {
            "kind": tokenizer.kind,
            "tokens": tokenizer.n_tokens,
            "start": tokenizer.start,
            "end": tokenizer.end,
        },
        "chat_template": facts.has_chat_template,
        "stop_ids": list(facts.stop_ids),
        "sampling": facts.sampling,
        "notes": list(facts.notes),
        "ignored_keys": list(facts.ignored_keys),
        "ignored_generation_keys": list(facts.ignored_generation_keys),
        "version": kvgen.__version__,
    }


def facts_view(facts: ModelFacts, canvas: Canvas) -> Text:
    """One paragraph for each question, its answer's parts kept whole where a line can hold them."""
    label = Style(dim=True) if canvas.mode == "color" else Style()
    view = Text()
    for question, parts in _answers(facts, canvas):
        for number, line in enumerate(_fill(parts, canvas.width - _MARGIN)):
            view.append("\n" if view else "")
            view.append(f"{'' if number else question:<{_MARGIN}}", label)
            view.append(line)
    return view


def _answers(facts: ModelFacts, canvas: Canvas) -> list[tuple[str, list[str]]]:
    """Questions about a model, with the parts of each answer; an empty part is left out."""
    config = facts.config
    return [
        ("model", [facts.name, facts.family, f"{facts.n_parameters:,} parameters"]),
        ("folder", [_place(facts.folder)]),
        (
            "shape",
            [
                f"{config.n_layers} layers",
                f"width {config.d_model}",
                f"{config.n_heads} query heads on {config.n_kv_heads} key/value heads of size "
                f"{config.head_dim}",
                f"feed-forward {config.d_ff}",
                f"vocabulary {config.vocab_size:,}",
                f"context {config.max_context:,}",
            ],
        ),
        ("block", _block(facts)),
        ("positions", _positions(facts)),
        ("windows", _windows(config.windows)),
        ("weights", _weights(facts)),
        ("KV cache", _kv_cache(facts)),
        ("kv heads", _sharing(facts.kv_sharing)),
        ("tokenizer", _tokenizer(facts, canvas)),
        ("chat", ["a template: --chat uses it" if facts.has_chat_template else "no template"]),
        ("sampling", [facts.sampling]),
    ]


def _fill(parts: list[str], width: int) -> list[str]:
    """Parts on lines, a dot between those of one line; a longer part is broken at spaces."""
    lines: list[str] = []
    for part in map(one_line, filter(None, parts)):  # names of files and folders are among them
        if lines and cell_len(lines[-1]) + 3 + cell_len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines += textwrap.wrap(part, width, break_on_hyphens=False)
    return lines


def _place(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _block(facts: ModelFacts) -> list[str]:
    config = facts.config
    first, last = config.attn_scales[0], config.attn_scales[-1]
    return [
        f"{'LayerNorm' if config.norm == 'layer' else 'RMSNorm'} (eps {config.norm_eps:g})",
        f"{config.mlp} MLP with {config.activation}",
        "attention and MLP in parallel" if config.parallel_residual else "attention, then MLP",
        f"scores x {first:.4g}" + (f" to {last:.4g} by layer" if last != first else ""),
        {"head": "queries and keys normalised by head", "whole": "queries and keys normalised"}[
            config.qk_norm
        ]
        if config.qk_norm
        else "",
        f"scores capped at {config.attn_softcap:g}" if config.attn_softcap else "",
        f"logits capped at {config.logit_softcap:g}" if config.logit_softcap else "",
        "head tied to the embedding" if facts.tied else "head of its own",
    ]


def _positions(facts: ModelFacts) -> list[str]:
    if not facts.config.rope:
        return [f"learned, {facts.config.max_context:,} of them"]
    kinds = facts.ropes
    return [
        _rope(rope, facts.config.head_dim) + (f" ({_layers(layers)})" if len(kinds) > 1 else "")
        for rope, layers in kinds
    ] + [_change(rope) for rope, _ in kinds if rope is not None and rope.depends_on_length]


def _rope(rope: RopeConfig | None, head_dim: int) -> str:
    if rope is None:
        return "none"
    part = f" over {rope.dim} of {head_dim}" if rope.dim < head_dim else ""
    kind = f", {rope.kind}" if rope.kind != "default" else ""
    factor = f" x {rope.factor:g}" if rope.factor != 1 else ""
    return f"RoPE theta {rope.theta:,.0f}{part}{kind}{factor}"


def _change(rope: RopeConfig) -> str:
    """The effect of frequencies that depend on the length."""
    context = f"{rope.original_context:,}"
    if rope.kind == "longrope":
        return f"other frequencies beyond {context} positions: kept ids run again once"
    return f"other frequencies at each length beyond {context}: kept ids run again at every step"


def _windows(windows: tuple[int | None, ...]) -> list[str]:
    sizes = {size: [i for i, each in enumerate(windows) if each == size] for size in set(windows)}
    if not any(sizes):
        return ["none: a query sees every key before it"]
    return [
        f"{f'the last {size:,}' if size else 'every key'} ({_layers(layers)})"
        for size, layers in sorted(sizes.items(), key=lambda item: item[0] or 0, reverse=True)
    ]


def _weights(facts: ModelFacts) -> list[str]:
    stored = ", ".join(f"{kind} {size(count)}" for kind, count in sorted(facts.stored.items()))
    return [f"{stored} on disk", f"{size(facts.weight_bytes)} in memory as {facts.dtype}"]


def _kv_bytes(facts: ModelFacts) -> int:
    """Bytes that the cache takes for one position."""
    return facts.config.kv_bytes_per_position(usual_cache_dtype(facts.dtype))


def _kv_cache(facts: ModelFacts) -> list[str]:
    config = facts.config
    per_token, dtype = _kv_bytes(facts), usual_cache_dtype(facts.dtype)
    n_bytes = per_token // config.kv_floats_per_token
    return [
        f"{size(per_token)} a token = 2 (K and V) x {config.n_layers} layers x "
        f"{config.n_kv_heads} kv heads x {config.head_dim} x {n_bytes} bytes ({dtype})",
        f"{size(per_token * config.max_context)} at the whole context",
    ]


def _sharing(sharing: list[list[int]]) -> list[str]:
    if all(len(heads) == 1 for heads in sharing):
        return ["one for each query head"]
    return [
        f"{kv} for {'' if kv else 'query heads '}{_span(heads)}" for kv, heads in enumerate(sharing)
    ]


def _tokenizer(facts: ModelFacts, canvas: Canvas) -> list[str]:
    tokenizer = facts.tokenizer
    stops = f"stops at {', '.join(map(str, facts.stop_ids))}" if facts.stop_ids else "no stop token"
    if tokenizer is None:
        return [facts.no_tokenizer or "none", stops]
    unused = facts.config.vocab_size - tokenizer.n_tokens
    start = token_label((tokenizer.start or "").encode(), canvas, _LONGEST_TOKEN).rstrip()
    return [
        f"{tokenizer.kind}, {tokenizer.n_tokens:,} tokens",
        f"{unused:,} ids without a token are never sampled" if unused > 0 else "",
        f"texts start with {start}" if start else "no start token",
        stops,
    ]


def _layers(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {_span(layers)}"


def _span(numbers: list[int]) -> str:
    """Ascending numbers, neighbours as a range: 0-3, 5, 7-8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
