"""The option messages that Generate and Chat share, checked and turned into a plan's parts."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from tokenwire.v1 import text_generation_pb2, types_pb2
from tokenwire_service.core.params import CacheParams, LogprobsParams, SamplingParams
from tokenwire_service.rpc.convert.checks import Checks
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.plan import EventPlan, OutputPlan, StopPlan

MAX_LOGIT_BIAS = 1024
MAX_ALLOWED_TOKEN_IDS = 65_536
MAX_STOP_TOKEN_IDS = 64
MAX_LOGPROB_TOKEN_IDS = 64
MAX_LABELS = 16
MAX_LABEL_BYTES = 256
MAX_EVENT_DELAY_S = 10.0
MAX_PRIORITY = 100

GenerationRequest = text_generation_pb2.GenerateRequest | text_generation_pb2.ChatRequest


def sampling_params(sent: types_pb2.SamplingParams, model: ServedModel, checks: Checks) -> SamplingParams:
    """How tokens are chosen: the request's values, else the model's, else the contract's."""
    path, own, vocab_size = "sampling", model.default_sampling, model.vocab_size
    if sent.watermark:
        checks.refuse("sampling.watermark", "watermarking is not built in; leave it out")
    top_k = checks.integer(sent, "top_k", path, 0, None, own.top_k or 0)
    return SamplingParams(
        temperature=checks.number(sent, "temperature", path, 0, 100, _or(own.temperature, 1.0)),
        top_k=min(top_k, vocab_size),
        top_p=checks.number(sent, "top_p", path, 0, 1, _or(own.top_p, 1.0), above=True),
        min_p=checks.number(sent, "min_p", path, 0, 1, _or(own.min_p, 0.0)),
        typical_p=checks.number(sent, "typical_p", path, 0, 1, _or(own.typical_p, 1.0), above=True),
        presence_penalty=checks.number(sent, "presence_penalty", path, -2, 2, 0.0),
        frequency_penalty=checks.number(sent, "frequency_penalty", path, -2, 2, 0.0),
        context_frequency_penalty=checks.number(sent, "context_frequency_penalty", path, -2, 2, 0.0),
        repetition_penalty=checks.number(
            sent, "repetition_penalty", path, 0, 100, _or(own.repetition_penalty, 1.0), above=True
        ),
        seed=sent.seed if sent.HasField("seed") else secrets.randbits(63),
        logit_bias=_logit_bias(sent.logit_bias, vocab_size, checks),
        allowed_token_ids=_allowed(sent, vocab_size, checks),
    )


def candidate_counts(
    sent: types_pb2.SamplingParams, model: ServedModel, checks: Checks, *, streams: bool
) -> tuple[int, int]:
    """(candidate_count, best_of)."""
    most = model.limits.max_candidates
    count = checks.integer(sent, "candidate_count", "sampling", 1, most, 1)
    best_of = checks.integer(sent, "best_of", "sampling", 1, most, count)
    field = "sampling.best_of"
    checks.require(best_of >= count, field, f"is {best_of}; must be at least candidate_count, {count}")
    checks.require(
        not streams or best_of <= count,
        field,
        "must equal candidate_count on a stream; use the unary call, or leave it out",
    )
    return count, best_of


def stop_plan(sent: types_pb2.StoppingCriteria, model: ServedModel, checks: Checks) -> StopPlan:
    """When candidates end; the context's own limit comes with the prompt."""
    path, limits = "stopping", model.limits
    given = checks.integer(sent, "max_tokens", path, 1, None, 0)
    min_tokens = checks.integer(sent, "min_tokens", path, 0, None, 0)
    if given:
        remedy = f"is {min_tokens}; must be at most max_tokens, {given}"
        checks.require(min_tokens <= given, "stopping.min_tokens", remedy)
    if checks.count(sent.stop, "stopping.stop", limits.max_stop_sequences):
        for index, stop in enumerate(sent.stop):
            field = f"stopping.stop[{index}]"
            checks.require(bool(stop), field, "is empty; leave it out, or give the text to stop at")
            checks.text(stop, field, limits.max_stop_bytes)
    if checks.count(sent.stop_token_ids, "stopping.stop_token_ids", MAX_STOP_TOKEN_IDS):
        checks.token_ids(sent.stop_token_ids, "stopping.stop_token_ids", model.vocab_size)
    own = () if sent.ignore_eos else model.eos_token_ids
    return StopPlan(
        max_tokens=given or None,
        min_tokens=min_tokens,
        stop=tuple(sent.stop[: limits.max_stop_sequences]),
        stop_token_ids=frozenset(own) | frozenset(sent.stop_token_ids[:MAX_STOP_TOKEN_IDS]),
        include_stop=sent.include_stop,
        time_limit_s=checks.seconds(sent, "time_limit", path),
    )


def require_a_choice(sampling: SamplingParams, stopping: StopPlan, checks: Checks) -> None:
    """While end tokens are barred by min_tokens, some allowed token must be left."""
    allowed = frozenset(sampling.allowed_token_ids)
    checks.require(
        not allowed or not stopping.min_tokens or bool(allowed - stopping.stop_token_ids),
        "sampling.allowed_token_ids",
        "holds end tokens only, which stopping.min_tokens bars at first; allow another token, or leave min_tokens out",
    )


def output_plan(sent: types_pb2.OutputOptions, model: ServedModel, checks: Checks) -> OutputPlan:
    """What is returned."""
    return OutputPlan(
        text=sent.text if sent.HasField("text") else True,
        token_ids=sent.token_ids,
        prompt_token_ids=sent.prompt_token_ids,
        skip_special_tokens=sent.skip_special_tokens if sent.HasField("skip_special_tokens") else True,
        logprobs=_logprobs(sent, "logprobs", model, checks),
        prompt_logprobs=_logprobs(sent, "prompt_logprobs", model, checks),
    )


def event_plan(request: GenerationRequest, checks: Checks, *, streams: bool) -> EventPlan:
    """How the stream is cut; refused on unary calls."""
    if not request.HasField("stream"):
        return EventPlan()
    checks.require(streams, "stream", "is for streams only: leave it out, or use the streaming call")
    sent, own = request.stream, EventPlan()
    return EventPlan(
        min_tokens=checks.integer(sent, "min_tokens_per_event", "stream", 1, None, own.min_tokens),
        max_delay_s=checks.seconds(sent, "max_delay", "stream", most=MAX_EVENT_DELAY_S) or own.max_delay_s,
        usage=sent.usage_per_event,
    )


def cache_params(sent: types_pb2.CacheOptions, checks: Checks) -> CacheParams:
    """Use of the prefix cache; the session id is checked with the labels."""
    salt = checks.text(sent.salt, "cache.salt", MAX_LABEL_BYTES)
    return CacheParams(salt=salt, bypass=sent.bypass, session_id=sent.session_id)


def labels(request: GenerationRequest, checks: Checks) -> Mapping[str, str]:
    """The request's labels; `user` and the session id are checked beside them."""
    checks.text(request.user, "user", MAX_LABEL_BYTES)
    checks.text(request.cache.session_id, "cache.session_id", MAX_LABEL_BYTES)
    if not checks.count(request.labels, "labels", MAX_LABELS):
        return {}
    for key, value in request.labels.items():
        checks.text(key, "labels", MAX_LABEL_BYTES)
        checks.text(value, f"labels[{key[:32]!r}]", MAX_LABEL_BYTES)
    return dict(request.labels)


def refuse_constraint(request: GenerationRequest, checks: Checks) -> None:
    """Structured output is not built in."""
    kind = request.constraint.WhichOneof("kind")
    if kind is not None:
        checks.refuse(f"constraint.{kind}", "structured output is not enabled on this server; leave constraint out")


def _logit_bias(sent: Mapping[int, float], vocab_size: int, checks: Checks) -> tuple[tuple[int, float], ...]:
    field = "sampling.logit_bias"
    if not checks.count(sent, field, MAX_LOGIT_BIAS):
        return ()
    for token_id, bias in sent.items():
        checks.require(token_id < vocab_size, f"{field}[{token_id}]", f"token ids must be less than {vocab_size}")
        checks.require(-100 <= bias <= 100, f"{field}[{token_id}]", f"is {bias:g}; must be in [-100, 100]")
    return tuple(sorted(sent.items()))


def _allowed(sent: types_pb2.SamplingParams, vocab_size: int, checks: Checks) -> tuple[int, ...]:
    field = "sampling.allowed_token_ids"
    if not checks.count(sent.allowed_token_ids, field, MAX_ALLOWED_TOKEN_IDS):
        return ()
    checks.token_ids(sent.allowed_token_ids, field, vocab_size)
    return tuple(sorted(set(sent.allowed_token_ids)))


def _logprobs(sent: types_pb2.OutputOptions, name: Any, model: ServedModel, checks: Checks) -> LogprobsParams | None:
    if not sent.HasField(name):
        return None
    options: types_pb2.LogprobsOptions = getattr(sent, name)
    path = f"output.{name}"
    top_n = checks.integer(options, "top_n", path, 0, model.limits.max_top_n, 0)
    field = f"{path}.token_ids"
    if not checks.count(options.token_ids, field, MAX_LOGPROB_TOKEN_IDS):
        return None
    checks.token_ids(options.token_ids, field, model.vocab_size)
    return LogprobsParams(top_n=top_n, token_ids=tuple(options.token_ids))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
