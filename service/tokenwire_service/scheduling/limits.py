"""The fixed sizes policy works within."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenwire_service.core.params import Request
from tokenwire_service.errors import InvalidParameterError


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Raises ValueError when a size is not positive."""

    num_blocks: int
    block_size: int
    """Tokens in one block."""
    max_num_sequences: int
    """Slots. No more than `max_batch_prefill_tokens` of them are used, so that every decode has its token each step."""
    max_batch_prefill_tokens: int
    """Tokens computed in one step at most, decodes included; besides, one chunk may go through some layers."""
    max_total_tokens: int
    """Longest sequence, prompt and generated."""
    prefix_caching: bool = True
    ageing_interval_s: float = 5.0
    """A waiting request gains one level of priority in each interval."""
    vocab_size: int = 1 << 31
    """Rows of the model's embedding: every token id of a request is less."""
    num_draft_tokens: int = 0
    """Guesses verified with a sequence's next token at most; 0 is no speculation."""
    draft_max_batch: int = 4
    """No guesses while more sequences run than this: a full batch has no idle arithmetic to verify them with."""
    max_decode_slowdown: float = 0.0
    """Of a step in which sequences decode, by the prompts too long for one step that are computed beside them: its time
    in steps without. More than 1, or 0 for no bound."""
    num_layers: int = 0
    """Of the model, where steps that must be short may take a chunk through a few of them; 0 where they may not."""

    def __post_init__(self) -> None:
        sizes = ("num_blocks", "block_size", "max_num_sequences", "max_batch_prefill_tokens", "max_total_tokens")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1")
        for name in ("num_draft_tokens", "draft_max_batch", "num_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0")
        if self.max_decode_slowdown and not 1 < self.max_decode_slowdown < math.inf:
            raise ValueError("max_decode_slowdown must be > 1 and finite, or 0")
        if not self.ageing_interval_s > 0:
            raise ValueError("ageing_interval_s must be > 0")

    @property
    def num_slots(self) -> int:
        return min(self.max_num_sequences, self.max_batch_prefill_tokens)

    def is_long(self, num_tokens: int) -> bool:
        """Whether a sequence of so many tokens is too long for one step."""
        return num_tokens > self.max_batch_prefill_tokens

    @property
    def max_sequence_tokens(self) -> int:
        """Longest sequence that fits both the limit and, alone, the pool."""
        return min(self.max_total_tokens, self.num_blocks * self.block_size)

    def check(self, request: Request) -> None:
        """Raises InvalidParameterError for a request that could never run to its end."""
        num_prompt, max_tokens = len(request.prompt_token_ids), request.stopping.max_tokens
        if num_prompt < 1:
            raise InvalidParameterError.at("prompt", "is empty; give at least one token")
        if max_tokens < 1:
            raise InvalidParameterError.at("stopping.max_tokens", "must be >= 1")
        if request.num_candidates < 1:
            raise InvalidParameterError.at("sampling.candidate_count", "must be >= 1")
        self._check_token_ids(request)
        longest = self.max_sequence_tokens
        if num_prompt + max_tokens > longest:
            raise InvalidParameterError.at(
                "stopping.max_tokens",
                f"prompt ({num_prompt} tokens) and max_tokens ({max_tokens}) exceed the longest sequence "
                f"({longest} tokens); shorten one of them",
            )

    def _check_token_ids(self, request: Request) -> None:
        """A tokenizer may know tokens the model has no row for; one such id would fail everybody's step."""
        sampling = request.sampling
        named = {
            "prompt": request.prompt_token_ids,
            "sampling.logit_bias": [token_id for token_id, _ in sampling.logit_bias],
            "sampling.allowed_token_ids": sampling.allowed_token_ids,
            "output.logprobs.token_ids": request.logprobs.token_ids if request.logprobs else (),
            "output.prompt_logprobs.token_ids": request.prompt_logprobs.token_ids if request.prompt_logprobs else (),
        }
        for field, token_ids in named.items():
            if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.vocab_size:
                raise InvalidParameterError.at(
                    field, f"holds token id {max(token_ids)}; the model's are less than {self.vocab_size}"
                )
