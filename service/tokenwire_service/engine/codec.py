"""Requests, configuration and snapshots ↔ tokenwire.engine.v1alpha. Both ends are the same version."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tokenwire.engine.v1alpha import engine_pb2 as pb
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.events import EngineStats
from tokenwire_service.core.params import CacheParams, LogprobsParams, Request, SamplingParams, StoppingParams
from tokenwire_service.engine.client import EngineInfo
from tokenwire_service.parallel.identity import RankIdentity
from tokenwire_service.weights.resolved import GenerationDefaults, ModelKind, ResolvedModel

_SEED_MASK = (1 << 64) - 1
_SAME_NAME_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "context_frequency_penalty",
    "repetition_penalty",
)


def request_to_pb(request: Request, key: int) -> pb.Submission:
    """`key` takes the place of the request's id, which callers choose and may choose twice."""
    return pb.Submission(
        key=key,
        prompt_token_ids=request.prompt_token_ids,
        sampling=_sampling_to_pb(request.sampling),
        stopping=_stopping_to_pb(request.stopping),
        num_candidates=request.num_candidates,
        logprobs=_logprobs_to_pb(request.logprobs),
        prompt_logprobs=_logprobs_to_pb(request.prompt_logprobs),
        priority=request.priority,
        arrival_time=request.arrival_time,
        deadline=request.deadline,
        queue_deadline=request.queue_deadline,
        cache_salt=request.cache.salt,
        cache_bypass=request.cache.bypass,
    )


def request_from_pb(message: pb.Submission) -> Request:
    """The request's id is its key in decimal."""
    return Request(
        request_id=str(message.key),
        prompt_token_ids=tuple(message.prompt_token_ids),
        sampling=_sampling_from_pb(message.sampling),
        stopping=_stopping_from_pb(message.stopping),
        num_candidates=message.num_candidates,
        logprobs=_logprobs_from_pb(message.logprobs) if message.HasField("logprobs") else None,
        prompt_logprobs=_logprobs_from_pb(message.prompt_logprobs) if message.HasField("prompt_logprobs") else None,
        priority=message.priority,
        arrival_time=message.arrival_time,
        deadline=message.deadline if message.HasField("deadline") else None,
        queue_deadline=message.queue_deadline if message.HasField("queue_deadline") else None,
        cache=CacheParams(salt=message.cache_salt, bypass=message.cache_bypass),
    )


def configure_to_pb(
    resolved: ResolvedModel, dtype: str, config: EngineConfig, identity: RankIdentity | None = None
) -> pb.Configure:
    """`identity`: given to a process that others start the remaining ranks for."""
    return pb.Configure(
        model=pb.Model(
            model_id=resolved.model_id,
            revision=resolved.revision,
            kind=resolved.kind.value,
            config_json=json.dumps(dict(resolved.config)),
            weight_files=[str(path) for path in resolved.weight_files],
            tokenizer_dir=str(resolved.tokenizer_dir),
            dtype=dtype,
        ),
        limits=pb.EngineLimits(**dataclasses.asdict(config)),
        place=None if identity is None else place_to_pb(identity),
    )


def configure_from_pb(message: pb.Configure) -> tuple[ResolvedModel, str, EngineConfig]:
    """The model, the type it is held in, and the limits. Generation defaults and templates stay with the frontend."""
    model = message.model
    resolved = ResolvedModel(
        model_id=model.model_id,
        revision=model.revision,
        kind=ModelKind(model.kind),
        config=json.loads(model.config_json),
        weight_files=tuple(Path(path) for path in model.weight_files),
        tokenizer_dir=Path(model.tokenizer_dir),
        generation=GenerationDefaults(),
    )
    limits = {field.name: getattr(message.limits, field.name) for field in dataclasses.fields(EngineConfig)}
    return resolved, model.dtype, EngineConfig(**limits)


def place_to_pb(identity: RankIdentity) -> pb.RankPlace:
    return pb.RankPlace(**dataclasses.asdict(identity))


def place_from_pb(message: pb.RankPlace) -> RankIdentity:
    return RankIdentity(**{field.name: getattr(message, field.name) for field in dataclasses.fields(RankIdentity)})


def info_to_pb(info: EngineInfo) -> pb.Ready:
    return pb.Ready(**dataclasses.asdict(info))


def info_from_pb(message: pb.Ready) -> EngineInfo:
    return EngineInfo(**{field.name: getattr(message, field.name) for field in dataclasses.fields(EngineInfo)})


def stats_to_pb(stats: EngineStats) -> pb.Stats:
    return pb.Stats(**dataclasses.asdict(stats))


def stats_from_pb(message: pb.Stats) -> EngineStats:
    return EngineStats(**{field.name: getattr(message, field.name) for field in dataclasses.fields(EngineStats)})


def _sampling_to_pb(params: SamplingParams) -> pb.Sampling:
    return pb.Sampling(
        **{name: getattr(params, name) for name in _SAME_NAME_SAMPLING},
        seed=params.seed & _SEED_MASK,
        bias_token_ids=[token_id for token_id, _ in params.logit_bias],
        bias_values=[value for _, value in params.logit_bias],
        allowed_token_ids=params.allowed_token_ids,
    )


def _sampling_from_pb(message: pb.Sampling) -> SamplingParams:
    return SamplingParams(
        **{name: getattr(message, name) for name in _SAME_NAME_SAMPLING},
        seed=message.seed,
        logit_bias=tuple(zip(message.bias_token_ids, message.bias_values, strict=True)),
        allowed_token_ids=tuple(message.allowed_token_ids),
    )


def _stopping_to_pb(params: StoppingParams) -> pb.Stopping:
    return pb.Stopping(
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop_token_ids=sorted(params.stop_token_ids),
        context_limited=params.context_limited,
        time_limit_s=params.time_limit_s,
    )


def _stopping_from_pb(message: pb.Stopping) -> StoppingParams:
    return StoppingParams(
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        stop_token_ids=frozenset(message.stop_token_ids),
        context_limited=message.context_limited,
        time_limit_s=message.time_limit_s if message.HasField("time_limit_s") else None,
    )


def _logprobs_to_pb(params: LogprobsParams | None) -> pb.LogprobOptions | None:
    return None if params is None else pb.LogprobOptions(top_n=params.top_n, token_ids=params.token_ids)


def _logprobs_from_pb(message: pb.LogprobOptions) -> LogprobsParams:
    return LogprobsParams(top_n=message.top_n, token_ids=tuple(message.token_ids))
