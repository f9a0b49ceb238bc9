"""What a caller asked for, as immutable values. Nothing here computes anything."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one token is chosen from the model's logits.

    Order of application: repetition_penalty, frequency/presence/context_frequency penalties, logit_bias,
    allowed_token_ids, min_tokens (end tokens masked), temperature, top_k, typical_p, top_p, min_p, draw.
    """

    temperature: float = 1.0
    """>= 0; 0 is greedy (argmax, lowest token id on ties)."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """In (0, 1]: keep the smallest set whose probability reaches top_p; 1 keeps all."""
    min_p: float = 0.0
    """In [0, 1]: drop tokens less likely than min_p times the likeliest; 0 keeps all."""
    typical_p: float = 1.0
    """In (0, 1]: locally typical sampling (Meister et al., 2022); 1 keeps all."""
    presence_penalty: float = 0.0
    """OpenAI's: subtracted once from every token generated so far. In [-2, 2]."""
    frequency_penalty: float = 0.0
    """OpenAI's: subtracted per occurrence among the tokens generated so far. In [-2, 2]."""
    context_frequency_penalty: float = 0.0
    """TGI's `frequency_penalty`: subtracted in proportion to a token's share of prompt + generated. In [-2, 2]."""
    repetition_penalty: float = 1.0
    """TGI's and transformers' (CTRL, Keskar et al., 2019): over prompt + generated; > 0, 1 is off."""
    seed: int = 0
    """Key of the counter-based RNG, always resolved (a random one is drawn before this point when unset)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token_id, bias) added to the logits."""
    allowed_token_ids: tuple[int, ...] = ()
    """When not empty, every other token is masked out."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class StoppingParams:
    """When one candidate ends. Stop strings are the text layer's; only token-level conditions live here."""

    max_tokens: int
    """>= 1, already capped so that prompt + max_tokens fits the context."""
    min_tokens: int = 0
    """End tokens are masked until this many tokens were generated."""
    stop_token_ids: frozenset[int] = frozenset()
    """A generated token in this set ends the candidate (the model's end tokens are included unless ignored)."""
    context_limited: bool = False
    """True when max_tokens was set by the context limit: running out is CONTEXT_LENGTH, not MAX_TOKENS."""
    time_limit_s: float | None = None
    """Soft limit from arrival: the partial result is returned with TIME_LIMIT."""


@dataclass(frozen=True, slots=True)
class LogprobsParams:
    """Which log-probabilities to return per position, from the distribution before temperature and penalties."""

    top_n: int = 0
    """The n likeliest alternatives besides the chosen token."""
    token_ids: tuple[int, ...] = ()
    """Named tokens whose log-probability is wanted at each position."""


@dataclass(frozen=True, slots=True)
class CacheParams:
    """Use of the prefix cache. A hit never crosses a salt."""

    salt: str = ""
    bypass: bool = False
    """Neither read from nor write to the prefix cache."""
    session_id: str = ""
    """Requests of one conversation go to the same replica; engines do not see it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One admitted request as the engine sees it. Times are seconds on the machine's monotonic clock."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stopping: StoppingParams
    num_candidates: int = 1
    """Independent continuations; candidate i draws by the RNG of key `seed` and counter (position, i)."""
    logprobs: LogprobsParams | None = None
    prompt_logprobs: LogprobsParams | None = None
    priority: int = 0
    """Higher runs sooner."""
    arrival_time: float = 0.0
    deadline: float | None = None
    """Hard: past it the request ends DEADLINE_EXCEEDED wherever it is."""
    queue_deadline: float | None = None
    """Not scheduled by then: ends QUEUE_TIMEOUT."""
    cache: CacheParams = field(default_factory=CacheParams)
