"""ModelConfig: a decoder as numbers and switches, named for what they do.

A family (`kvgen.families`) translates a checkpoint's config.json into a ModelConfig; from then on
nobody asks which family it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kvgen.errors import CheckpointError

NormKind = Literal["layer", "rms"]
MlpKind = Literal["plain", "gated"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (RoFormer, arXiv:2104.09864) over the whole head, in halves.

    Dimension i is paired with i + D/2. `kind` says how the frequencies are stretched:

    - `default`: inv_freq_i = theta^(-2i/D)
    - `linear`: all frequencies divided by `factor` (arXiv:2306.15595)
    - `llama3`: low frequencies divided by `factor`, high ones kept, a ramp between
      (transformers, modeling_rope_utils.py, `_compute_llama3_parameters`)
    """

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything a decoder needs to know besides its weights."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    vocab_size: int
    max_context: int
    norm: NormKind
    norm_eps: float
    mlp: MlpKind
    activation: Activation
    rope: RopeConfig | None  # None: learned positions
    attn_scales: tuple[float, ...]  # per layer, as GPT-2 may divide by the layer's number
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raise CheckpointError where the numbers cannot belong together."""
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"config.json: {self.n_heads} query heads cannot share {self.n_kv_heads} "
                "key/value heads evenly"
            )
        if self.rope and self.head_dim % 2:
            raise CheckpointError(f"config.json: RoPE needs an even head size, not {self.head_dim}")
        numbers = [self.norm_eps, *self.attn_scales]
        if self.rope:
            numbers += [self.rope.theta, self.rope.factor]
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise CheckpointError(
                "config.json: the norm's epsilon, the attention scale and RoPE's theta and factor "
                "must be positive numbers"
            )

    @property
    def kv_floats_per_token(self) -> int:
        """Numbers that the KV cache keeps for one position: K and V of every layer."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim
