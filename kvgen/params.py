"""Params: a model's weights in canonical slots, bound strictly to a checkpoint's tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from kvgen.checkpoint import Checkpoint, StoredTensor
from kvgen.config import ModelConfig
from kvgen.errors import CheckpointError
from kvgen.families import Family, Keys, Source
from kvgen.tensors import DTypeName, FloatArray, Tensor, convert


class Linear(NamedTuple):
    """y = x W^T + b with W [out, in] and b float32 [out] or None."""

    weight: Tensor
    bias: FloatArray | None


class Norm(NamedTuple):
    """The scale and shift of a normalisation, float32 [C]; RMSNorm has no shift."""

    weight: FloatArray
    bias: FloatArray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParams:
    """One decoder layer. `gate` is None where the MLP is plain."""

    attn_norm: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    mlp_norm: Norm
    gate: Linear | None
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """A whole model: what is learned, and the width it is stored in."""

    config: ModelConfig
    dtype: DTypeName
    embed: Tensor  # [V, C]
    positions: Tensor | None  # [max_context, C], None with RoPE
    layers: tuple[LayerParams, ...]
    final_norm: Norm
    head: Linear  # the embedding again where it is tied
    notes: tuple[str, ...] = ()  # what a user should know about this checkpoint
    ignored_keys: tuple[str, ...] = ()  # keys of config.json that play no part

    @property
    def weights(self) -> list[Tensor]:
        """Every large tensor once, a tied head counted with the embedding."""
        tensors = [self.embed] if self.head.weight is self.embed else [self.embed, self.head.weight]
        if self.positions is not None:
            tensors.append(self.positions)
        for layer in self.layers:
            linears = (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
            tensors += [linear.weight for linear in linears if linear is not None]
        return tensors

    @property
    def nbytes(self) -> int:
        """Bytes of the large tensors in the form they are used."""
        return sum(tensor.nbytes for tensor in self.weights)


# A model saved as part of a larger class carries its place in front of every name.
_PREFIXES = ("model.", "transformer.")
# Constants that older checkpoints saved beside the weights: causal masks and RoPE frequencies.
_BUFFER = re.compile(r"(^|\.)(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")
_WIDTHS: dict[str, DTypeName] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def bind(checkpoint: Checkpoint, family: Family, *, dtype: DTypeName | None = None) -> Params:
    """Read the config and put every tensor of the checkpoint into its slot, stored as `dtype`.

    Strict both ways: a slot without a tensor is a CheckpointError, and so is a tensor without a
    slot or a key of config.json that may change the arithmetic and is not understood. Without
    `dtype` weights keep the width they are stored in (float32 where widths are mixed), and nothing
    large is copied but transposes.
    """
    keys = Keys(checkpoint.config)
    config = replace(family.config(keys), eos_ids=keys.token_ids("eos_token_id"))
    sources = family.sources(keys)
    tied = keys.flag("tie_word_embeddings", None) if keys.has("tie_word_embeddings") else None
    keys.refuse_unread(inert=family.inert)

    binder = _Binder(checkpoint, config, sources, dtype)
    embed = binder.linear("embed").weight
    layers = tuple(
        LayerParams(
            attn_norm=binder.norm("attn_norm", layer),
            q=binder.linear("q", layer),
            k=binder.linear("k", layer),
            v=binder.linear("v", layer),
            o=binder.linear("o", layer),
            mlp_norm=binder.norm("mlp_norm", layer),
            gate=binder.linear("gate", layer) if "gate" in sources else None,
            up=binder.linear("up", layer),
            down=binder.linear("down", layer),
        )
        for layer in range(config.n_layers)
    )
    params = Params(
        config=config,
        dtype=binder.dtype,
        embed=embed,
        positions=binder.linear("positions").weight if "positions" in sources else None,
        layers=layers,
        final_norm=binder.norm("final_norm"),
        head=binder.head(embed, tied=tied),
        notes=tuple(binder.notes),
        ignored_keys=tuple(keys.unread()),
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
    ) -> None:
        self._folder = checkpoint.folder
        self._config = config
        self._sources = sources
        self._claimed: set[str] = set()
        self._tensors: dict[str, StoredTensor] = {}
        for stored in checkpoint.tensors.values():
            name = stored.name
            while name.startswith(_PREFIXES):
                name = name.split(".", 1)[1]
            if _BUFFER.search(name):
                continue
            if name in self._tensors:
                raise CheckpointError(
                    f"{self._folder}: `{stored.name}` and `{self._tensors[name].name}` "
                    "would be the same tensor"
                )
            self._tensors[name] = stored
        kinds = {tensor.kind for tensor in self._tensors.values() if len(tensor.shape) > 1}
        stored_width = _WIDTHS.get(kinds.pop(), "f32") if len(kinds) == 1 else "f32"
        self.dtype: DTypeName = dtype or stored_width
        self.notes: list[str] = []

    def linear(self, slot: str, layer: int | None = None) -> Linear:
        """The weight of a slot (and its bias where the family says that there is one)."""
        source = self._sources[slot]
        block, n_blocks = source.block
        shape = _shape(slot, self._config)
        full = (shape[0] * n_blocks, *shape[1:])
        rows = slice(block * shape[0], (block + 1) * shape[0])
        weight = self._open(source, ".weight", layer, full[::-1] if source.transposed else full)
        stored = weight.stored.T if source.transposed else weight.stored
        part = convert(weight.view(np.ascontiguousarray(stored[rows])), self.dtype)
        if not source.bias:
            return Linear(part, None)
        bias = self._open(source, ".bias", layer, full[:1]).dequantize()
        return Linear(part, np.ascontiguousarray(bias[rows]))

    def norm(self, slot: str, layer: int | None = None) -> Norm:
        """The scale of a norm, and its shift where there is one."""
        source = self._sources[slot]
        shape = (self._config.d_model,)
        weight = self._open(source, ".weight", layer, shape).dequantize()
        if not source.bias:
            return Norm(weight, None)
        return Norm(weight, self._open(source, ".bias", layer, shape).dequantize())

    def head(self, embed: Tensor, *, tied: bool | None) -> Linear:
        """The output head: a tensor of its own, or the embedding where it is tied.

        The tensor's absence ties it, unless config.json says that it is not tied.
        """
        name = self._sources["head"].name + ".weight"
        if name not in self._tensors and tied is not False:
            return Linear(embed, None)
        head = self.linear("head")
        if not tied:
            return head
        if not np.array_equal(head.weight.stored, embed.stored):
            self.notes.append(f"{name} differs from the embedding although config.json ties them")
        return Linear(embed, None)

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
        self, source: Source, suffix: str, layer: int | None, shape: tuple[int, ...]
    ) -> Tensor:
        name = source.name.format(layer=layer) + suffix
        stored = self._tensors.get(name)
        if stored is None:
            raise CheckpointError(
                f"{self._folder}: tensor `{name}` is missing; the download may be incomplete"
            )
        self._claimed.add(name)
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.file}: tensor `{stored.name}` has shape {list(stored.shape)}, "
                f"config.json asks for {list(shape)}"
            )
        return stored.open()
