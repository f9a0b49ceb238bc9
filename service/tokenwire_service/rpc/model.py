"""What the door knows of the model it serves."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenwire_service.text.chat_template import ChatTemplate
from tokenwire_service.text.tokenizer import Tokenizer

QUEUE_CONTEXTS = 32


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Limits a request must keep, as `tokenwire.v1.ModelLimits` tells them."""

    max_context_tokens: int
    max_prompt_tokens: int
    max_candidates: int
    max_stop_sequences: int
    max_stop_bytes: int
    max_top_n: int
    max_default_tokens: int = 0
    """max_tokens of a request that sets none; 0 takes what the context leaves."""
    max_queue_tokens: int = 0
    """Prompt tokens waiting at most; 0 takes 32 times max_context_tokens."""

    @property
    def queue_tokens(self) -> int:
        """Prompt tokens waiting at most, resolved."""
        return self.max_queue_tokens or QUEUE_CONTEXTS * self.max_context_tokens


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """The model's own values for sampling fields a request leaves unset; None takes the contract's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as callers see it; built by `app.py` once the engine is READY, never changed."""

    name: str
    source: str
    """Where the weights came from: a Hub id, a directory or file name."""
    revision: str
    architecture: str
    dtype: str
    quantization: str
    parameter_count: int
    vocab_size: int
    """Rows of the model's output: token ids are less than this."""
    eos_token_ids: tuple[int, ...]
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    limits: ModelLimits
    create_time: float
    """When the server loaded it, seconds since the epoch."""
    default_sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    aliases: tuple[str, ...] = ()
    """Other names requests may use, such as the model id."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that reaches this model, the served one first."""
        return (self.name, *self.aliases)
