"""What varies between attention layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Options of one layer's attention."""

    scale: float
    """Factor on q·k."""
    window: int | None = None
    """Tokens a query sees, itself included; None sees all."""
    softcap: float | None = None
    """softcap * tanh(score / softcap) on the scaled scores (Gemma 2); None leaves them."""
