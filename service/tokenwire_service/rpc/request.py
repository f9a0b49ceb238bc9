"""A plan and its prompt's tokens become what the engine takes, when they fit the context."""

from __future__ import annotations

import math

from tokenwire_service.core.params import LogprobsParams, Request, StoppingParams
from tokenwire_service.errors import BadRequestError, ContextLengthExceededError, InvalidParameterError
from tokenwire_service.rpc.model import ModelLimits
from tokenwire_service.rpc.plan import GenerationPlan, StopPlan


def too_long(field: str, prompt_tokens: str, limits: ModelLimits, max_tokens: int | None) -> BadRequestError:
    """The prompt alone exceeds the limit; `prompt_tokens` may be a bound such as `more than 100`."""
    remedy = "leave out older messages" if field.endswith("messages") else "shorten it, or set truncate_prompt_tokens"
    return ContextLengthExceededError.at(
        field,
        f"has {prompt_tokens} tokens; a prompt may have {limits.max_prompt_tokens}: {remedy}",
        promptTokens=prompt_tokens.removeprefix("more than "),
        maxTokens=str(max_tokens or 0),
        maxContext=str(limits.max_context_tokens),
    )


def stopping_params(stopping: StopPlan, prompt_tokens: int, limits: ModelLimits, field: str) -> StoppingParams:
    """Stopping with max_tokens resolved. Raises ContextLengthExceededError or InvalidParameterError."""
    if prompt_tokens > limits.max_prompt_tokens:
        raise too_long(field, str(prompt_tokens), limits, stopping.max_tokens)
    room = limits.max_context_tokens - prompt_tokens
    if room < 1 or (stopping.max_tokens or 0) > room:
        raise ContextLengthExceededError.at(
            "stopping.max_tokens" if room >= 1 else field,
            f"the prompt has {prompt_tokens} tokens and max_tokens is {stopping.max_tokens or 1}; together at most "
            f"{limits.max_context_tokens} fit: shorten the prompt, or ask for {max(room, 0)} tokens at most",
            promptTokens=str(prompt_tokens),
            maxTokens=str(stopping.max_tokens or 0),
            maxContext=str(limits.max_context_tokens),
        )
    own = min(limits.max_default_tokens or room, room)
    max_tokens = stopping.max_tokens or own
    if stopping.min_tokens > max_tokens:
        raise InvalidParameterError.at(
            "stopping.min_tokens", f"is {stopping.min_tokens}; must be at most max_tokens, {max_tokens} for this prompt"
        )
    return StoppingParams(
        max_tokens=max_tokens,
        min_tokens=stopping.min_tokens,
        stop_token_ids=stopping.stop_token_ids,
        context_limited=stopping.max_tokens is None and own == room,
        time_limit_s=stopping.time_limit_s,
    )


def engine_request(
    plan: GenerationPlan,
    response_id: str,
    prompt: tuple[int, ...],
    stopping: StoppingParams,
    arrival: float,
    deadline: float,
) -> Request:
    """What the engine takes. Times are on the monotonic clock."""
    ranked = plan.best_of > plan.candidate_count
    return Request(
        request_id=response_id,
        prompt_token_ids=prompt,
        sampling=plan.sampling,
        stopping=stopping,
        num_candidates=plan.best_of,
        logprobs=plan.output.logprobs or (LogprobsParams() if ranked else None),
        prompt_logprobs=plan.output.prompt_logprobs,
        priority=plan.priority,
        arrival_time=arrival,
        deadline=deadline if math.isfinite(deadline) else None,
        queue_deadline=None if plan.max_queue_time_s is None else arrival + plan.max_queue_time_s,
        cache=plan.cache,
    )
