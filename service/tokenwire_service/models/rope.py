"""Rotary parameters of a `config.json`: `rope_parameters`, or `rope_theta` and `rope_scaling` as written earlier."""

from __future__ import annotations

import math

from tokenwire_service.errors import UnsupportedModelError
from tokenwire_service.layers.rotary import RopeScaling, RopeSpec
from tokenwire_service.models.fields import ConfigFields

MAX_POSITIONS = 1 << 28
KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def read_rope(fields: ConfigFields, head_dim: int, max_positions: int, default_theta: float) -> RopeSpec:
    """The rotary embedding of every rotated layer. Raises UnsupportedModelError for a kind that is not in KINDS."""
    name = "rope_parameters" if fields.mapping("rope_parameters") else "rope_scaling"
    parameters = fields.mapping(name) or ConfigFields({}, f"{name}.")
    for nested in parameters.nested():
        raise parameters.error(nested, "is not supported: one rotary embedding serves all layers")
    theta = parameters.number("rope_theta", fields.number("rope_theta", default_theta))
    partial = parameters.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UnsupportedModelError(f"config.json: partial_rotary_factor {partial} is not supported, only 1.0 is")
    if theta <= 1.0:
        raise UnsupportedModelError(f"config.json: rope_theta is {theta}; it must be above 1")
    if head_dim % 2 or head_dim < 4:
        raise UnsupportedModelError(f"config.json: head_dim is {head_dim}; it must be even and at least 4")
    return RopeSpec(theta=theta, rotary_dim=head_dim, scaling=_read_scaling(fields, parameters, max_positions))


def _read_scaling(fields: ConfigFields, parameters: ConfigFields, max_positions: int) -> RopeScaling | None:
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind == "default":
        return None
    if kind not in KINDS:
        raise parameters.error("rope_type", f"must be one of {', '.join(KINDS)}")
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, parameters.number("factor"), max_positions)
    outer = fields.integer("original_max_position_embeddings", max_positions, high=MAX_POSITIONS)
    original = parameters.integer("original_max_position_embeddings", outer, high=MAX_POSITIONS)
    if kind == "llama3":
        return RopeScaling(
            kind,
            parameters.number("factor"),
            original,
            low_freq_factor=parameters.number("low_freq_factor"),
            high_freq_factor=parameters.number("high_freq_factor"),
        )
    factor = parameters.number("factor", max_positions / original)
    return RopeScaling(
        kind,
        factor,
        original,
        beta_fast=parameters.number("beta_fast", 32.0),
        beta_slow=parameters.number("beta_slow", 1.0),
        truncate=parameters.flag("truncate", True),
        attention_factor=_yarn_attention_factor(parameters, factor),
    )


def _yarn_attention_factor(parameters: ConfigFields, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.has("attention_factor"):
        return parameters.number("attention_factor")
    if parameters.raw("mscale") and parameters.raw("mscale_all_dim"):
        return mscale(parameters.number("mscale")) / mscale(parameters.number("mscale_all_dim"))
    return mscale(1.0)
