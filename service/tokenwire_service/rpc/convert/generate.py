"""GenerateRequest becomes a plan. Also what both kinds of request have in common."""

from __future__ import annotations

from tokenwire.v1 import text_generation_pb2 as pb
from tokenwire_service.errors import ModelNotFoundError
from tokenwire_service.rpc.convert import options
from tokenwire_service.rpc.convert.checks import Checks
from tokenwire_service.rpc.model import ServedModel
from tokenwire_service.rpc.plan import GenerationPlan, Prompt, TextPrompt, TokenPrompt
from tokenwire_service.rpc.request import too_long


def check_model(name: str, model: ServedModel) -> None:
    """Raises ModelNotFoundError unless `name` is empty or one of the model's."""
    if name and name not in model.names:
        raise ModelNotFoundError(name, [model.name])


def generate_plan(request: pb.GenerateRequest, model: ServedModel, *, streams: bool) -> GenerationPlan:
    """Check every field. Raises ModelNotFoundError, InvalidParameterError or FeatureNotEnabledError."""
    check_model(request.model, model)
    checks = Checks()
    prompt = _prompt(request, model, checks)
    truncate = checks.integer(request, "truncate_prompt_tokens", "", 1, None, 0)
    return common_plan(request, prompt, truncate or None, model, checks, streams=streams)


def common_plan(
    request: options.GenerationRequest,
    prompt: Prompt | None,
    truncate_prompt_tokens: int | None,
    model: ServedModel,
    checks: Checks,
    *,
    streams: bool,
) -> GenerationPlan:
    """Check what Generate and Chat share, and raise everything found so far."""
    options.refuse_constraint(request, checks)
    scheduling = request.scheduling
    candidate_count, best_of = options.candidate_counts(request.sampling, model, checks, streams=streams)
    plan = GenerationPlan(
        prompt=prompt or TokenPrompt(()),
        truncate_prompt_tokens=truncate_prompt_tokens,
        sampling=options.sampling_params(request.sampling, model, checks),
        candidate_count=candidate_count,
        best_of=best_of,
        stopping=options.stop_plan(request.stopping, model, checks),
        output=options.output_plan(request.output, model, checks),
        priority=checks.integer(scheduling, "priority", "scheduling", -options.MAX_PRIORITY, options.MAX_PRIORITY, 0),
        max_queue_time_s=checks.seconds(scheduling, "max_queue_time", "scheduling"),
        cache=options.cache_params(request.cache, checks),
        session_id=request.cache.session_id,
        events=options.event_plan(request, checks, streams=streams),
        user=request.user,
        labels=options.labels(request, checks),
    )
    options.require_a_choice(plan.sampling, plan.stopping, checks)
    checks.raise_if_any()
    return plan


def _prompt(request: pb.GenerateRequest, model: ServedModel, checks: Checks) -> Prompt | None:
    kind = request.WhichOneof("prompt")
    if kind == "text":
        checks.require(bool(request.text), "text", "is empty; give the text to continue")
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        return TextPrompt(request.text, add_special_tokens=special)
    if kind is None:
        checks.wrong("prompt", "is missing; set text or token_ids")
        return None
    ids = request.token_ids.ids
    checks.require(
        not request.HasField("add_special_tokens"), "add_special_tokens", "is for a text prompt only; leave it out"
    )
    if not checks.require(len(ids) > 0, "token_ids.ids", "is empty; give the tokens to continue"):
        return None
    # Only what is kept is looked at: the rest may be long.
    kept = ids[-request.truncate_prompt_tokens :] if request.truncate_prompt_tokens else ids
    if len(kept) > model.limits.max_prompt_tokens:
        raise too_long("token_ids", str(len(kept)), model.limits, request.stopping.max_tokens)
    checks.token_ids(kept, "token_ids.ids", model.vocab_size, first=len(ids) - len(kept))
    return TokenPrompt(tuple(kept))
