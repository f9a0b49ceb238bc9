"""What happens to one generation, free of engine and wire: streams send it on, unary calls gather it."""

from __future__ import annotations

from dataclasses import dataclass

from tokenwire_service.core.events import FinishReason, TokenLogprob


@dataclass(frozen=True, slots=True)
class ResponseFacts:
    """Known when a response starts."""

    response_id: str
    model: str
    fingerprint: str
    create_time: float
    """Seconds since the epoch."""
    seed: int


@dataclass(frozen=True, slots=True)
class Started:
    """The request got its place in the batch."""

    facts: ResponseFacts
    prompt_tokens: int
    cached_prompt_tokens: int
    queue_time_s: float


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """Prompt positions [offset, offset + len), as far as they were asked for."""

    offset: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob | None, ...] = ()
    """Empty when not asked for; None for position 0, which has none."""


@dataclass(frozen=True, slots=True)
class UsageSoFar:
    """Tokens counted, all candidates together."""

    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    draft_tokens: int = 0
    """Guesses of speculation, told at the end only; so are those accepted."""
    accepted_draft_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CandidateDelta:
    """New tokens of one candidate; `text` may be held back."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, or empty."""
    usage: UsageSoFar | None = None


@dataclass(frozen=True, slots=True)
class CandidateEnded:
    """A candidate ended well."""

    index: int
    reason: FinishReason
    stop: str | None = None
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """Every candidate ended. Times are seconds from arrival."""

    usage: UsageSoFar
    queue_time_s: float
    first_token_time_s: float
    total_time_s: float
    preemptions: int


GenerationEvent = Started | PromptChunk | CandidateDelta | CandidateEnded | Done
