"""/v1: OpenAI's routes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tokenwire.v1 import models_pb2, tokenization_pb2
from tokenwire.v1 import text_generation_pb2 as text
from tokenwire_gateway import names
from tokenwire_gateway.backend import all_of, merged
from tokenwire_gateway.errors import bad_field
from tokenwire_gateway.facts import RequestFacts, facts_of
from tokenwire_gateway.openai.chat import ChatChunks, chat_body
from tokenwire_gateway.openai.completions import CompletionChunks, CompletionPlan, completion_body
from tokenwire_gateway.openai.convert import chat_request, completion_requests, model_name
from tokenwire_gateway.openai.errors import error_frame
from tokenwire_gateway.openai.schemas import ChatCompletionRequest, CompletionRequest, SharedFields
from tokenwire_gateway.openapi import takes
from tokenwire_gateway.serving import (
    Gateway,
    body_of,
    cost_headers,
    event_stream,
    frames,
    gateway_of,
    json_response,
)
from tokenwire_gateway.shapes import parse
from tokenwire_gateway.sse import DONE, unless_gone


def openai_routes() -> APIRouter:
    """The router of /v1."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    add = router.add_api_route
    add("/chat/completions", chat_completions, methods=["POST"], openapi_extra=takes(ChatCompletionRequest))
    add("/completions", completions, methods=["POST"], openapi_extra=takes(CompletionRequest))
    add("/models", list_models, methods=["GET"])
    add("/models/{model_id:path}", get_model, methods=["GET"])
    return router


async def chat_completions(request: Request) -> Response:
    """Answers a conversation; with `stream`, as server-sent events that end with `data: [DONE]`."""
    body = parse(ChatCompletionRequest, await body_of(request))
    _check_stream_options(body)
    asked = chat_request(body)
    facts, backend = facts_of(request.scope), gateway_of(request).backend
    if body.max_completion_tokens is not None:
        facts.names = names.CHAT_NEWER
    if body.stream:
        chunks = ChatChunks(facts, body.n or 1, bool(body.logprobs), _include_usage(body))
        events = backend.stream(backend.said, asked, facts)
        return await event_stream(request, frames(events, chunks.on, DONE), partial(error_frame, known=names.CHAT))
    answer = await unless_gone(request.receive, backend.unary(backend.text.Chat, asked, facts))
    facts.model = answer.info.model
    facts.completed(answer.usage, answer.timing)
    characters = sum(len(part.text) for message in asked.messages for part in message.content)
    headers = await cost_headers(request, facts, characters)
    return json_response(chat_body(answer, bool(body.logprobs)), headers)


async def completions(request: Request) -> Response:
    """Continues one prompt or several; with `stream`, as server-sent events that end with `data: [DONE]`."""
    body = parse(CompletionRequest, await body_of(request))
    _check_stream_options(body)
    gateway, facts = gateway_of(request), facts_of(request.scope)
    limit = gateway.config.max_client_batch_size
    if len(body.prompt) > limit:
        raise bad_field("prompt", f"{len(body.prompt)} prompts; send at most {limit} in one request")
    asked = completion_requests(body)
    plan = CompletionPlan(
        choices=body.n or 1,
        with_logprobs=body.logprobs is not None,
        include_usage=_include_usage(body),
        echoes=await unless_gone(request.receive, _echoes(gateway, asked, facts))
        if body.echo
        else (None,) * len(asked),
        skip_special=body.skip_special_tokens is not False,
    )
    if body.stream:
        return await _stream_completions(request, asked, plan)
    calls = [gateway.backend.unary(gateway.backend.text.Generate, one, facts) for one in asked]
    answers = await unless_gone(request.receive, all_of(calls))
    for answer in answers:
        facts.model = answer.info.model
        facts.completed(answer.usage, answer.timing)
    headers = await cost_headers(request, facts, sum(len(one.text) for one in asked))
    return json_response(completion_body(answers, plan), headers)


async def _stream_completions(
    request: Request, asked: Sequence[text.GenerateRequest], plan: CompletionPlan
) -> Response:
    backend, facts = gateway_of(request).backend, facts_of(request.scope)
    streams = [backend.stream(backend.generated, one, facts) for one in asked]
    chunks = CompletionChunks(facts, plan)
    if len(streams) == 1:
        body = frames(streams[0], partial(chunks.on, 0), DONE)
    else:
        body = frames(merged(streams), lambda numbered: chunks.on(*numbered), DONE)
    return await event_stream(request, body, partial(error_frame, known=names.COMPLETION))


async def _echoes(
    gateway: Gateway, asked: Sequence[text.GenerateRequest], facts: RequestFacts
) -> tuple[str | None, ...]:
    """Text of each prompt; token ids are turned into text by the service."""

    async def echo(one: text.GenerateRequest) -> str:
        if one.WhichOneof("prompt") == "text":
            return one.text
        skip = one.output.skip_special_tokens if one.output.HasField("skip_special_tokens") else None
        ids = tokenization_pb2.DetokenizeRequest(model=one.model, token_ids=one.token_ids.ids, skip_special_tokens=skip)
        return (await gateway.backend.unary(gateway.backend.tokens.Detokenize, ids, facts)).text

    return tuple(await all_of([echo(one) for one in asked]))


async def list_models(request: Request) -> Response:
    """Lists the models served."""
    models = await gateway_of(request).backend.list_models(facts_of(request.scope))
    return json_response({"object": "list", "data": [_model(model) for model in models]})


async def get_model(request: Request, model_id: str) -> Response:
    """Describes one model; its id may hold slashes."""
    model = await gateway_of(request).backend.get_model(model_name(model_id), facts_of(request.scope))
    return json_response(_model(model))


def _model(model: models_pb2.Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.create_time.seconds,
        "owned_by": "tokenwire",
        "root": model.source,
        "max_model_len": model.limits.max_context_tokens,
    }


def _include_usage(body: SharedFields) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _check_stream_options(body: SharedFields) -> None:
    if body.stream_options is not None and not body.stream:
        raise bad_field("stream_options", "needs stream to be true")
