"""Rotary position embedding and its scalings: the angles of a step's positions, shared by every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwire_service.kernels.backend import Backend
from tokenwire_service.kernels.embed_gather import embed_gather

_TABLE_PIECE = 8192


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Parameters of a scaled rotary embedding; a kind reads only its own."""

    kind: str
    """linear, dynamic, llama3 or yarn."""
    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (Su et al., 2021)."""

    theta: float
    rotary_dim: int
    """Leading dimensions of a head that are rotated; even."""
    interleaved: bool = False
    """True rotates neighbours (GPT-J), False rotates halves (NeoX)."""
    scaling: RopeScaling | None = None


class Rotary:
    """Positions to cosines and sines, computed anew each time: for callers that know no longest sequence."""

    def __init__(self, spec: RopeSpec, device: torch.device) -> None:
        self.spec = spec
        self._inv_freq = inverse_frequencies(spec).to(device)
        self._attention_factor = spec.scaling.attention_factor if spec.scaling else 1.0

    def __call__(self, positions: Tensor) -> Tensor:
        """positions int [T] → float32 [T, rotary_dim]: rotary_dim / 2 cosines, then as many sines."""
        scaling = self.spec.scaling
        if scaling is not None and scaling.kind == "dynamic":
            angles = positions[:, None].float() * _dynamic_frequencies(self.spec, scaling, positions)
        else:
            angles = positions[:, None].float() * self._inv_freq
        cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return cos_sin if self._attention_factor == 1.0 else cos_sin * self._attention_factor


class RotaryTable:
    """The same values looked up: every scaling is a function of the position alone."""

    def __init__(self, rotary: Rotary, max_positions: int, backend: Backend) -> None:
        # In pieces: a long context would otherwise need several times the table's size for a moment.
        pieces = [
            torch.arange(start, min(start + _TABLE_PIECE, max_positions), device=backend.device)
            for start in range(0, max_positions, _TABLE_PIECE)
        ]
        self._table = torch.cat([rotary(piece) for piece in pieces])
        self._backend = backend

    def __call__(self, positions: Tensor) -> Tensor:
        """positions int64 [T], less than `max_positions` → float32 [T, rotary_dim], as Rotary gives."""
        return embed_gather(positions, self._table, 0, len(self._table), self._backend)


def inverse_frequencies(spec: RopeSpec) -> Tensor:
    """float32 [rotary_dim / 2]: radians per position."""
    inv_freq = 1.0 / (spec.theta ** _exponents(spec))
    scaling = spec.scaling
    if scaling is None or scaling.kind == "dynamic":
        return inv_freq
    if scaling.kind == "linear":
        return inv_freq / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(inv_freq, scaling)
    return _yarn(spec, scaling)


def _exponents(spec: RopeSpec) -> Tensor:
    return torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim


def _dynamic_frequencies(spec: RopeSpec, scaling: RopeScaling, positions: Tensor) -> Tensor:
    """Dynamic NTK (bloc97, emozilla): the base grows with the length beyond the trained context.

    The length is the token's own position + 1, as when tokens are appended one by one, so that a token's key depends
    neither on how its prompt was cut into chunks nor on who else is in the batch, and cached blocks stay valid.
    """
    trained = scaling.original_max_position_embeddings
    length = (positions + 1).clamp(min=trained).float()
    growth = scaling.factor * length / trained - (scaling.factor - 1)
    base = spec.theta * growth ** (spec.rotary_dim / (spec.rotary_dim - 2))
    return 1.0 / (base[:, None] ** _exponents(spec).to(positions.device))


def _llama3(inv_freq: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between interpolated."""
    original = scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / inv_freq
    smooth = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * inv_freq / scaling.factor + smooth * inv_freq
    stretched = torch.where(wavelength > original / scaling.low_freq_factor, inv_freq / scaling.factor, between)
    return torch.where(wavelength < original / scaling.high_freq_factor, inv_freq, stretched)


def _yarn(spec: RopeSpec, scaling: RopeScaling) -> Tensor:
    """YaRN (Peng et al., 2023): interpolate slow dimensions, keep fast ones, ramp between the two."""

    def dimension_of(rotations: float) -> float:
        length = scaling.original_max_position_embeddings
        return spec.rotary_dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    span = (high - low) or 0.001
    ramp = ((torch.arange(spec.rotary_dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    frequencies = spec.theta ** _exponents(spec)
    return ramp / (scaling.factor * frequencies) + (1 - ramp) / frequencies
