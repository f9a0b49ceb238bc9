"""The families the decoder knows: how each one's `config.json` becomes a ModelSpec, by `architectures[0]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from tokenwire_service.errors import UnsupportedModelError
from tokenwire_service.models.fields import ConfigFields
from tokenwire_service.models.rope import MAX_POSITIONS, read_rope
from tokenwire_service.models.spec import ModelSpec

MAX_SIZE = 1 << 20
MAX_VOCAB = 1 << 24
MAX_LAYERS = 1 << 10
MAX_HEAD_DIM = 1 << 10


def _llama(fields: ConfigFields) -> ModelSpec:
    spec = _common(fields)
    attention_bias = fields.flag("attention_bias", False)
    return replace(
        spec,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _mistral(fields: ConfigFields) -> ModelSpec:
    spec = _common(fields)
    # A missing field means 4096 to transformers; an explicit null turns the window off.
    off = fields.is_null("sliding_window")
    window = None if off else fields.integer("sliding_window", 4096, high=MAX_POSITIONS)
    return replace(spec, windows=(window,) * spec.num_layers)


def _qwen2(fields: ConfigFields) -> ModelSpec:
    spec = _common(fields)
    return replace(spec, qkv_bias=True, windows=_qwen_windows(fields, spec.num_layers))


def _qwen3(fields: ConfigFields) -> ModelSpec:
    spec = _common(fields, default_head_dim=128)
    attention_bias = fields.flag("attention_bias", False)
    return replace(
        spec,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        qk_norm=True,
        windows=_qwen_windows(fields, spec.num_layers),
    )


def _smollm3(fields: ConfigFields) -> ModelSpec:
    spec = _common(fields, default_theta=2_000_000.0, default_tied=True)
    attention_bias = fields.flag("attention_bias", False)
    rope_layers = _no_rope_layers(fields, spec.num_layers)
    sliding = tuple(not rotated for rotated in rope_layers)
    return replace(
        spec,
        rope_layers=rope_layers,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False),
        windows=_layer_windows(fields, sliding) if fields.flag("use_sliding_window", False) else spec.windows,
    )


FAMILIES: Mapping[str, Callable[[ConfigFields], ModelSpec]] = MappingProxyType(
    {
        "LlamaForCausalLM": _llama,
        "MistralForCausalLM": _mistral,
        "Qwen2ForCausalLM": _qwen2,
        "Qwen3ForCausalLM": _qwen3,
        "SmolLM3ForCausalLM": _smollm3,
    }
)
"""By architecture. SmolLM and SmolLM2 are LlamaForCausalLM."""


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The ModelSpec of a parsed `config.json`.

    Raises UnsupportedModelError, in one line that lists what is supported, for another architecture or a feature that
    the decoder does not have; also for a field that is missing, of the wrong type or out of range.
    """
    fields = ConfigFields(config)
    architectures = fields.listing("architectures") or []
    name = str(architectures[0])[:100] if architectures else ""
    family = FAMILIES.get(name)
    if family is None:
        found = f"architecture '{name}' is not supported" if name else "config.json names no architecture"
        raise UnsupportedModelError(f"{found}; supported are {', '.join(sorted(FAMILIES))}")
    if fields.has("quantization_config"):
        raise UnsupportedModelError(
            "config.json: quantization_config is not supported; use an unquantized checkpoint or a .gguf file"
        )
    return family(fields)


def _common(
    fields: ConfigFields, *, default_head_dim: int = 0, default_theta: float = 10_000.0, default_tied: bool = False
) -> ModelSpec:
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise fields.error("hidden_act", "must be silu")
    hidden_size = fields.integer("hidden_size", high=MAX_SIZE)
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    num_heads = fields.integer("num_attention_heads", high=MAX_SIZE)
    num_kv_heads = fields.integer("num_key_value_heads", num_heads, high=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"must divide num_attention_heads ({num_heads})")
    head_dim = fields.integer("head_dim", default_head_dim or hidden_size // num_heads, high=MAX_HEAD_DIM)
    max_positions = fields.integer("max_position_embeddings", high=MAX_POSITIONS)
    return ModelSpec(
        architecture=str(fields.raw("architectures")[0]),
        vocab_size=fields.integer("vocab_size", high=MAX_VOCAB),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", high=MAX_SIZE),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=read_rope(fields, head_dim, max_positions, default_theta),
        rope_layers=(True,) * num_layers,
        windows=(None,) * num_layers,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tied_embeddings=fields.flag("tie_word_embeddings", default_tied),
    )


def _qwen_windows(fields: ConfigFields, num_layers: int) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", False):
        return (None,) * num_layers
    first = fields.integer("max_window_layers", 28, low=0, high=MAX_LAYERS)
    return _layer_windows(fields, tuple(layer >= first for layer in range(num_layers)))


def _layer_windows(fields: ConfigFields, sliding: tuple[bool, ...]) -> tuple[int | None, ...]:
    """Windows by `layer_types` where the config has them, else by the family's own rule `sliding`."""
    if not fields.has("sliding_window"):
        return (None,) * len(sliding)
    kinds = fields.listing("layer_types")
    if kinds is not None:
        if len(kinds) != len(sliding) or not set(map(str, kinds)) <= {"sliding_attention", "full_attention"}:
            raise fields.error("layer_types", "must hold sliding_attention or full_attention for each layer")
        sliding = tuple(kind == "sliding_attention" for kind in kinds)
    window = fields.integer("sliding_window", high=MAX_POSITIONS)
    return tuple(window if slides else None for slides in sliding)


def _no_rope_layers(fields: ConfigFields, num_layers: int) -> tuple[bool, ...]:
    """`no_rope_layers` holds 1 for a layer that IS rotated."""
    listed = fields.listing("no_rope_layers")
    if listed is None:
        interval = fields.integer("no_rope_layer_interval", 4, high=MAX_LAYERS)
        return tuple((layer + 1) % interval != 0 for layer in range(num_layers))
    if len(listed) < num_layers or not all(flag in (0, 1) for flag in listed):
        raise fields.error("no_rope_layers", "must hold 0 or 1 for each layer")
    return tuple(bool(flag) for flag in listed[:num_layers])
