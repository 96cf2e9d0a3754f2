"""bind: a checkpoint's tensors into the slots of `kvgen.engine.params`, strict both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np

from kvgen.checkpoint.families import Family, Source, read_config
from kvgen.checkpoint.folder import Checkpoint, StoredTensor
from kvgen.checkpoint.widths import WIDTHS, require_memory_for
from kvgen.choices import DTypeName
from kvgen.engine.config import ModelConfig
from kvgen.engine.params import LayerParams, Linear, Norm, Params
from kvgen.engine.tensors import FloatArray, Tensor, convert
from kvgen.errors import CheckpointError
from kvgen.visible import one_line

# A model saved as part of a larger class carries its place in front of every name.
_PREFIXES = ("model.", "transformer.", "gpt_neox.", "language_model.")
# Constants that other versions saved beside the weights, in whatever type: causal masks, numbers of
# positions, RoPE's frequencies, cosines and sines, the scale of embeddings.
_CONSTANT = re.compile(
    r"(^|\.)((cross)?(attn|attention)\.(bias|masked_bias)|(causal|attention|attn)_mask"
    r"|position_ids|embed_tokens\.embed_scale"
    r"|rotary_\w*\.(\w*inv_freq|(cos|sin)(_cached)?))$"
)
# What a training script leaves in front of names, and how to be rid of it.
_WRAPPERS = {
    "_orig_mod": "torch.compile: save the module that it wraps, model._orig_mod",
    "module": "data-parallel training: save the module that it wraps, model.module",
    "_fsdp_wrapped_module": "sharded training (FSDP): gather the full state_dict and save that",
    "_checkpoint_wrapped_module": "activation checkpoints: save the module that they wrap",
    "base_model.model": "adapters (PEFT): call merge_and_unload() and save the result",
}


def bind(checkpoint: Checkpoint, family: Family, *, dtype: DTypeName | None = None) -> Params:
    """Read the config and put every tensor of the checkpoint into its slot, stored as `dtype`.

    Strict both ways: a slot without a tensor is a CheckpointError, and so is a tensor without a
    slot or a key of config.json that may change the arithmetic and is not understood. Without
    `dtype` weights keep the width they are stored in (float32 where widths are mixed), and nothing
    large is copied but what has to be put into another order.
    """
    config, sources, tied, notes, ignored_keys = read_config(family, checkpoint.config)
    binder = _Binder(checkpoint, config, sources, dtype, family=family, tied=tied)
    binder.require_memory()
    embed = binder.linear("embed").weight
    with ThreadPoolExecutor() as pool:  # another width is made in parallel
        layers = tuple(pool.map(binder.layer, range(config.n_layers)))
    final_norm = binder.norm("final_norm")
    assert final_norm is not None
    head = binder.head(embed)
    params = Params(
        config=config,
        dtype=binder.dtype,
        embed=embed,
        positions=binder.linear("positions").weight if "positions" in sources else None,
        layers=layers,
        final_norm=final_norm,
        head=head,
        n_parameters=binder.n_parameters,
        notes=(*notes, *binder.notes),
        ignored_keys=ignored_keys,
    )
    binder.refuse_unclaimed()
    return params


def _shape(slot: str, config: ModelConfig) -> tuple[int, ...]:
    """The shape that a slot's weight must have, (out, in)."""
    C, F = config.d_model, config.d_ff
    queries = config.n_heads * config.head_dim
    keys = config.n_kv_heads * config.head_dim
    return {
        "embed": (config.vocab_size, C),
        "head": (config.vocab_size, C),
        "positions": (config.max_context, C),
        "q": (queries, C),
        "k": (keys, C),
        "v": (keys, C),
        "o": (C, queries),
        "gate": (F, C),
        "up": (F, C),
        "down": (C, F),
    }[slot]


class _Binder:
    """Hands out a checkpoint's tensors by slot and remembers which were asked for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        sources: Mapping[str, Source],
        dtype: DTypeName | None,
        *,
        family: Family,
        tied: bool | None,
    ) -> None:
        self._folder = checkpoint.folder
        self._config = config
        self._sources = sources
        self._claimed: dict[str, int] = {}  # and how many parameters each holds
        self._tensors: dict[str, StoredTensor] = {}
        self.notes: list[str] = []
        left_out = {name for name in checkpoint.tensors if _bare(name).startswith(family.ignored)}
        if left_out:
            self.notes.append(
                f"{len(left_out)} tensors such as {one_line(min(left_out))} are not used: text only"
            )
        for stored in checkpoint.tensors.values():
            name = _bare(stored.name, family.renamed)
            if _CONSTANT.search(name) or stored.name in left_out:
                continue
            self._refuse_wrapped(stored.name)
            if name in self._tensors and not stored.equals(self._tensors[name]):
                raise CheckpointError(
                    f"{self._folder}: `{stored.name}` and `{self._tensors[name].name}` "
                    "would be the same tensor"
                )
            self._tensors[name] = stored
        if config.n_layers > len(self._tensors):
            raise CheckpointError(
                f"{self._folder}: config.json asks for {config.n_layers} layers, but there are "
                f"only {len(self._tensors)} tensors"
            )
        self._twins = self._shared(checkpoint, family, tied)
        kinds = {tensor.kind for tensor in self._tensors.values() if len(tensor.shape) > 1}
        stored_width = WIDTHS.get(kinds.pop(), "f32") if len(kinds) == 1 else "f32"
        self.dtype: DTypeName = dtype or stored_width

    def require_memory(self) -> None:
        """Raise KvgenError where the weights cannot be in memory in the width that is wanted."""
        slots = ("embed", "head", "q", "k", "v", "o", "gate", "up", "down")
        sources = [self._sources[slot].name + ".weight" for slot in slots if slot in self._sources]
        layers = range(self._config.n_layers)
        names = {self._stored_name(name.format(layer=i)) for name in sources for i in layers}
        known = (self._tensors[name] for name in names if name in self._tensors)
        require_memory_for(known, self.dtype)

    @property
    def n_parameters(self) -> int:
        """Numbers of all tensors handed out so far, each once."""
        return sum(self._claimed.values())

    def linear(
        self, slot: str, layer: int | None = None, *, weight: Tensor | None = None
    ) -> Linear:
        """A slot's weight, unless it is given, and its bias where the family says there is one."""
        source = self._sources[slot]
        shape = _shape(slot, self._config)
        n_stored, rows = source.take(self._config) if source.take else (shape[0], slice(None))
        full = (n_stored, *shape[1:])
        if weight is None:
            whole = self._open(source, ".weight", layer, full[::-1] if source.transposed else full)
            stored = whole.stored.T if source.transposed else whole.stored
            # Positions are added to, not multiplied with: they are few, and no scale suits them.
            width = "f32" if slot == "positions" and self.dtype == "int8" else self.dtype
            weight = convert(whole.view(np.ascontiguousarray(stored[rows])), width)
        if not source.bias:
            return Linear(weight, None)
        bias = self._open(source, ".bias", layer, full[:1]).dequantize()
        return Linear(weight, np.ascontiguousarray(bias[rows]))

    def layer(self, number: int) -> LayerParams:
        """All of one layer."""
        return LayerParams(
            attn_norm=self.norm("attn_norm", number),
            q=self.linear("q", number),
            k=self.linear("k", number),
            v=self.linear("v", number),
            o=self.linear("o", number),
            q_norm=self.head_norm("q_norm", number, self._config.n_heads),
            k_norm=self.head_norm("k_norm", number, self._config.n_kv_heads),
            post_attn_norm=self.norm("post_attn_norm", number),
            mlp_norm=self.norm("mlp_norm", number),
            gate=self.linear("gate", number) if "gate" in self._sources else None,
            up=self.linear("up", number),
            down=self.linear("down", number),
            post_mlp_norm=self.norm("post_mlp_norm", number),
        )

    def norm(self, slot: str, layer: int | None = None) -> Norm | None:
        """The scale of a norm, and its shift where there is one; None where there is no norm."""
        source = self._sources.get(slot)
        if source is None:
            return None
        shape = (self._config.d_model,)
        return _norm(source, lambda suffix: self._open(source, suffix, layer, shape).dequantize())

    def head_norm(self, slot: str, layer: int, n_heads: int) -> Norm | None:
        """A norm of queries or keys, its scale and shift spread out over all heads [n_heads * D].

        Stored once for all heads, as [heads, D], as one tensor for each head, or whole.
        """
        source = self._sources.get(slot)
        if source is None:
            return None
        D = self._config.head_dim
        _, rows = source.take(self._config) if source.take else (0, slice(None))

        def spread(suffix: str) -> FloatArray:
            if "{head}" in source.name:
                parts = [
                    self._open(source, suffix, layer, (D,), head=head).dequantize()
                    for head in range(n_heads)
                ]
                return np.concatenate(parts)
            whole = self._config.qk_norm == "whole"
            shapes = [(n_heads * D,)] if whole else [(D,), (n_heads, D)]
            values = self._open(source, suffix, layer, *shapes).dequantize().reshape(-1)
            return np.ascontiguousarray(np.tile(values, n_heads * D // len(values))[rows])

        return _norm(source, spread)

    def head(self, embed: Tensor) -> Linear:
        """The output head: a tensor of its own, or the embedding where they are one tensor."""
        name = self._sources["head"].name + ".weight"
        if self._stored_name(name) == self._stored_name(self._sources["embed"].name + ".weight"):
            return self.linear("head", weight=embed)
        head = self.linear("head")
        if self._tied and np.array_equal(head.weight.stored, embed.stored):
            self._claimed[name] = 0
            return Linear(embed, head.bias)
        if self._tied:  # the reference implementation does not tie them then
            self.notes.append(
                f"{name} differs from the embedding although config.json ties them: it is used"
            )
        return head

    def _shared(self, checkpoint: Checkpoint, family: Family, tied: bool | None) -> dict[str, str]:
        """Names without a tensor, and the name that their tensor has in the file.

        Of tensors that share their memory, safetensors keeps one under any of their names and
        writes down the others (`save_model`); a tied model may hold either of its two names.
        """
        twins = {
            _bare(name, family.renamed): _bare(kept, family.renamed)
            for name, kept in checkpoint.metadata.items()
        }
        embed, head = (self._sources[slot].name + ".weight" for slot in ("embed", "head"))
        self._tied = family.tied if tied is None else tied
        if self._tied:
            twins.setdefault(embed, head)
        if tied is not False:  # without a head, a file that says nothing means the embedding
            twins.setdefault(head, embed)
        return {
            name: kept
            for name, kept in twins.items()
            if name not in self._tensors and kept in self._tensors
        }

    def _stored_name(self, name: str) -> str:
        return self._twins.get(name, name)

    def _refuse_wrapped(self, name: str) -> None:
        """Raise CheckpointError for the name of a tensor inside something that wraps the model."""
        for wrapper, remedy in _WRAPPERS.items():
            if name.startswith(f"{wrapper}.") or f".{wrapper}." in name:
                raise CheckpointError(
                    f"{self._folder}: the tensor names have `{wrapper}.` in front (`{name}`), "
                    f"left by {remedy}"
                )

    def refuse_unclaimed(self) -> None:
        """Raise CheckpointError where a tensor of the checkpoint found no slot."""
        extra = [name for name in self._tensors if name not in self._claimed]
        if extra:
            more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
            raise CheckpointError(
                f"{self._folder}: tensor `{self._tensors[extra[0]].name}`{more} "
                "has no place in this model; config.json may be for another one"
            )

    def _open(
        self,
        source: Source,
        suffix: str,
        layer: int | None,
        *shapes: tuple[int, ...],
        head: int | None = None,
    ) -> Tensor:
        """The tensor of that name, which must have one of these shapes."""
        name = self._stored_name(source.name.format(layer=layer, head=head) + suffix)
        stored = self._tensors.get(name)
        if stored is None:
            raise CheckpointError(
                f"{self._folder}: tensor `{name}` is missing; the download may be incomplete"
            )
        self._claimed[name] = prod(stored.shape)
        if stored.shape not in shapes:
            raise CheckpointError(
                f"{stored.file}: tensor `{stored.name}` has shape {list(stored.shape)}, "
                f"config.json asks for {list(shapes[0])}"
            )
        return stored.open()


def _norm(source: Source, read: Callable[[str], FloatArray]) -> Norm:
    """The norm whose tensors `read` gives by their suffix."""
    weight = read(".weight")
    bias = read(".bias") if source.bias else None
    return Norm(weight + np.float32(1) if source.plus_one else weight, bias)


def _bare(name: str, renamed: tuple[tuple[str, str], ...] = ()) -> str:
    """A tensor's name without its place in a larger class, as its family calls it."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    for theirs, ours in renamed:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
