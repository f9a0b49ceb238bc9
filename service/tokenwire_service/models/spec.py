"""What a model is: sizes and switches of the one parametric decoder; `families.read_spec` reads them."""

from __future__ import annotations

from dataclasses import dataclass

from tokenwire_service.layers.rotary import RopeSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One decoder-only model. Sizes are of the whole model, before any sharding."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    rope: RopeSpec
    rope_layers: tuple[bool, ...]
    """Per layer: whether queries and keys are rotated (SmolLM3 leaves every fourth layer alone)."""
    windows: tuple[int | None, ...]
    """Per layer: tokens a query sees, itself included; None sees all."""
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Per-head RMSNorm of queries and keys before the rotation."""
    tied_embeddings: bool
