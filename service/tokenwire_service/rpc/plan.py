"""What a caller asked for, checked and complete, before the prompt's tokens are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenwire_service.core.params import CacheParams, LogprobsParams, SamplingParams


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to tokenize."""

    text: str
    add_special_tokens: bool = True
    field: str = "text"
    """Proto path errors about the prompt name."""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Tokens, taken as they are."""

    token_ids: tuple[int, ...]
    field: str = "token_ids"


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation to render and tokenize."""

    messages: tuple[Mapping[str, str], ...]
    """What the template sees: role, content and, when given, name."""
    template_args: Mapping[str, object]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    field: str = "messages"


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class StopPlan:
    """When a candidate ends, as asked."""

    max_tokens: int | None = None
    """None: what the server's default and the context leave."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    """The model's own end tokens included, unless they are ignored."""
    include_stop: bool = False
    time_limit_s: float | None = None


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """What is returned."""

    text: bool = True
    token_ids: bool = False
    prompt_token_ids: bool = False
    skip_special_tokens: bool = True
    logprobs: LogprobsParams | None = None
    prompt_logprobs: LogprobsParams | None = None


MAX_EVENT_ENTRIES = 65_536
"""Log-probabilities in one event, alternatives included: about 1 MiB."""


def tokens_per_event(asked: LogprobsParams | None) -> int:
    """How many tokens one event may tell of."""
    alternatives = 0 if asked is None else asked.top_n + len(asked.token_ids)
    return max(MAX_EVENT_ENTRIES // (1 + alternatives), 1)


@dataclass(frozen=True, slots=True)
class EventPlan:
    """How a stream is cut into events."""

    min_tokens: int = 1
    max_delay_s: float = 1.0
    usage: bool = False


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """One request, ready for admission."""

    prompt: Prompt
    truncate_prompt_tokens: int | None
    sampling: SamplingParams
    candidate_count: int
    best_of: int
    stopping: StopPlan
    output: OutputPlan
    priority: int
    max_queue_time_s: float | None
    cache: CacheParams
    session_id: str
    events: EventPlan
    user: str
    labels: Mapping[str, str]
