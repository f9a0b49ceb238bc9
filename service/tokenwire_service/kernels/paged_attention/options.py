"""What varies between attention layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOptions:
    """Options of one layer's attention. A score is softcap(scale q·k) + alibi_slope (key position - query position)."""

    scale: float
    """Factor on q·k; positive."""
    window: int | None = None
    """Tokens a query sees, itself included; None sees all."""
    softcap: float | None = None
    """softcap * tanh(score / softcap) on the scaled scores (Gemma 2); None leaves them."""
    alibi_slopes: Tensor | None = None
    """float32 [H]: what a key loses for each token it lies behind the query (BLOOM, MPT)."""
    sinks: Tensor | None = None
    """float32 [H]: a logit more in each head's softmax, which takes weight and brings no value (gpt-oss)."""
    key_scale: float = 1.0
    """What stored keys are multiplied with to be the keys: for blocks in float8_e4m3fn."""
    value_scale: float = 1.0
    """The same for values."""

    @property
    def plain(self) -> bool:
        """Whether nothing but scale, window and softcap is asked for."""
        scaled = self.key_scale != 1.0 or self.value_scale != 1.0
        return self.alibi_slopes is None and self.sinks is None and not scaled
