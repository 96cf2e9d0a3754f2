"""ModelConfig: a decoder as numbers and switches, named for what they do.

A family (`kvgen.checkpoint.families`) translates a checkpoint's config.json into a ModelConfig;
from then on nobody asks which family it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kvgen.choices import CacheDTypeName
from kvgen.errors import CheckpointError

NormKind = Literal["layer", "rms"]
MlpKind = Literal["plain", "gated"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
QkNorm = Literal["head", "whole"]
_CACHE_ITEM_BYTES: dict[CacheDTypeName, int] = {"f32": 4, "f16": 2, "int8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (RoFormer, arXiv:2104.09864) of a head's first `dim` numbers.

    Number i is paired with i + dim/2. `kind` says how the frequencies are stretched; formulas and
    defaults are those of transformers, modeling_rope_utils.py:

    - `default`: inv_freq_i = theta^(-2i/dim)
    - `linear`: all frequencies divided by `factor` (arXiv:2306.15595)
    - `dynamic`: theta grows with the length of the sequence beyond `original_context` (NTK), so
      that every length has its own frequencies, and all kept ids run again at each decode step
    - `llama3`: low frequencies divided by `factor`, high ones kept, a ramp between
    - `yarn`: the same idea with a ramp over dimensions, and cos and sin scaled (arXiv:2309.00071)
    - `longrope`: a divisor for each frequency, one list up to `original_context` and one beyond
      (arXiv:2402.13753); at the step that goes beyond, the kept ids run again

    Logits of a sequence are those of transformers without its cache at that length, whatever
    length it was planned for. With its cache, transformers keeps keys of older frequencies
    (`dynamic`, and `longrope` in other families than phi3).
    """

    theta: float
    dim: int
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    low: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 4.0  # llama3: high_freq_factor; yarn: beta_fast
    truncate: bool = True  # yarn: whole dimensions bound the ramp
    magnitude: float = 1.0  # factor of cos and sin
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    divisor: int = 0  # of the exponents, where it is not dim: an odd number that dim rounds up

    def __post_init__(self) -> None:
        """Raise CheckpointError where the numbers cannot belong together."""
        if self.dim < 2 or self.dim % 2:
            raise CheckpointError(
                f"config.json: RoPE needs an even head size (or part of it), not {self.dim}"
            )
        divisors = (self.theta, self.factor, *self.short_factors, *self.long_factors)
        if not all(math.isfinite(number) and number > 0 for number in divisors):
            raise CheckpointError("config.json: RoPE's theta and factors must be positive numbers")
        if not math.isfinite(self.magnitude):
            raise CheckpointError("config.json: RoPE's attention_factor must be a number")
        # Angles are float32, and so is the theta of the longest sequence; positions are below 2^24.
        largest_theta = math.log(self.theta)
        if self.kind == "dynamic" and self.exponent_dim != 2:
            stretch = math.log(1 + self.factor * 2**24 / self.original_context)
            largest_theta += stretch * self.exponent_dim / (self.exponent_dim - 2)
        smallest = min(0.0, largest_theta) + math.log(min(1.0, *divisors[1:]))
        if largest_theta > math.log(1e38) or smallest < math.log(1e-30):
            raise CheckpointError(
                "config.json: RoPE's theta and factors make angles beyond what float32 can hold"
            )
        if self.kind in ("llama3", "yarn") and not (self.low > 0 and self.high > 0):
            raise CheckpointError(
                f"config.json: RoPE's bounds must be positive, not {self.low:g} and {self.high:g}"
            )
        if self.kind == "yarn" and self.theta == 1:
            raise CheckpointError("config.json: RoPE of kind yarn divides by log(theta): not 1")
        if self.kind == "dynamic" and self.exponent_dim == 2:
            raise CheckpointError(
                "config.json: RoPE of kind dynamic divides by the turned numbers - 2: not 2 of them"
            )
        if self.kind == "longrope" and not (
            len(self.short_factors) == len(self.long_factors) == self.dim // 2
        ):
            raise CheckpointError(
                f"config.json: RoPE needs {self.dim // 2} short and long factors, not "
                f"{len(self.short_factors)} and {len(self.long_factors)}"
            )

    @property
    def depends_on_length(self) -> bool:
        """Whether sequences of different lengths may have different frequencies."""
        return self.kind in ("dynamic", "longrope")

    @property
    def exponent_dim(self) -> int:
        """What the exponents of theta are divided by."""
        return self.divisor or self.dim


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything a decoder needs to know besides its weights.

    Which optional parts there are (norms before or after a block, a norm of its own for the MLP)
    is told by the weights: a slot without one is None.
    """

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
    attn_scales: tuple[float, ...]  # per layer, as GPT-2 may divide by the layer's number
    rope: tuple[RopeConfig | None, ...] = ()  # per layer; () = learned positions
    windows: tuple[int | None, ...] = ()  # per layer: keys that a query sees; () = all of them
    parallel_residual: bool = False  # x + attn(norm x) + mlp(norm x)
    qk_norm: QkNorm | None = None  # queries and keys normalised, each head or the whole projection
    attn_softcap: float | None = None  # scores become c tanh(score / c)
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0  # factor of what a block adds
    logit_scale: float = 1.0
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raise CheckpointError where the numbers cannot belong together."""
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"config.json: {self.n_heads} query heads cannot share {self.n_kv_heads} "
                "key/value heads evenly"
            )
        if self.n_heads * self.head_dim >= 2**20:
            raise CheckpointError(
                f"config.json: {self.n_heads} heads of size {self.head_dim} are beyond any model"
            )
        for name in ("attn_scales", "rope", "windows"):
            per_layer = getattr(self, name)
            if per_layer and len(per_layer) != self.n_layers:
                raise CheckpointError(
                    f"config.json: {len(per_layer)} layers are described, but there are "
                    f"{self.n_layers}"
                )
        scales = [self.embed_scale, self.residual_scale, self.logit_scale, *self.attn_scales]
        caps = [cap for cap in (self.attn_softcap, self.logit_softcap) if cap is not None]
        if not all(math.isfinite(number) and number > 0 for number in (*scales, *caps)):
            raise CheckpointError("config.json: scales and soft caps must be positive numbers")
        if not (math.isfinite(self.norm_eps) and self.norm_eps >= 0):
            raise CheckpointError(f"config.json: a norm's epsilon cannot be {self.norm_eps}")
        if any(rope is not None and rope.dim > self.head_dim for rope in self.rope):
            raise CheckpointError("config.json: RoPE cannot turn more than a head's size")

    @property
    def kv_floats_per_token(self) -> int:
        """Numbers that the KV cache keeps for one position: K and V of every layer."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim

    def kv_bytes_per_position(self, dtype: CacheDTypeName) -> int:
        """Bytes of these numbers; a row of int8 has a scale in float32 besides."""
        rows = 2 * self.n_layers * self.n_kv_heads
        return _CACHE_ITEM_BYTES[dtype] * self.kv_floats_per_token + 4 * rows * (dtype == "int8")

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of one layer: four projections, and two or three of the MLP."""
        projections = 2 * (self.n_heads + self.n_kv_heads) * self.head_dim
        mlp = (3 if self.mlp == "gated" else 2) * self.d_ff
        return self.d_model * (projections + mlp)

    @property
    def head_weights(self) -> int:
        """Numbers in the matrix that turns hidden states into logits."""
        return self.d_model * self.vocab_size

    def window(self, layer: int) -> int | None:
        """How many keys a query of this layer sees, itself included; None: all before it."""
        return self.windows[layer] if self.windows else None
