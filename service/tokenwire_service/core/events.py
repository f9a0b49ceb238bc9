"""What the engine tells about a request, in order: Admitted, PromptScored*, TokensGenerated*, then one ending."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class FinishReason(enum.IntEnum):
    """Why a candidate ended well. Errors are never reasons. Values equal tokenwire.v1.FinishReason."""

    STOP = 1
    MAX_TOKENS = 2
    CONTEXT_LENGTH = 3
    TOOL_CALLS = 4
    TIME_LIMIT = 5
    CONTENT_FILTER = 6


class FailureReason(enum.IntEnum):
    """Why the engine ended a request badly; `errors.py` has an exception for each."""

    DEADLINE_EXCEEDED = 1
    QUEUE_TIMEOUT = 2
    ABORTED_BY_OPERATOR = 3
    ENGINE_FAILURE = 4
    ENGINE_DOWN = 5
    DRAINING = 6
    QUEUE_FULL = 7


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one chosen (or prompt) token and its asked-for alternatives, natural log, before
    temperature and penalties. `rank` is 1 for the likeliest token."""

    logprob: float
    rank: int
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()
    """The `top_n` likeliest, best first, then the named `token_ids` in the order they were asked for."""
    top_ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The good end of one candidate."""

    reason: FinishReason
    stop_token_id: int | None = None
    """The token that matched, when `reason` is STOP by a token."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request was scheduled for the first time."""

    request_id: str
    cached_prompt_tokens: int
    queue_time_s: float


@dataclass(frozen=True, slots=True)
class PromptScored:
    """Log-probabilities of prompt positions [offset, offset + len); position 0 has none and is never included."""

    request_id: str
    offset: int
    logprobs: tuple[TokenLogprob, ...]


@dataclass(slots=True)
class TokensGenerated:
    """New tokens of one candidate. `finish` is set on its last one.

    Never changed once made; not frozen, because there is one per sequence and step, and making a frozen object takes
    five times as long.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    """A matched stop token is included in `token_ids`; the text layer decides whether it is shown."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Every candidate ended. Times are seconds from arrival."""

    request_id: str
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    queue_time_s: float
    prefill_time_s: float
    """From first scheduling to the first token."""
    total_time_s: float
    num_preemptions: int
    draft_tokens: int = 0
    """Tokens guessed by speculation."""
    accepted_draft_tokens: int = 0
    """Of these, tokens of the output."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended badly; nothing follows."""

    request_id: str
    reason: FailureReason
    message: str
    generated_tokens: int = 0


EngineEvent = Admitted | PromptScored | TokensGenerated | Completed | Failed


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine after a step. Counters grow from the engine's start."""

    num_running: int = 0
    num_waiting: int = 0
    waiting_tokens: int = 0
    """Prompt tokens of waiting requests that are not in the prefix cache."""
    num_blocks: int = 0
    num_free_blocks: int = 0
    """Free blocks, those that hold evictable cached content included."""
    num_cached_blocks: int = 0
    block_size: int = 0
    num_steps: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    step_time_s: float = 0.0
    """Duration of the last step."""
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
