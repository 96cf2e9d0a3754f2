"""A checkpoint on one screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import kvgen
from kvgen.config import RopeConfig
from kvgen.facts import ModelFacts
from kvgen.render.canvas import Canvas

_CACHE_ITEM_BYTES = 4  # the cache holds float32


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
            for rope, layers in facts.ropes
        ],
        "windows": list(config.windows),
        "dtype": facts.dtype,
        "stored_bytes": facts.stored,
        "file_bytes": facts.file_bytes,
        "weight_bytes": facts.weight_bytes,
        "cache_dtype": "f32",
        "kv_bytes_per_token": _CACHE_ITEM_BYTES * config.kv_floats_per_token,
        "kv_bytes": _CACHE_ITEM_BYTES * config.kv_floats_per_token * config.max_context,
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
        "sampling": facts.sampling.describe(),
        "notes": list(facts.notes),
        "ignored_keys": list(facts.ignored_keys),
        "version": kvgen.__version__,
    }


def facts_view(facts: ModelFacts, canvas: Canvas) -> Table:
    """One line for each question, folded at the canvas's width."""
    config = facts.config
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim" if canvas.mode == "color" else None, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for question, answer in (
        ("model", f"{facts.name} · {facts.family} · {facts.n_parameters:,} parameters"),
        ("folder", _place(facts.folder)),
        (
            "shape",
            f"{config.n_layers} layers · width {config.d_model} · {config.n_heads} query heads on "
            f"{config.n_kv_heads} key/value heads of size {config.head_dim} · "
            f"feed-forward {config.d_ff} · vocabulary {config.vocab_size:,} · "
            f"context {config.max_context:,}",
        ),
        ("block", _block(facts)),
        ("positions", _positions(facts)),
        ("windows", _windows(config.windows)),
        ("weights", _weights(facts)),
        ("KV cache", _kv_cache(facts)),
        ("kv heads", _sharing(facts.kv_sharing)),
        ("tokenizer", _tokenizer(facts)),
        ("chat", "a template: --chat uses it" if facts.has_chat_template else "no template"),
        ("sampling", facts.sampling.describe()),
    ):
        table.add_row(Text(question), Text(answer))
    return table


def _place(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _block(facts: ModelFacts) -> str:
    config = facts.config
    scales = [f"{scale:.4g}" for scale in dict.fromkeys(config.attn_scales)]
    parts = [
        f"{'LayerNorm' if config.norm == 'layer' else 'RMSNorm'} (eps {config.norm_eps:g})",
        f"{config.mlp} MLP with {config.activation}",
        "attention and MLP in parallel" if config.parallel_residual else "attention, then MLP",
        f"scores x {scales[0] if len(scales) == 1 else ' '.join(scales)}",
        {"head": "queries and keys normalised by head", "whole": "queries and keys normalised"}[
            config.qk_norm
        ]
        if config.qk_norm
        else "",
        f"scores capped at {config.attn_softcap:g}" if config.attn_softcap else "",
        f"logits capped at {config.logit_softcap:g}" if config.logit_softcap else "",
        "head tied to the embedding" if facts.tied else "head of its own",
    ]
    return " · ".join(part for part in parts if part)


def _positions(facts: ModelFacts) -> str:
    if not facts.config.rope:
        return f"learned, {facts.config.max_context:,} of them"
    kinds = facts.ropes
    return " · ".join(
        _rope(rope, facts.config.head_dim) + (f" ({_layers(layers)})" if len(kinds) > 1 else "")
        for rope, layers in kinds
    )


def _rope(rope: RopeConfig | None, head_dim: int) -> str:
    if rope is None:
        return "none"
    part = f" over {rope.dim} of {head_dim}" if rope.dim < head_dim else ""
    kind = f", {rope.kind}" if rope.kind != "default" else ""
    factor = f" x {rope.factor:g}" if rope.factor != 1 else ""
    return f"RoPE theta {rope.theta:,.0f}{part}{kind}{factor}"


def _windows(windows: tuple[int | None, ...]) -> str:
    sizes = {size: [i for i, each in enumerate(windows) if each == size] for size in set(windows)}
    if not any(sizes):
        return "none: a query sees every key before it"
    return " · ".join(
        f"{f'the last {size:,}' if size else 'every key'} ({_layers(layers)})"
        for size, layers in sorted(sizes.items(), key=lambda item: item[0] or 0, reverse=True)
    )


def _weights(facts: ModelFacts) -> str:
    stored = ", ".join(f"{kind} {_size(count)}" for kind, count in sorted(facts.stored.items()))
    return f"{stored} on disk · {_size(facts.weight_bytes)} in memory as {facts.dtype}"


def _kv_cache(facts: ModelFacts) -> str:
    config = facts.config
    per_token = _CACHE_ITEM_BYTES * config.kv_floats_per_token
    return (
        f"{_size(per_token)} a token = 2 (K and V) x {config.n_layers} layers x "
        f"{config.n_kv_heads} kv heads x {config.head_dim} x {_CACHE_ITEM_BYTES} bytes (f32) · "
        f"{_size(per_token * config.max_context)} at the whole context"
    )


def _sharing(sharing: list[list[int]]) -> str:
    if all(len(heads) == 1 for heads in sharing):
        return "one for each query head"
    return (
        " · ".join(f"{kv}: {_span(heads)}" for kv, heads in enumerate(sharing)) + " (query heads)"
    )


def _tokenizer(facts: ModelFacts) -> str:
    tokenizer = facts.tokenizer
    if tokenizer is None:
        return facts.no_tokenizer or "none"
    unused = facts.config.vocab_size - tokenizer.n_tokens
    parts = [
        f"{tokenizer.kind}, {tokenizer.n_tokens:,} tokens",
        f"{unused:,} ids without a token are never sampled" if unused > 0 else "",
        f"texts start with {tokenizer.start}" if tokenizer.start else "no start token",
        f"stops at {', '.join(map(str, facts.stop_ids))}" if facts.stop_ids else "no stop token",
    ]
    return " · ".join(part for part in parts if part)


def _layers(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {_span(layers)}"


def _span(numbers: list[int]) -> str:
    """Ascending numbers, neighbours as a range: 0-3 5 7-8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _size(n_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:,.0f} {unit}" if unit == "bytes" else f"{n_bytes:,.1f} {unit}"
